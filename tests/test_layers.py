"""Every import follows the reading direction, and the house stays small enough to be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pcl_loss"

# A module imports what stands on a line above its own, and nothing on its own line or below.
# `__init__` stands for the names that the folder itself has.
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
        han_arch lpips_metric options_loading
        options_basicsr
        data options_ours
        speed
        perceptual
        checkpoints
        model options_build run_mixin
        repairs
        registration
        __init__""",
}
LEVELS = {
    folder: {name: level for level, line in enumerate(lines.split("\n")) for name in line.split()}
    for folder, lines in LINES.items()
}

# The entry points `train` and `test` start BasicSR's own pipelines.
MAY_IMPORT_BASICSR = {"basicsr_plugin", "tools", "train", "test"}
NOT_CORE = {"__main__", "_files", "cli", "edsr_plugin", "run", "test", "train", "trainner_plugin"}
# Tracked lines, which only ever go down.
MAX_LINES = {
    "pcl_loss/**/*.py": 6533,
    "pcl_loss/basicsr_plugin/*.py": 2099,
    "pcl_loss/tools/**/*.py": 2105,
    "tests/**/*.py": 8907,
    "benchmarks/*.py scripts/*.py": 1696,
}
MAX_LINES_OF_CORE = 1598
MAX_LINES_OF_A_FILE = 300
MAX_FILES, MAX_FLAT_FILES = 56, 21

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def imports(file: str, source: str) -> Iterator[str]:
    """The full name of every module or name that a file below `pcl_loss` imports."""
    package = ["pcl_loss", *Path(file).parts[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join(filter(None, [*base, node.module, alias.name])) for alias in node.names)


def faults(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, a path below `pcl_loss`; one sentence each."""
    rooms = Path(file).with_suffix("").parts
    found = []
    for imported in imports(file, source):
        top, *inside = imported.split(".")
        if top == "basicsr" and rooms[0] not in MAY_IMPORT_BASICSR:
            found.append(f"{file} imports {imported}; only {', '.join(sorted(MAY_IMPORT_BASICSR))} may")
        if top != "pcl_loss":
            continue
        # Both lie in one folder up to the first part that differs.
        depth = int(len(rooms) > 1 and inside[:1] == [rooms[0]])
        folder, room, target = "/".join(rooms[:depth]), rooms[depth], "".join(inside[depth : depth + 1])
        is_module = (PACKAGE / folder / target).is_dir() or (PACKAGE / folder / f"{target}.py").is_file()
        target, levels = target if target and is_module else "__init__", LEVELS.get(folder, {room: 1})
        if target != room and levels.get(target, 99 * (folder in LEVELS)) >= levels.get(room, -1):
            found.append(f"{file} imports {imported}: {target!r} does not stand above {room!r} in LINES")
    return found


@pytest.mark.parametrize("file", FILES)
def test_no_import_goes_against_the_reading_direction(file: str) -> None:
    assert faults(file, (PACKAGE / file).read_text()) == []


@pytest.mark.parametrize("folder", LINES)
def test_every_module_has_its_line_and_every_line_its_modules(folder: str) -> None:
    modules = [*(PACKAGE / folder).glob("*.py"), *(path.parent for path in (PACKAGE / folder).glob("*/__init__.py"))]
    assert LEVELS[folder].keys() == {path.stem for path in modules}


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("samples.py", "from .loss import PCLLoss", 1),
        ("criterion.py", "def build():\n    from basicsr.archs import build_network", 1),
        ("basicsr_plugin/model.py", "def draw():\n    from ..tools import preview", 1),
        ("basicsr_plugin/speed.py", "from .model import PCLModel", 1),
        ("tools/preview.py", "from ..cli import main", 1),
        ("basicsr_plugin/model.py", "import basicsr\nfrom ..criterion import a\nfrom .speed import b", 0),
        ("tools/report/nets.py", "from .. import _images\nfrom ... import basicsr_plugin, __version__", 0),
    ],
)
def test_a_wrong_import_is_found_and_a_right_one_let_through(file: str, source: str, wrong: int) -> None:
    assert len(faults(file, source)) == wrong


@pytest.mark.parametrize("patterns", MAX_LINES)
def test_no_part_is_longer_than_its_limit(patterns: str) -> None:
    lengths = [num_lines(path) for pattern in patterns.split() for path in ROOT.glob(pattern)]
    assert 0 < sum(lengths) <= MAX_LINES[patterns]


def test_the_core_is_small_and_so_is_every_file_and_their_number() -> None:
    flat = list(PACKAGE.glob("*.py"))
    assert sum(num_lines(path) for path in flat if path.stem not in NOT_CORE) <= MAX_LINES_OF_CORE
    assert (len(FILES) <= MAX_FILES, len(flat) <= MAX_FLAT_FILES) == (True, True)
    assert [file for file in FILES if num_lines(PACKAGE / file) > MAX_LINES_OF_A_FILE] == []
