"""What the package index is told."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import pcl_loss

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_to_the_versions_tag_or_go(setup_py: ModuleType) -> None:
    tag, kept = f"v{pcl_loss.__version__}", "[d](https://arxiv.org/abs/1) [e](#e)"
    readme = f"![A](a.png) [b](docs/b.md#c) {kept}"
    expected = f"![A](https://x/y/raw/{tag}/a.png) [b](https://x/y/blob/{tag}/docs/b.md#c) {kept}"
    assert setup_py.readme_for_index(readme, "https://x/y") == expected
    assert setup_py.readme_for_index(readme, "") == f" b {kept}"


def test_the_oldest_torch_that_is_tested_is_the_lower_bound() -> None:
    (bound,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    (tested,) = re.findall(r"^OLDEST_TORCH := torch==([\d.]+) ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert bound == tested
