"""`pcl-loss patch DIR`: put us into a checkout of EDSR-PyTorch, RCAN, HAN, a fork of theirs, BasicSR or traiNNer-redux.

The places are found by parsing (`chain`, `codebases`), the lines are inserted as text (`source`): nothing of the file
is changed but for the lines that come in, all of which end in `# pcl_loss`, which is what `--revert` goes by. What
`--dry-run` prints on the commits named in `patches/` is what is kept there.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._images import write_file
from .by_hand import Refusal
from .codebases import Codebase, Place, find_codebase
from .source import MARKER, Source, parse, split, without_marked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss patch`."""
    parser.add_argument(
        "folder", metavar="DIR", help="a checkout of EDSR-PyTorch, RCAN, HAN, a fork, BasicSR or traiNNer-redux"
    )
    lr_help = "hand LR to the loss as well, for the negative source 'lq' (otherwise it is made of HR)"
    parser.add_argument("--lr-negative", action="store_true", help=lr_help)
    parser.add_argument("--revert", action="store_true", help="take all inserted lines out again")
    parser.add_argument("--dry-run", action="store_true", help="print the diff, change nothing")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss patch`; returns the exit status. Raises as `plan` and `apply` do; then nothing was changed."""
    if args.revert and args.lr_negative:
        raise ValueError("--revert takes out all inserted lines; leave out --lr-negative")
    edits = plan_revert(args.folder) if args.revert else plan(args.folder, lr_negative=args.lr_negative)
    if not args.dry_run:
        apply(edits)
    for edit in edits:
        print(*edit.notes, sep="\n", file=sys.stderr if args.dry_run else sys.stdout)
    if args.dry_run:
        sys.stdout.flush()
        sys.stdout.buffer.write(diff(edits))
        sys.stdout.buffer.flush()
    elif not args.revert and any(edit.before != edit.after for edit in edits):
        print(edits[0].next_step)
    return 0


@dataclass(frozen=True)
class Edit:
    """One file before and after, and in words what is done to it."""

    path: Path
    name: str  # the path below the folder that was given, with `/`
    before: bytes | None  # None: there is no such file
    after: bytes | None
    notes: tuple[str, ...]
    next_step: str = ""


def plan(folder: str | Path, *, lr_negative: bool = False) -> list[Edit]:
    """What has to be inserted where: an edit for each file concerned, also if all is there already. Reads only.

    Args:
        folder: a checkout.
        lr_negative: hand the LR batch to the loss as well.

    Raises:
        ValueError: the codebase is not recognised; the message has the reason, and the lines to insert by hand.
        OSError: a file cannot be read.
    """
    codebase = find_codebase(Path(folder))
    kind = codebase.kind
    if lr_negative and not kind.lr_places:
        raise ValueError(
            f"only EDSR-PyTorch and its forks need lines to hand LR over, not {folder}; leave out --lr-negative"
        )
    try:
        kind.check(codebase.folder)
    except Refusal as refusal:
        raise ValueError(f"{refusal}. Nothing was changed.\n{refusal.by_hand}") from refusal
    return [_insert(codebase, place) for place in codebase.places(lr_negative=lr_negative)]


def _insert(codebase: Codebase, place: Place) -> Edit:
    path, name = codebase.folder / place.file, codebase.name(place)
    next_step = codebase.kind.next_step(codebase.folder)
    if place.is_new and not path.exists():
        lines = "".join(f"{line}  {MARKER}\n" for line in place.lines)
        return Edit(path, name, None, lines.encode(), (f"{name}: a new file",), next_step)
    try:
        if not path.is_file():
            raise ValueError("the file is missing")
        before = path.read_bytes()
        source = Source(before)
        if place.is_there(source.tree):
            return Edit(path, name, before, before, (f"{name}: is already there, nothing to do",), next_step)
        insertions = place.find(source)
        after = source.with_insertions(insertions)
        parse(after)
        if without_marked(after) != before:
            raise ValueError(f"it already has lines that end in `{MARKER}`")
    except ValueError as error:
        by_hand = error.by_hand if isinstance(error, Refusal) else place.by_hand()
        raise ValueError(f"{path}: {error}. Nothing was changed.\n{by_hand}") from error
    notes = tuple(f"{name}, after line {insertion.after}: {insertion.what}" for insertion in insertions)
    return Edit(path, name, before, after, notes, next_step)


def plan_revert(folder: str | Path) -> list[Edit]:
    """What has to be taken out to undo `plan`; raises as it does, or `ValueError` if the rest would not parse."""
    codebase = find_codebase(Path(folder))
    places = codebase.places(lr_negative=True)
    return [_take_out(codebase, place) for place in places if (codebase.folder / place.file).is_file() or place.is_new]


def _take_out(codebase: Codebase, place: Place) -> Edit:
    path, name = codebase.folder / place.file, codebase.name(place)
    if not path.exists():
        return Edit(path, name, None, None, (f"{name}: there is no such file",))
    before = path.read_bytes()
    after = without_marked(before)
    if place.is_new and not after:
        return Edit(path, name, before, None, (f"{name}: taken away",))
    if count := len(split(before)) - len(split(after)):
        try:
            parse(after)
        except ValueError as error:
            raise ValueError(f"{path}: without our lines {error}. Nothing was changed") from error
        note = f"{count} lines taken out"
    elif _is_there(place, before):
        note = f"mentions pcl_loss, but in lines without `{MARKER}`; take those out by hand"
    else:
        note = "nothing of ours is in it"
    return Edit(path, name, before, after, (f"{name}: {note}",))


def _is_there(place: Place, content: bytes) -> bool:
    try:
        return place.is_there(parse(content))
    except ValueError:
        return False


def diff(edits: Iterable[Edit]) -> bytes:
    """The edits as a patch without context, for `git apply --unidiff-zero`."""
    lines: list[bytes] = []
    for edit in edits:
        before, after = edit.before, edit.after
        old = b"/dev/null" if before is None else f"a/{edit.name}".encode()
        new = b"/dev/null" if after is None else f"b/{edit.name}".encode()
        texts = split(before or b""), split(after or b"")
        lines += difflib.diff_bytes(difflib.unified_diff, *texts, old, new, n=0)
    return b"".join(lines)


def apply(edits: Sequence[Edit]) -> None:
    """Write the edits: all of them, or none if one cannot be written, which raises `OSError`."""
    changed = [edit for edit in edits if edit.before != edit.after]
    for edit in changed:
        # Its folder alone decides whether a file can be replaced.
        if edit.before is not None and not (mode := edit.path.stat().st_mode) & 0o222:
            raise PermissionError(
                f"{edit.path} is read-only (mode {mode & 0o777:04o}); make it writable with `chmod u+w`. "
                "Nothing was changed"
            )
    written: list[Edit] = []
    try:
        for edit in changed:
            try:
                _write(edit.path, edit.after)
            except OSError as error:
                raise type(error)(
                    f"{edit.path} cannot be replaced: {error.strerror or error}; is its folder writable? "
                    "Nothing was changed"
                ) from error
            written.append(edit)
    except BaseException:
        for edit in written:
            _write(edit.path, edit.before)
        raise


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        write_file(path, content)
