"""The kinds of codebases: what tells one, which lines go where, and the same lines for whoever inserts them by hand."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .by_hand import Refusal, for_a_foreign_basicsr, for_lists_of_images, what_works_in
from .chain import Chain, find_chain, strings
from .source import Insertion, Source, names_us

NAME = "PCL"
MAX_DEPTH = 3


@dataclass(frozen=True)
class Place:
    """A file that lines go into."""

    file: str  # below the folder of the code
    find: Callable[[Source], list[Insertion]]  # what goes where; raises ValueError with the reason if it cannot tell
    is_there: Callable[[ast.Module], bool]  # whether the file does it already, with our lines or others
    where: str  # the same in words, for those who have to insert the lines by hand
    lines: tuple[str, ...]
    is_optional: bool = False  # whether a codebase may do without the file
    is_new: bool = False  # whether the file is ours alone: `lines` are all of it

    def by_hand(self) -> str:
        """What a refusal ends with."""
        return f"To insert it by hand: in {self.where},\n\n" + "".join(f"    {line}\n" for line in self.lines)


@dataclass(frozen=True)
class Kind:
    """Codebases that are patched alike."""

    mark: str  # the file that tells one
    next_step: Callable[[Path], str]  # what to do in its folder when all is inserted
    places: tuple[Place, ...]
    check: Callable[[Path], None] = lambda folder: None  # raises ValueError with the reason if it cannot be patched
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

    def places(self, *, lr_negative: bool) -> list[Place]:
        """Those to patch, with or without what hands LR over."""
        places = self.kind.places + (self.kind.lr_places if lr_negative else ())
        return [place for place in places if not place.is_optional or (self.folder / place.file).is_file()]


def find_codebase(root: Path) -> Codebase:
    """The only codebase in a folder or up to `MAX_DEPTH` folders below; `ValueError` or `OSError` if there is none."""
    if not root.exists():
        raise FileNotFoundError(
            f"there is no folder {root}; name a checkout of EDSR-PyTorch, RCAN, HAN, BasicSR or traiNNer-redux"
        )
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; name the folder of the checkout")
    root = _above_the_mark(root)
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
            f"{root} is no codebase that can be patched: neither {' nor '.join(kind.mark for kind in KINDS)} is in it, "
            f"or up to {MAX_DEPTH} folders below.\n{what_works_in(root)}"
        )
    # Another one may lie further below; it can be named.
    found = [base for base in found if base.folder == root] or found
    if len(found) > 1:
        folders = ", ".join(str(base.folder) for base in found)
        raise ValueError(f"{root} holds more than one codebase; name one of these instead: {folders}")
    return found[0]


def _above_the_mark(root: Path) -> Path:
    """`root`; or, if it is the folder with a codebase's mark itself, such as `src/loss`, the one above."""
    folder = root.resolve()
    is_below = any((folder.parent / kind.mark) == folder / Path(kind.mark).name for kind in KINDS)
    return folder.parent if is_below and any((folder.parent / kind.mark).is_file() for kind in KINDS) else root


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    with contextlib.suppress(PermissionError):
        for folder in sorted(root.iterdir()) if depth else ():
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
                yield from _folders(folder, depth - 1)


# EDSR-PyTorch and its forks: loss/__init__.py


def _branch_lines(name: str, target: str, options: str, importer: str = "import_module") -> tuple[str, str]:
    return f"elif {_is_ours(name)}:", f"{target} = {importer}('pcl_loss.edsr_plugin').PCL({options})"


def _is_ours(name: str) -> str:
    # In any case: for a name that no branch knows, such as `pcl`, those codebases take the term before it again.
    return f"{name}.upper() == '{NAME}'"


def _branch(source: Source) -> list[Insertion]:
    """The branch that builds PCL and, where the codebase logs a discriminator's loss, the entry that logs E_D's."""
    lines = _branch_lines("loss_type", "loss_function", "args")
    if _takes_lists(source.tree):
        raise Refusal(
            "its losses are called with a list of SR images, PCL takes one batch", for_lists_of_images(*lines)
        )
    chain = find_chain(source.tree)
    if any(_knows(branch.test) for branch in chain.branches):
        raise ValueError(f"it already knows another loss of the name {NAME}")
    last = chain.last_comparison()
    _check_that_it_is_reached(chain, last)
    imports = [node for node in source.tree.body if isinstance(node, ast.ImportFrom)]
    imported = any(name.name == "import_module" and not name.asname for node in imports for name in node.names)
    importer = "import_module" if imported else "__import__('importlib').import_module"
    test, build = _branch_lines(chain.name, chain.target, chain.options(), importer)
    outer = source.indent(chain.branches[0])
    inner = source.inner_indent(outer, [branch.body[0] for branch in chain.branches])
    insertions = [source.behind(last.body[-1], f"the branch that builds {NAME}", (outer, test), (inner, build))]
    if (entry := chain.entry()) is not None:
        statement, terms = entry
        what = "the column DIS of the log, the discriminator's loss"
        test, append = f"if {_is_ours(chain.name)}:", f"{terms}.append(dict(type='DIS', weight=1, function=None))"
        insertions.append(source.behind(statement, what, (outer, test), (inner, append)))
    return insertions


def _check_that_it_is_reached(chain: Chain, last: ast.If) -> None:
    taken = chain.taken_before(last, (NAME, NAME.lower()))
    if taken is None:
        return
    test, build = _branch_lines(chain.name, chain.target, chain.options())
    first = chain.branches[0]
    lines = (test.removeprefix("el"), f"    {build}", f"elif {ast.unparse(first.test)}:")
    raise Refusal(
        f"the branch of line {taken.lineno}, `{ast.unparse(taken.test)}`, may be taken for {NAME} too, so that one "
        "behind it would never be",
        f"To insert it by hand: in {_LOSS}, put ours first, and make an `elif` of the `if` in line {first.lineno},\n\n"
        + "".join(f"    {line}\n" for line in lines),
    )


def _knows(test: ast.expr) -> bool:
    return NAME in {text.upper() for text in strings(test)}


def _has_branch(tree: ast.Module) -> bool:
    """Whether a branch for the name PCL builds what is ours, and not another loss of that name."""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _knows(node.test)]
    return any(names_us(*branch.body, *imports) for branch in branches)


def _takes_lists(tree: ast.Module) -> bool:
    """Whether a loss asks whether what its `forward` is called with is a list."""
    for forward in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "forward"):
        arguments = {argument.arg for argument in forward.args.args}
        for node in ast.walk(forward):
            match node:
                case ast.Call(ast.Name("isinstance"), [ast.Name(argument), kinds]) if argument in arguments:
                    if {"list", "tuple"} & {name.id for name in ast.walk(kinds) if isinstance(name, ast.Name)}:
                        return True
    return False


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


def _hands_lr_over(tree: ast.Module) -> bool:
    return names_us(tree) and "set_lr" in _called(tree)


def _called(tree: ast.Module) -> set[str]:
    """The names of the functions and methods that are called."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {ast.unparse(function).rpartition(".")[2] for function in functions}


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


def _registers(tree: ast.Module) -> bool:
    return names_us(tree) and "register" in _called(tree)


def _check_basicsr(folder: Path) -> None:
    package = folder / "basicsr"
    lacks = [file for file in ("__init__.py", "utils/registry.py") if not (package / file).is_file()]
    if lacks:
        raise Refusal(
            f"{package} has no {' and no '.join(lacks)}: it is too old a BasicSR to register a loss in"
            + (", and an installed BasicSR is imported in its place" if "__init__.py" in lacks else ""),
            for_a_foreign_basicsr(shadowed="__init__.py" in lacks),
        )


def _after_basicsr(folder: Path) -> str:
    train = f"Now run {_TRAIN} as ever, in {folder} with PYTHONPATH=. if it is not installed itself."
    if (folder / "basicsr/version.py").is_file() or not (folder / "setup.py").is_file():
        return train
    return f"First make basicsr/version.py, which a fresh clone lacks, in {folder}: python setup.py --version\n{train}"


def _after_edsr(folder: Path) -> str:
    return (
        f'Now train with --loss "1*L1+1*{NAME}", and look for the line "[pcl_loss] ..." at the start: '
        "without it, the codebase has taken L1 twice."
    )


# traiNNer-redux: a file of its own in traiNNer/losses


def _none_elsewhere(source: Source) -> list[Insertion]:
    raise ValueError("it is another file of that name")


def _after_trainner(folder: Path) -> str:
    return "Now add `- type: pclloss` with a `loss_weight` to `losses:` in the options, and train as ever."


_LOSS = "loss/__init__.py"
_LOSS_WHERE = f"{_LOSS}, where the names of --loss become modules, as one more branch"
_TEST, _BUILD = _branch_lines("loss_type", "loss_function", "args")
_TRAINER_WHERE = "trainer.py, just before the loss is called, with the LR batch as lr"
_TRAIN, _TEST_FILE = "basicsr/train.py", "basicsr/test.py"
_BASICSR_WHERE = f"{_TRAIN} and {_TEST_FILE}, before the first import of basicsr"

_LOSSES = "traiNNer/losses"
_LOSSES_WHERE = f"{_LOSSES}/pcl_loss.py, a new file"
_LOSSES_LINES = (
    "from pcl_loss.trainner_plugin import PCLLoss",
    "from traiNNer.utils.registry import LOSS_REGISTRY",
    "LOSS_REGISTRY.register(PCLLoss)",
)

KINDS = (
    Kind(
        mark=_LOSS,
        next_step=_after_edsr,
        places=(Place(_LOSS, _branch, _has_branch, _LOSS_WHERE, (_TEST, f"    {_BUILD}")),),
        lr_places=(Place("trainer.py", _hand_lr_over, _hands_lr_over, _TRAINER_WHERE, _lr_lines("lr")),),
    ),
    Kind(
        mark=_TRAIN,
        next_step=_after_basicsr,
        places=tuple(
            Place(file, _register, _registers, _BASICSR_WHERE, _REGISTER_LINES, is_optional=file == _TEST_FILE)
            for file in (_TRAIN, _TEST_FILE)
        ),
        check=_check_basicsr,
    ),
    Kind(
        mark=f"{_LOSSES}/__init__.py",
        next_step=_after_trainner,
        places=(
            Place(f"{_LOSSES}/pcl_loss.py", _none_elsewhere, _registers, _LOSSES_WHERE, _LOSSES_LINES, is_new=True),
        ),
    ),
)
