"""The kinds of codebases: what tells one, which lines go where, and the same lines for whoever inserts them by hand."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .chain import find_chain, strings
from .source import Insertion, Source

NAME = "PCL"
MAX_DEPTH = 3


@dataclass(frozen=True)
class Place:
    """A file that lines go into."""

    file: str  # below the folder of the code
    find: Callable[[Source], list[Insertion]]  # what goes where; raises ValueError with the reason if it cannot tell
    where: str  # the same in words, for those who have to insert the lines by hand
    lines: tuple[str, ...]

    def by_hand(self) -> str:
        """What a refusal ends with."""
        return f"To insert it by hand: in {self.where},\n\n" + "".join(f"    {line}\n" for line in self.lines)


@dataclass(frozen=True)
class Kind:
    """Codebases that are patched alike."""

    mark: str  # the file that tells one
    next_step: str  # what to do when all is inserted
    places: tuple[Place, ...]
    lr_places: tuple[Place, ...] = ()  # what hands LR to the loss as well; empty where the codebase does so by itself


@dataclass(frozen=True)
class Codebase:
    """A codebase that was found: in `folder`, at or below the `root` that the user named."""

    root: Path
    folder: Path
    kind: Kind

    def name(self, place: Place) -> str:
        """A file's path below `root`, with `/`."""
        return (self.folder / place.file).relative_to(self.root).as_posix()


def find_codebase(root: Path) -> Codebase:
    """The only codebase in a folder or up to `MAX_DEPTH` folders below; `ValueError` or `OSError` if there is none."""
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}; name a checkout of EDSR-PyTorch, RCAN, HAN or BasicSR")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; name the folder of the checkout")
    found = [
        Codebase(root, folder, kind)
        for folder in _folders(root, MAX_DEPTH)
        for kind in KINDS
        if (folder / kind.mark).is_file()
    ]
    # RCAN and SAN keep a copy for testing, which trains nothing.
    trains = [base for base in found if not re.search(r"(?i)(^|[/_-])test", base.folder.relative_to(root).as_posix())]
    found = trains or found
    if not found:
        raise ValueError(
            f"{root} is no codebase of a known kind: neither {' nor '.join(kind.mark for kind in KINDS)} is in it, or "
            f"up to {MAX_DEPTH} folders below.\n{KINDS[0].places[0].by_hand()}"
        )
    if len(found) > 1:
        folders = ", ".join(str(base.folder) for base in found)
        raise ValueError(f"{root} holds more than one codebase; name one of these instead: {folders}")
    return found[0]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    with contextlib.suppress(PermissionError):
        for folder in sorted(root.iterdir()) if depth else ():
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
                yield from _folders(folder, depth - 1)


# EDSR-PyTorch and its forks: loss/__init__.py


def _branch_lines(name: str, target: str, options: str, importer: str = "import_module") -> tuple[str, str]:
    return f"elif {name} == '{NAME}':", f"{target} = {importer}('pcl_loss.edsr_plugin').PCL({options})"


def _branch(source: Source) -> list[Insertion]:
    """The branch that builds PCL and, where the codebase logs a discriminator's loss, the entry that logs E_D's."""
    chain = find_chain(source.tree)
    if any(NAME in strings(branch.test) for branch in chain.branches):
        raise ValueError(f"it already knows another loss of the name {NAME}")
    imports = [node for node in source.tree.body if isinstance(node, ast.ImportFrom)]
    imported = any(name.name == "import_module" and not name.asname for node in imports for name in node.names)
    importer = "import_module" if imported else "__import__('importlib').import_module"
    test, build = _branch_lines(chain.name, chain.target, chain.options(), importer)
    outer = source.indent(chain.branches[0])
    inner = source.inner_indent(outer, [branch.body[0] for branch in chain.branches])
    last = chain.last_comparison().body[-1]
    insertions = [source.behind(last, f"the branch that builds {NAME}", (outer, test), (inner, build))]
    if (entry := chain.entry()) is not None:
        statement, terms = entry
        what = "the column DIS of the log, the discriminator's loss"
        test, append = f"if {chain.name} == '{NAME}':", f"{terms}.append(dict(type='DIS', weight=1, function=None))"
        insertions.append(source.behind(statement, what, (outer, test), (inner, append)))
    return insertions


# EDSR-PyTorch and its forks: trainer.py


def _lr_lines(lr: str) -> tuple[str, str]:
    return "from pcl_loss.edsr_plugin import set_lr", f"set_lr(self.loss, {lr})"


def _hand_lr_over(source: Source) -> list[Insertion]:
    """The lines that hand LR to the loss, before the loss is called."""
    calls = list(_loss_calls(source.tree))
    if len(calls) != 1:
        found = f"{len(calls) or 'no'} calls of the shape `loss = self.loss(sr, hr)` were found"
        raise ValueError(f"{found}, one is needed")
    ((statement, lr),) = calls
    if lr is None:
        raise ValueError("before the call of the loss no line of the shape `sr = self.model(lr, ...)` was found")
    indent = source.indent(statement)
    return [source.before(statement, "LR is handed to the loss", *((indent, line) for line in _lr_lines(lr)))]


def _loss_calls(tree: ast.Module) -> Iterator[tuple[ast.stmt, str | None]]:
    """Each `... = self.loss(sr, hr)`, and the name of the LR that its block made `sr` of, if it did."""
    for block in (value for node in ast.walk(tree) for _, value in ast.iter_fields(node) if isinstance(value, list)):
        made_of: dict[str, str] = {}
        for statement in block:
            match statement:
                case ast.Assign(_, ast.Call(ast.Attribute(ast.Name("self"), "loss"), [sr, _, *_])):
                    yield statement, made_of.get(ast.unparse(sr))
                case ast.Assign(targets, ast.Call(ast.Attribute(ast.Name("self"), "model"), [ast.Name(lr), *_])):
                    made_of |= {target.id: lr for target in targets if isinstance(target, ast.Name)}


# BasicSR: basicsr/train.py and basicsr/test.py

# Importing basicsr imports these files too, and must not come back here.
_REGISTER_LINES = (
    "if __name__ in ('__main__', '__mp_main__'):",
    "    import pcl_loss.basicsr_plugin",
    "    pcl_loss.basicsr_plugin.register()",
)


def _register(source: Source) -> list[Insertion]:
    """The lines that register us, before the first import of basicsr, which would take its own `parse_options`."""
    for node in source.tree.body:
        match node:
            case ast.Import(names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(str(module), level=0):
                modules = [module]
            case _:
                continue
        if any(module.partition(".")[0] == "basicsr" for module in modules):
            source.indent(node)
            what = "pcl_loss is registered when the file is run"
            return [source.before(node, what, *((b"", line) for line in _REGISTER_LINES))]
    raise ValueError("no import of basicsr was found in it")


_LOSS = "loss/__init__.py"
_LOSS_WHERE = f"{_LOSS}, where the names of --loss become modules, as one more branch"
_TEST, _BUILD = _branch_lines("loss_type", "loss_function", "args")
_TRAINER_WHERE = "trainer.py, just before the loss is called, with the LR batch as lr"
_TRAIN, _TEST_FILE = "basicsr/train.py", "basicsr/test.py"
_BASICSR_WHERE = f"{_TRAIN} and {_TEST_FILE}, before the first import of basicsr"

KINDS = (
    Kind(
        mark=_LOSS,
        next_step=f'Now train with --loss "1*L1+1*{NAME}", and look for the line "[pcl_loss] ..." at the start: '
        "without it, the codebase has taken L1 twice.",
        places=(Place(_LOSS, _branch, _LOSS_WHERE, (_TEST, f"    {_BUILD}")),),
        lr_places=(Place("trainer.py", _hand_lr_over, _TRAINER_WHERE, _lr_lines("lr")),),
    ),
    Kind(
        mark=_TRAIN,
        next_step=f"Now run {_TRAIN} as ever.",
        places=tuple(Place(file, _register, _BASICSR_WHERE, _REGISTER_LINES) for file in (_TRAIN, _TEST_FILE)),
    ),
)
