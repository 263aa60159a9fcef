"""What the package index is told."""

import re
import runpy
from pathlib import Path

import pcl_loss

ROOT = Path(__file__).parent.parent


def test_links_of_the_readme_lead_to_the_versions_tag_or_go() -> None:
    readme_for_index = runpy.run_path(str(ROOT / "setup.py"))["readme_for_index"]
    tag, kept = f"v{pcl_loss.__version__}", "[d](https://arxiv.org/abs/1) [e](#e)"
    readme = f"![A](a.png) [b](docs/b.md#c) {kept}"
    expected = f"![A](https://x/y/raw/{tag}/a.png) [b](https://x/y/blob/{tag}/docs/b.md#c) {kept}"
    assert readme_for_index(readme, "https://x/y") == expected
    assert readme_for_index(readme, "") == f" b {kept}"


def test_the_oldest_torch_that_is_tested_is_the_lower_bound() -> None:
    (bound,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    (tested,) = re.findall(r"^OLDEST_TORCH := torch==([\d.]+) ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert bound == tested
