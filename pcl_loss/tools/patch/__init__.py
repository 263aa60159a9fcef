"""`pcl-loss patch DIR`: put us into a checkout of EDSR-PyTorch, RCAN, HAN, a fork of theirs, BasicSR or traiNNer-redux.

`families` has the codebases, in a table; `places` finds the places, in a file's text. Lines come in, nothing else is
changed. All of them end in `# pcl_loss`, which is what `--revert` goes by. `patches/` keeps what `--dry-run` prints.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from .._images import write_file
from .families import find_family
from .places import MARKER, OURS

Edits = dict[str, tuple[bytes, bytes]]  # a file below the folder, before and after; empty where there is none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss patch`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a checkout of one of these codebases, or of a fork")
    lr_help = "hand LR to the loss as well, for the negative source 'lq' (otherwise it is made of HR)"
    parser.add_argument("--lr-negative", action="store_true", help=lr_help)
    parser.add_argument("--revert", action="store_true", help="take all inserted lines out again")
    parser.add_argument("--dry-run", action="store_true", help="print the diff, change nothing")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss patch`; returns the exit status. Raises as `plan` does, and OSError if a file cannot be written."""
    edits = plan(args.folder, lr_negative=args.lr_negative, revert=args.revert)
    if args.dry_run:
        sys.stdout.buffer.write(diff(edits))
        sys.stdout.buffer.flush()
        return 0
    for name, (before, after) in edits.items():
        lines = len(after.splitlines()) - len(before.splitlines())
        print(f"{args.folder / name}: {f'{lines:+} lines' if lines else 'nothing to do'}")
        if not after:
            (args.folder / name).unlink(missing_ok=True)
        elif before != after:
            write_file(args.folder / name, after)
    if not args.revert:
        family, mark = find_family(args.folder)
        print(family.next_step(mark))
    return 0


def plan(root: Path, *, lr_negative: bool = False, revert: bool = False) -> Edits:
    """What has to be inserted where, or with `revert` taken out: each file concerned. Reads only.

    With `lr_negative` LR is handed to the loss as well. Raises ValueError, with the reason, if the codebase is not
    recognised or cannot be patched, and OSError if a file cannot be read.
    """
    family, mark = find_family(root)
    edits = {}
    for file, insert in (family.places | (family.lr_places if lr_negative or revert else {})).items():
        path = family.folder(mark) / file
        before = path.read_bytes() if path.is_file() else b""
        after = _taken_out(before) if revert else _put_in(before, insert, path)
        edits[path.relative_to(root).as_posix()] = before, after
    return edits


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
        reason = f"{path}: {error}. Nothing was changed; docs/codebases.md has the lines to insert by hand"
        raise ValueError(reason) from error
    return after


def _taken_out(before: bytes) -> bytes:
    lines = before.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.rstrip().endswith(MARKER.encode()))


def diff(edits: Edits) -> bytes:
    """The edits as a patch without context, for `git apply --unidiff-zero`."""
    lines: list[bytes] = []
    for name, contents in edits.items():
        before, after = (content.splitlines(keepends=True) for content in contents)
        old, new = (
            f"{side}/{name}".encode() if text else b"/dev/null" for side, text in zip("ab", contents, strict=True)
        )
        lines += difflib.diff_bytes(difflib.unified_diff, before, after, old, new, n=0)
    return b"".join(lines)
