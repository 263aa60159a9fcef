"""What the package index is told, and how its page reads there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import pcl_loss

ROOT = Path(__file__).parent.parent
README = "![A picture](examples/demo.png) [a page](docs/cost.md#keys) [a paper](https://arxiv.org/abs/1) [below](#use)"


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_with_a_repository_links_lead_to_the_versions_tag(setup_py: ModuleType) -> None:
    tag = f"v{pcl_loss.__version__}"
    assert setup_py.readme_for_index(README, "https://host/us") == (
        f"![A picture](https://host/us/raw/{tag}/examples/demo.png) [a page](https://host/us/blob/{tag}/docs/cost.md#keys)"
        " [a paper](https://arxiv.org/abs/1) [below](#use)"
    )


def test_without_a_repository_the_text_of_a_link_stays(setup_py: ModuleType) -> None:
    assert setup_py.readme_for_index(README, "") == " a page [a paper](https://arxiv.org/abs/1) [below](#use)"


@pytest.mark.parametrize("repository", ["", "https://host/us"])
def test_no_relative_link_of_the_readme_reaches_the_index(setup_py: ModuleType, repository: str) -> None:
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", setup_py.readme_for_index(readme, repository))
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_links_beside_the_description_name_the_repository_once_there_is_one(setup_py: ModuleType) -> None:
    assert setup_py.urls("").keys() == {"Paper"}
    assert setup_py.urls("https://host/us").keys() == {"Source", "Issues", "Changelog", "Paper"}
    assert all(url.startswith("https://") for url in setup_py.urls("https://host/us").values())


def test_the_oldest_torch_that_is_tested_is_the_lower_bound() -> None:
    (bound,) = re.findall(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    (tested,) = re.findall(r"^OLDEST_TORCH := torch==([\d.]+) ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert bound == tested
