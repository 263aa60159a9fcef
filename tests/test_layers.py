"""Every import follows the reading direction, and the house stays small enough to be read."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pcl_loss"

# A module imports what stands on a line above its own, and nothing on its own line or below.
# `__init__` stands for the names that the package itself has.
LINES = {
    "": """
        _checks _distributed _missing import_repair
        _files discriminator_step functional samples wavelet
        discriminator embedding
        loss
        criterion preview
        __init__ edsr_plugin trainner_plugin
        basicsr_plugin
        tools
        train
        cli test run
        __main__""",
    "basicsr_plugin": """
        bad_steps collapse gradients han_arch lpips_metric options_loading preview_hook
        checkpoints options_basicsr
        images options_ours
        data_order speed
        model
        sr_models
        options_build run_mixin
        repairs
        registration
        __init__""",
}
LEVELS = {
    folder: {name: level for level, line in enumerate(lines.strip().splitlines()) for name in line.split()}
    for folder, lines in LINES.items()
}

# The entry points `train` and `test` start BasicSR's own pipelines.
MAY_IMPORT_BASICSR = {"basicsr_plugin", "tools", "train", "test"}
ENTRIES = {
    "__main__.py",
    "cli.py",
    "train.py",
    "test.py",
    "run.py",
    "edsr_plugin.py",
    "trainner_plugin.py",
    "_files.py",
}

MAX_FILES = 60
MAX_FLAT_FILES = 21
MAX_LINES_OF_A_FILE = 300
MAX_LINES: dict[str, tuple[int, Callable[[Path], bool]]] = {
    "package": (6600, lambda path: PACKAGE in path.parents),
    "core": (1600, lambda path: path.parent == PACKAGE and path.name not in ENTRIES),
    "basicsr_plugin": (2100, lambda path: PACKAGE / "basicsr_plugin" in path.parents),
    "tools": (2250, lambda path: PACKAGE / "tools" in path.parents),
    "tests": (9000, lambda path: ROOT / "tests" in path.parents),
    "benchmarks and scripts": (1700, lambda path: path.parent.name in ("benchmarks", "scripts")),
}

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
TREE = [path for folder in ("pcl_loss", "tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]


def imports(file: str, source: str) -> Iterator[str]:
    """The full name of every module or name that a file below `pcl_loss` imports."""
    package = ["pcl_loss", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, a path below `pcl_loss`; one sentence each."""
    *folders, name = Path(file).with_suffix("").parts
    found = []
    for imported in imports(file, source):
        parts = imported.split(".")
        if parts[0] == "basicsr" and Path(file).with_suffix("").parts[0] not in MAY_IMPORT_BASICSR:
            found.append(f"{file} imports {imported}; only {', '.join(sorted(MAY_IMPORT_BASICSR))} may")
        for folder in ("", *folders[:1]):
            here, inside = folder.split(".") if folder else [], parts[1:]
            if parts[0] != "pcl_loss" or folder not in LEVELS or inside[: len(here)] != here:
                continue
            room = ([*folders, name] if not folder else [*folders[1:], name])[0]
            target = (inside[len(here) :] or ["__init__"])[0]
            is_module = (PACKAGE / folder / target).is_dir() or (PACKAGE / folder / f"{target}.py").is_file()
            target, levels = target if is_module else "__init__", LEVELS[folder]
            if target != room and levels.get(target, 99) >= levels.get(room, -1):
                found.append(f"{file} imports {imported}: {target!r} does not stand above {room!r} in LINES")
    return found


@pytest.mark.parametrize("file", FILES)
def test_no_import_goes_against_the_reading_direction(file: str) -> None:
    assert faults(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize("folder", LINES)
def test_every_module_has_its_line_and_every_line_its_modules(folder: str) -> None:
    found = {
        path.stem for path in (PACKAGE / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert LEVELS[folder].keys() == found


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("samples.py", "from .loss import PCLLoss", 1),
        ("samples.py", "import pcl_loss.loss", 1),
        ("samples.py", "from . import PCLLoss", 1),
        ("discriminator.py", "from .embedding import Embedding", 1),
        ("functional.py", "def similarity():\n    from .criterion import downsample", 1),
        ("criterion.py", "def build():\n    from basicsr.archs import build_network", 1),
        ("basicsr_plugin/model.py", "def draw():\n    from ..tools import preview", 1),
        ("basicsr_plugin/gradients.py", "from .model import PCLModel", 1),
        ("tools/preview.py", "from ..cli import main", 1),
        (
            "basicsr_plugin/model.py",
            "import basicsr\nfrom ..criterion import PCLCriterion\nfrom .gradients import a",
            0,
        ),
        (
            "tools/report/measure.py",
            "from .. import _images\nfrom ... import basicsr_plugin, __version__\nimport basicsr",
            0,
        ),
        ("edsr_plugin.py", "from .criterion import PCLCriterion\nimport basicsr_of_another_name", 0),
    ],
)
def test_a_wrong_import_is_found_and_a_right_one_let_through(file: str, source: str, wrong: int) -> None:
    assert len(faults(file, source)) == wrong


def test_there_are_few_files_and_none_is_long() -> None:
    assert len(FILES) <= MAX_FILES
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FLAT_FILES
    lengths = {file: len((PACKAGE / file).read_text().splitlines()) for file in FILES}
    assert {file: count for file, count in lengths.items() if count > MAX_LINES_OF_A_FILE} == {}


@pytest.mark.parametrize("part", MAX_LINES)
def test_no_part_is_longer_than_its_limit(part: str) -> None:
    limit, belongs = MAX_LINES[part]
    assert sum(len(path.read_text().splitlines()) for path in TREE if belongs(path)) <= limit
