"""Every import in the package follows the reading direction, and the package stays small enough to be read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pcl_loss"

# A module imports what stands on a line above its own, and nothing on its own line or below.
# `__init__` stands for the names that `pcl_loss` itself has.
LINES = (
    "_checks _datasets _distributed _downloads _extras _tensors import_repair",
    "_durable _guarded_step samples wavelet",
    "discriminator embedding",
    "functional",
    "_known_gradient",
    "loss",
    "criterion",
    "__init__ edsr_plugin trainner_plugin basicsr_plugin",
    "tools",
    "train",
    "cli test run",
    "__main__",
)
LEVELS = {name: level for level, line in enumerate(LINES) for name in line.split()}

# The entry points `train` and `test` start BasicSR's own pipelines.
MAY_IMPORT_BASICSR = {"basicsr_plugin", "tools", "train", "test"}

# The one import upwards, allowed inside a function: drawing the preview during training.
PREVIEW_HOOK = "basicsr_plugin/preview_hook.py"

MAX_LINES = 400
MAX_FLAT_FILES = 24

FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports(file: str, source: str) -> Iterator[tuple[str, bool]]:
    """The full name of every module or name that a file imports, and whether a function does it."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_function = {id(node) for function in functions for node in ast.walk(function)}
    package = ["pcl_loss", *Path(file).parts[:-1]]
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{name}" for name in names]
        for name in names:
            yield name, id(node) in in_function


def room_of(name: str) -> str:
    """The entry of `LEVELS` that a full name below `pcl_loss` belongs to."""
    first = name.split(".")[1] if "." in name else "__init__"
    is_module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return first if is_module else "__init__"


def faults(file: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, a path below `pcl_loss`; one sentence each."""
    room = Path(file).parts[0].removesuffix(".py")
    if room not in LEVELS:
        return [f"{file} has no level; add {room!r} to LINES"]
    found = []
    for name, in_function in imports(file, source):
        top = name.partition(".")[0]
        if top == "basicsr" and room not in MAY_IMPORT_BASICSR:
            found.append(f"{file} imports {name}; only {', '.join(sorted(MAY_IMPORT_BASICSR))} may")
        if top != "pcl_loss":
            continue
        target = room_of(name)
        is_upwards = target != room and LEVELS.get(target, len(LINES)) >= LEVELS[room]
        if is_upwards and not (file == PREVIEW_HOOK and target == "tools" and in_function):
            found.append(f"{file} imports {name}, which does not stand above {room!r} in LINES")
    return found


@pytest.mark.parametrize("file", FILES)
def test_no_import_goes_against_the_reading_direction(file: str) -> None:
    assert faults(file, (PACKAGE / file).read_text()) == []


def test_every_level_belongs_to_a_module_that_exists() -> None:
    assert LEVELS.keys() <= {Path(file).parts[0].removesuffix(".py") for file in FILES}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("samples.py", "from .loss import PCLLoss"),
        ("samples.py", "from pcl_loss.loss import PCLLoss"),
        ("samples.py", "import pcl_loss.loss"),
        ("samples.py", "from . import PCLLoss"),
        ("discriminator.py", "from .embedding import Embedding"),
        ("functional.py", "def similarity():\n    from .criterion import downsample"),
        ("loss.py", "from .tools import preview"),
        ("criterion.py", "from .basicsr_plugin import register"),
        ("criterion.py", "import basicsr"),
        ("criterion.py", "def build():\n    from basicsr.archs import build_network"),
        ("__init__.py", "from .tools.preview import draw"),
        ("__init__.py", "from .basicsr_plugin import register"),
        ("basicsr_plugin/model.py", "from ..tools import preview"),
        ("basicsr_plugin/model.py", "def draw():\n    from ..tools import preview"),
        ("basicsr_plugin/preview_hook.py", "from ..tools import preview"),
        ("basicsr_plugin/preview_hook.py", "def draw():\n    from ..cli import main"),
        ("tools/report/measure.py", "from ...cli import main"),
        ("a_new_module.py", ""),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str) -> None:
    assert len(faults(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("loss.py", "import torch\nfrom . import samples\nfrom .functional import contrastive_loss"),
        ("basicsr_plugin/model.py", "import basicsr\nfrom ..criterion import PCLCriterion\nfrom .gradients import a"),
        ("basicsr_plugin/preview_hook.py", "def draw():\n    from ..tools.preview import draw"),
        (
            "tools/report/measure.py",
            "from .. import _images\nfrom ... import basicsr_plugin, __version__\nimport basicsr",
        ),
        ("edsr_plugin.py", "from .criterion import PCLCriterion\nimport basicsr_of_another_name"),
    ],
)
def test_a_right_import_is_let_through(file: str, source: str) -> None:
    assert faults(file, source) == []


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {file: len((PACKAGE / file).read_text().splitlines()) for file in FILES}
    assert {file: count for file, count in lines.items() if count > MAX_LINES} == {}


def test_few_files_lie_flat_in_the_package() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_FLAT_FILES
