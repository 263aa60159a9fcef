"""`pcl-loss patch DIR`: put us into a checkout of EDSR-PyTorch, RCAN, HAN, a fork of theirs, BasicSR or traiNNer-redux.

`families` has the codebases, in a table; `places` finds the places, in a file's text. Nothing is changed but for the
lines that come in. All of them end in `# pcl_loss`, which is what `--revert` goes by. What `--dry-run` prints on the
commits named in `patches/` is what is kept there.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._images import write_file
from .families import find_family
from .places import MARKER, OURS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss patch`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a checkout of one of these codebases, or of a fork")
    lr_help = "hand LR to the loss as well, for the negative source 'lq' (otherwise it is made of HR)"
    parser.add_argument("--lr-negative", action="store_true", help=lr_help)
    parser.add_argument("--revert", action="store_true", help="take all inserted lines out again")
    parser.add_argument("--dry-run", action="store_true", help="print the diff, change nothing")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss patch`; returns the exit status. Raises as `plan` and `apply` do; then nothing was changed."""
    edits = plan(args.folder, lr_negative=args.lr_negative, revert=args.revert)
    family, mark = find_family(args.folder)
    if args.dry_run:
        sys.stdout.buffer.write(diff(edits))
        sys.stdout.buffer.flush()
        return 0
    apply(edits)
    for edit in edits:
        lines = len((edit.after or b"").splitlines()) - len((edit.before or b"").splitlines())
        print(f"{edit.path}: {f'{lines:+} lines' if lines else 'nothing to do'}")
    if not args.revert:
        print(family.next_step(mark))
    return 0


@dataclass(frozen=True)
class Edit:
    """One file before and after."""

    path: Path
    name: str  # the path below the folder that was given, with `/`
    before: bytes | None  # None: there is no such file
    after: bytes | None


def plan(folder: str | Path, *, lr_negative: bool = False, revert: bool = False) -> list[Edit]:
    """What has to be inserted where, or with `revert` taken out: an edit for each file concerned, also if there is
    nothing to do. Reads only.

    Args:
        folder: a checkout.
        lr_negative: hand the LR batch to the loss as well.
        revert: undo `plan`, with and without `lr_negative`.

    Raises:
        ValueError: the codebase is not recognised or cannot be patched; the message has the reason, and where lines
            stand that work.
        OSError: a file cannot be read.
    """
    root = Path(folder)
    family, mark = find_family(root)
    if revert and lr_negative:
        raise ValueError("--revert takes out all inserted lines; leave out --lr-negative")
    if family.is_refused:
        raise ValueError(f"{family.next_step(mark)}. Nothing was changed")
    if lr_negative and not family.lr_places:
        raise ValueError("only EDSR-PyTorch and its forks need lines that hand LR over; leave out --lr-negative")
    places = family.places | (family.lr_places if lr_negative or revert else {})
    edits = []
    for file, insert in places.items():
        path = family.folder(mark) / file
        before = path.read_bytes() if path.is_file() else None
        after = _taken_out(before or b"") if revert else _put_in(before or b"", insert, path)
        edits.append(Edit(path, path.relative_to(root).as_posix(), before, after or (before and None)))
    return [edit for edit in edits if (edit.before, edit.after) != (None, None)]


def _put_in(before: bytes, insert: Callable[[str], str], path: Path) -> bytes:
    text = before.decode("latin-1")  # which gives every byte back as it was
    if re.search(OURS, text, re.MULTILINE):
        return before
    try:
        after = insert(text).encode("latin-1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the codebase's own escapes
            compile(after, path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        reason = f"it is no Python that this one takes ({error})" if isinstance(error, SyntaxError) else error
        raise ValueError(
            f"{path}: {reason}. Nothing was changed; docs/codebases.md has the lines to insert by hand"
        ) from error
    return after


def _taken_out(before: bytes) -> bytes:
    lines = before.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.rstrip().endswith(MARKER.encode()))


def diff(edits: Iterable[Edit]) -> bytes:
    """The edits as a patch without context, for `git apply --unidiff-zero`."""
    lines: list[bytes] = []
    for edit in edits:
        old = b"/dev/null" if edit.before is None else f"a/{edit.name}".encode()
        new = b"/dev/null" if edit.after is None else f"b/{edit.name}".encode()
        before, after = ((content or b"").splitlines(keepends=True) for content in (edit.before, edit.after))
        lines += difflib.diff_bytes(difflib.unified_diff, before, after, old, new, n=0)
    return b"".join(lines)


def apply(edits: Sequence[Edit]) -> None:
    """Write the edits; raises `OSError` if a file cannot be written, before any is if that is seen by its mode."""
    changed = [edit for edit in edits if edit.before != edit.after]
    for edit in changed:
        # Its folder alone decides whether a file can be replaced.
        if edit.before is not None and not edit.path.stat().st_mode & 0o222:
            raise PermissionError(f"{edit.path} is read-only; make it writable with `chmod u+w`. Nothing was changed")
    for edit in changed:
        if edit.after is None:
            edit.path.unlink()
        else:
            write_file(edit.path, edit.after)
