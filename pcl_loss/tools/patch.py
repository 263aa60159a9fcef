"""`pcl-loss patch DIR`: put us into a checkout of EDSR-PyTorch, RCAN, HAN, a fork of theirs, or BasicSR.

The places are found by parsing, the lines are inserted as text: nothing of the file is changed but for the lines that
come in, all of which end in `# pcl_loss`, which is what `--revert` goes by. What `--dry-run` prints on the commits
named in `patches/` is what is kept there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "# pcl_loss"
NAME = "PCL"

BY_HAND_LOSS = f"""\
To insert it by hand: in loss/__init__.py, where the names of --loss become modules, as one more branch,

    elif loss_type == '{NAME}':
        loss_function = import_module('pcl_loss.edsr_plugin').PCL(args)
"""
BY_HAND_TRAINER = """\
To insert it by hand: in trainer.py, just before the loss is called, with the LR batch as lr,

    from pcl_loss.edsr_plugin import set_lr
    set_lr(self.loss, lr)
"""
BY_HAND_BASICSR = """\
To insert it by hand: in basicsr/train.py and basicsr/test.py, before the first import of basicsr,

    if __name__ in ('__main__', '__mp_main__'):
        import pcl_loss.basicsr_plugin
        pcl_loss.basicsr_plugin.register()
"""

MAX_DEPTH = 3
_MARKED = re.compile(rb"[ \t]*" + MARKER.encode() + rb"[ \t]*[\r\n]*\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss patch`."""
    parser.add_argument("folder", metavar="DIR", help="a checkout of EDSR-PyTorch, RCAN, HAN, a fork, or BasicSR")
    parser.add_argument(
        "--lr-negative",
        action="store_true",
        help="hand LR to the loss as well, for the negative source 'lq' (otherwise it is made of HR)",
    )
    parser.add_argument("--revert", action="store_true", help="take all inserted lines out again")
    parser.add_argument("--dry-run", action="store_true", help="print the diff, change nothing")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss patch`; returns the exit status.

    Raises:
        ValueError, OSError: the codebase is not recognised or cannot be changed; nothing was.
    """
    if args.revert and args.lr_negative:
        raise ValueError("--revert takes out all inserted lines; leave out --lr-negative")
    edits = plan_revert(args.folder) if args.revert else plan(args.folder, lr_negative=args.lr_negative)
    if args.dry_run:
        for edit in edits:
            print("\n".join(edit.notes), file=sys.stderr)
        sys.stdout.flush()
        sys.stdout.buffer.write(diff(edits))
        sys.stdout.buffer.flush()
        return 0
    apply(edits)
    for edit in edits:
        print("\n".join(edit.notes))
    if not args.revert and any(edit.changes for edit in edits):
        print(edits[0].next_step)
    return 0


@dataclass(frozen=True)
class Edit:
    """One file before and after, and in words what is done to it."""

    path: Path
    name: str
    """The path below the folder that was given, with `/`."""
    before: bytes
    after: bytes
    notes: tuple[str, ...]
    next_step: str = ""

    @property
    def changes(self) -> bool:
        """Whether the file becomes another one."""
        return self.before != self.after


def plan(folder: str | Path, *, lr_negative: bool = False) -> list[Edit]:
    """What has to be inserted where; reads only.

    Args:
        folder: a checkout.
        lr_negative: hand the LR batch to the loss as well.

    Returns:
        One edit for each file concerned, also for those where all is there already.

    Raises:
        ValueError: the codebase is not recognised; the message has the reason, and the lines to insert by hand.
        OSError: a file cannot be read.
    """
    codebase = _find(Path(folder))
    if codebase.is_basicsr:
        if lr_negative:
            raise ValueError(f"{folder} is BasicSR, which hands LR over by itself; leave out --lr-negative")
        return [
            _edit(codebase, f"basicsr/{name}.py", _register, BY_HAND_BASICSR, "Now run basicsr/train.py as ever.")
            for name in ("train", "test")
        ]
    next_step = (
        f'Now train with --loss "1*L1+1*{NAME}", and look for the line "[pcl_loss] ..." at the start: without it, '
        "the codebase has taken L1 twice."
    )
    edits = [_edit(codebase, "loss/__init__.py", _branch, BY_HAND_LOSS, next_step)]
    if lr_negative:
        edits.append(_edit(codebase, "trainer.py", _hand_lr_over, BY_HAND_TRAINER, next_step))
    return edits


def plan_revert(folder: str | Path) -> list[Edit]:
    """What has to be taken out to undo `plan`; reads only.

    Raises:
        ValueError: no known codebase, or what would be left does not parse.
        OSError: a file cannot be read.
    """
    codebase = _find(Path(folder))
    names = ("basicsr/train.py", "basicsr/test.py") if codebase.is_basicsr else ("loss/__init__.py", "trainer.py")
    edits = []
    for name in names:
        path = codebase.folder / name
        if not path.is_file():
            continue
        before = path.read_bytes()
        after = _without_marked(before)
        count = len(_split(before)) - len(_split(after))
        shown = codebase.shown(name)
        if count:
            try:
                _compile(after, path)
            except ValueError as error:
                raise ValueError(f"{path}: without our lines {error}. Nothing was changed") from error
            notes = (f"{shown}: {count} lines taken out",)
        elif b"pcl_loss" in before:
            notes = (f"{shown}: mentions pcl_loss, but in lines without `{MARKER}`; take those out by hand",)
        else:
            notes = (f"{shown}: nothing of ours is in it",)
        edits.append(Edit(path, shown, before, after, notes))
    return edits


def diff(edits: Iterable[Edit]) -> bytes:
    """The edits as a patch without context, for `git apply --unidiff-zero`."""
    return b"".join(
        line
        for edit in edits
        for line in difflib.diff_bytes(
            difflib.unified_diff,
            _split(edit.before),
            _split(edit.after),
            b"a/" + edit.name.encode(),
            b"b/" + edit.name.encode(),
            n=0,
        )
    )


def apply(edits: Sequence[Edit]) -> None:
    """Write the edits: all of them, or none if one cannot be written.

    Raises:
        OSError: a file cannot be written.
    """
    edits = [edit for edit in edits if edit.changes]
    waiting: list[tuple[Path, Path]] = []
    replaced: list[Edit] = []
    try:
        for edit in edits:
            # Behind a link: os.replace would put a file in the link's place.
            path = edit.path.resolve()
            waiting.append((_write_beside(path, edit.after), path))
        for edit, (new, path) in zip(edits, waiting, strict=True):
            os.replace(new, path)
            replaced.append(edit)
    except BaseException:
        for edit in replaced:
            os.replace(_write_beside(edit.path.resolve(), edit.before), edit.path.resolve())
        for new, _ in waiting:
            new.unlink(missing_ok=True)
        raise


def _write_beside(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".pcl_loss-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        shutil.copymode(path, name)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


# Finding the codebase


@dataclass(frozen=True)
class _Codebase:
    root: Path
    """What the user named."""
    folder: Path
    """Where loss/ and trainer.py are, or basicsr/."""
    is_basicsr: bool

    def shown(self, name: str) -> str:
        return (self.folder / name).relative_to(self.root).as_posix()


def _find(root: Path) -> _Codebase:
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}; name a checkout of EDSR-PyTorch, RCAN, HAN or BasicSR")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; name the folder of the checkout")
    found = [
        _Codebase(root, folder, is_basicsr)
        for folder in _folders(root, MAX_DEPTH)
        for is_basicsr, file in ((False, "loss/__init__.py"), (True, "basicsr/train.py"))
        if (folder / file).is_file()
    ]
    # RCAN and SAN keep a copy for testing, which trains nothing.
    trains = [base for base in found if not re.search(r"(?i)(^|[/_-])test", base.folder.relative_to(root).as_posix())]
    found = trains or found
    if not found:
        raise ValueError(
            f"{root} is no codebase of a known kind: neither loss/__init__.py nor basicsr/train.py is in it, or up to "
            f"{MAX_DEPTH} folders below.\n{BY_HAND_LOSS}"
        )
    if len(found) > 1:
        folders = ", ".join(str(base.folder) for base in found)
        raise ValueError(f"{root} holds more than one codebase; name one of these instead: {folders}")
    return found[0]


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    if not depth:
        return
    with contextlib.suppress(PermissionError):
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith("."):
                yield from _folders(folder, depth - 1)


# Reading and inserting


@dataclass(frozen=True)
class _Insertion:
    after: int
    """The number of the line, from 1, behind which the lines go; 0 is the top of the file."""
    lines: tuple[bytes, ...]
    what: str


@dataclass(frozen=True)
class _Source:
    path: Path
    lines: list[bytes]
    tree: ast.Module

    def indent(self, node: ast.stmt) -> bytes:
        """The white space before a statement, which must be the first of its line."""
        blank = re.match(rb"[ \t]*", self.line(node.lineno))
        indent = blank.group() if blank else b""
        if len(indent) != node.col_offset:
            raise ValueError(f"line {node.lineno} holds more than one statement")
        return indent

    def line(self, number: int) -> bytes:
        return self.lines[number - 1]

    def insertion(self, after: int, what: str, *lines: tuple[bytes, str]) -> _Insertion:
        """Lines as (indent, code), each with the marker and with the line end of the place they go to."""
        end = re.search(rb"(\r\n|\r|\n)\Z", self.line(max(after, 1)))
        if end is None:
            raise ValueError(f"line {after} is the last and has no line end; add one")
        marked = tuple(indent + f"{code}  {MARKER}".encode() + end.group() for indent, code in lines)
        return _Insertion(after, marked, what)


def _edit(
    codebase: _Codebase, name: str, find: Callable[[_Source], list[_Insertion]], by_hand: str, next_step: str
) -> Edit:
    path, shown = codebase.folder / name, codebase.shown(name)
    try:
        if not path.is_file():
            raise ValueError("the file is missing")
        before = path.read_bytes()
        tree = _compile(before, path)
        if b"pcl_loss" in before:
            return Edit(path, shown, before, before, (f"{shown}: is already there, nothing to do",))
        insertions = find(_Source(path, _split(before), tree))
        after = _insert(before, insertions)
        _compile(after, path)
        if _without_marked(after) != before:
            raise ValueError(f"it already has lines that end in `{MARKER}`")
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Nothing was changed.\n{by_hand}") from error
    notes = tuple(f"{shown}, after line {insertion.after}: {insertion.what}" for insertion in insertions)
    return Edit(path, shown, before, after, notes, next_step)


def _compile(source: bytes, path: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the codebase's own escapes
            tree = ast.parse(source, str(path))
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(
            f"it does not parse as Python {sys.version_info.major}.{sys.version_info.minor} "
            f"(line {error.lineno}: {error.msg})"
        ) from error
    return tree


def _split(source: bytes) -> list[bytes]:
    """The lines with their ends, by Python's own idea of a line: CR, LF and CRLF, and no form feed."""
    return source.splitlines(keepends=True)


def _insert(source: bytes, insertions: Iterable[_Insertion]) -> bytes:
    lines = _split(source)
    for insertion in sorted(insertions, key=lambda insertion: insertion.after, reverse=True):
        lines[insertion.after : insertion.after] = insertion.lines
    return b"".join(lines)


def _without_marked(source: bytes) -> bytes:
    return b"".join(line for line in _split(source) if not _MARKED.search(line))


# The places


@dataclass(frozen=True)
class _Chain:
    """The if/elif chain in which the name of a term becomes a module."""

    owner: ast.ClassDef
    init: ast.FunctionDef
    loop: ast.For
    branches: list[ast.If]
    name: str
    """The variable that holds the term's name."""
    target: str
    """The variable that the branches assign."""


def _branch(source: _Source) -> list[_Insertion]:
    """The branch that builds PCL and, where the codebase logs a discriminator's loss, the entry that logs E_D's."""
    chains = list(_chains(source.tree))
    if len(chains) != 1:
        found = "more than one" if chains else "no"
        raise ValueError(
            f"{found} if/elif chain was found that turns the names of --loss into modules, in a loop of a class's "
            "__init__"
        )
    (chain,) = chains
    if any(constant == NAME for branch in chain.branches for constant in _strings(branch.test)):
        raise ValueError(f"it already knows another loss of the name {NAME}")
    args = _options_name(chain)
    imported = any(
        isinstance(node, ast.ImportFrom) and any(a.name == "import_module" and not a.asname for a in node.names)
        for node in source.tree.body
    )
    importer = "import_module" if imported else "__import__('importlib').import_module"

    # Behind the plain comparisons, and before those that look for a part of a name.
    plain = 1
    while plain < len(chain.branches) and _is_comparison(chain.branches[plain].test):
        plain += 1
    last = chain.branches[plain - 1]
    indent = source.indent(chain.branches[0])
    inner = _inner_indent(source, indent, [branch.body[0] for branch in chain.branches])
    insertions = [
        source.insertion(
            last.body[-1].end_lineno or last.lineno,
            f"the branch that builds {NAME}",
            (indent, f"elif {chain.name} == '{NAME}':"),
            (inner, f"{chain.target} = {importer}('pcl_loss.edsr_plugin').PCL({args})"),
        )
    ]
    entry, terms = _entry(chain)
    if entry is not None and any("DIS" in _strings(node) for node in chain.owner.body if node is not chain.init):
        insertions.append(
            source.insertion(
                entry.end_lineno or entry.lineno,
                "the column DIS of the log, the discriminator's loss",
                (indent, f"if {chain.name} == '{NAME}':"),
                (inner, f"{terms}.append(dict(type='DIS', weight=1, function=None))"),
            )
        )
    return insertions


def _hand_lr_over(source: _Source) -> list[_Insertion]:
    """The lines that hand LR to the loss, before the loss is called."""
    calls = list(_loss_calls(source.tree))
    if len(calls) != 1:
        raise ValueError(
            f"{len(calls) or 'no'} calls of the shape `loss = self.loss(sr, hr)` were found, one is needed"
        )
    block, statement, call = calls[0]
    sr = call.args[0].id if isinstance(call.args[0], ast.Name) else None
    lr = None
    for earlier in block:
        if earlier is statement:
            break
        if (
            isinstance(earlier, ast.Assign)
            and isinstance(earlier.value, ast.Call)
            and ast.unparse(earlier.value.func) == "self.model"
            and any(isinstance(target, ast.Name) and target.id == sr for target in earlier.targets)
            and earlier.value.args
            and isinstance(earlier.value.args[0], ast.Name)
        ):
            lr = earlier.value.args[0].id
    if lr is None:
        raise ValueError("before the call of the loss no line of the shape `sr = self.model(lr, ...)` was found")
    indent = source.indent(statement)
    return [
        source.insertion(
            statement.lineno - 1,
            "LR is handed to the loss",
            (indent, "from pcl_loss.edsr_plugin import set_lr"),
            (indent, f"set_lr(self.loss, {lr})"),
        )
    ]


def _register(source: _Source) -> list[_Insertion]:
    """The lines that register us, before the first import of basicsr, which would take its own `parse_options`."""
    for node in source.tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        if any(name.partition(".")[0] == "basicsr" for name in names):
            source.indent(node)
            return [
                source.insertion(
                    node.lineno - 1,
                    "pcl_loss is registered when the file is run",
                    # Importing basicsr imports this file too, and must not come back here.
                    (b"", "if __name__ in ('__main__', '__mp_main__'):"),
                    (b"    ", "import pcl_loss.basicsr_plugin"),
                    (b"    ", "pcl_loss.basicsr_plugin.register()"),
                )
            ]
    raise ValueError("no import of basicsr was found in it")


def _chains(tree: ast.Module) -> Iterator[_Chain]:
    for owner in tree.body:
        if not isinstance(owner, ast.ClassDef):
            continue
        for init in owner.body:
            if not isinstance(init, ast.FunctionDef) or init.name != "__init__":
                continue
            for loop in (node for node in ast.walk(init) if isinstance(node, ast.For)):
                for statement in loop.body:
                    if isinstance(statement, ast.If):
                        branches = list(_branches(statement))
                        names = set.intersection(*(_compared(branch.test) for branch in branches))
                        targets = set.intersection(*(_assigned(branch.body) for branch in branches))
                        if len(names) == 1 and len(targets) == 1:
                            yield _Chain(owner, init, loop, branches, *names, *targets)


def _branches(first: ast.If) -> Iterator[ast.If]:
    """The `if` and each `elif`; an `if` inside an `else` stands further to the right."""
    branch = first
    while True:
        yield branch
        if len(branch.orelse) != 1:
            return
        following = branch.orelse[0]
        if not isinstance(following, ast.If) or following.col_offset != first.col_offset:
            return
        branch = following


def _compared(test: ast.expr) -> set[str]:
    """The variables in a test that looks at a string."""
    if not _strings(test):
        return set()
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}


def _assigned(body: list[ast.stmt]) -> set[str]:
    """The variables to which a block assigns what a call returns."""
    return {
        target.id
        for statement in body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _is_comparison(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and isinstance(test.ops[0], ast.Eq)


def _strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _options_name(chain: _Chain) -> str:
    """The parameter of __init__ that holds the codebase's options, of which it splits `.loss` into terms."""
    parameters = [argument.arg for argument in chain.init.args.args[1:]]
    for node in ast.walk(chain.loop.iter):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in parameters:
            return node.value.id
    if "args" in parameters:
        return "args"
    raise ValueError("the parameter of __init__ that holds the options was not found")


def _entry(chain: _Chain) -> tuple[ast.stmt | None, str]:
    """The statement behind the chain that appends the term as a dict, and what it appends to."""
    for statement in chain.loop.body[chain.loop.body.index(chain.branches[0]) + 1 :]:
        if (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and isinstance(statement.value.func, ast.Attribute)
            and statement.value.func.attr == "append"
            and len(statement.value.args) == 1
            and isinstance(statement.value.args[0], ast.Dict)
            and {"type", "weight", "function"} <= _strings(statement.value.args[0])
        ):
            return statement, ast.unparse(statement.value.func.value)
    return None, ""


def _inner_indent(source: _Source, outer: bytes, statements: Iterable[ast.stmt]) -> bytes:
    """One step further in than `outer`, as far as the first of the statements that begins its line."""
    for statement in statements:
        with contextlib.suppress(ValueError):
            return source.indent(statement)
    return outer + (b"\t" if outer.endswith(b"\t") else b"    ")


def _loss_calls(tree: ast.Module) -> Iterator[tuple[list[ast.stmt], ast.stmt, ast.Call]]:
    """Each `... = self.loss(a, b)`: the block that it stands in, the statement and the call."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            # A lambda's body is no list.
            found = getattr(node, field, None)
            block: list[ast.stmt] = found if isinstance(found, list) else []
            for statement in block:
                if (
                    isinstance(statement, ast.Assign)
                    and isinstance(statement.value, ast.Call)
                    and ast.unparse(statement.value.func) == "self.loss"
                    and len(statement.value.args) >= 2
                ):
                    yield block, statement, statement.value
