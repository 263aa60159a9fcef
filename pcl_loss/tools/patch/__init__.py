"""`pcl-loss patch DIR`: put us into a checkout of EDSR-PyTorch, RCAN, HAN, a fork of theirs, BasicSR or traiNNer-redux.

The codebases stand here, in a table; `places` finds the places in a file's text. Lines come in, nothing else is
changed. All of them end in `# pcl_loss`, which is what `--revert` goes by. `patches/` keeps what `--dry-run` prints.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .._images import write_file
from . import places

MAX_DEPTH = 3

Places = dict[str, Callable[[str], str]]  # files below the folder of the code, and what inserts our lines in their text
Edits = dict[str, tuple[bytes, bytes]]  # a file below the folder, before and after; empty where there is none


@dataclass(frozen=True)
class Family:
    """Codebases that are patched alike; or, without places, that need no lines."""

    mark: str  # the file that tells one, as a pattern below the folder of the code
    text: str  # what to do next; {mark} is the file that was found, {folder} where it is
    places: Places = field(default_factory=dict)
    lr_places: Places = field(default_factory=dict)  # what hands LR to the loss, where the codebase does not
    says: str = ""  # regular expression of what the mark's file says
    needs: tuple[str, ...] = ()  # files beside it, without which it is an older codebase

    def folder(self, mark: Path) -> Path:
        """The folder of the code whose mark this is."""
        return mark.parents[self.mark.count("/")]


_EDSR = """\
Now train with `pcl-loss run main.py ... --loss "1*L1+1*PCL"` (or `python main.py ...` where that starts on your
PyTorch), and look for the line "[pcl_loss] ..." at the start: without it, the codebase has taken L1 twice."""
_SLOT = (
    "keep the YAML's model_type, put `perceptual_opt: {{type: PCLPerceptualLoss, loss_weight: 1.0}}` under train:,\n"
)
_SCRIPT = f"""\
Nothing has to be inserted: {_SLOT}and train with `pcl-loss run {{mark}} -opt FILE.yml` in {{folder}}."""
_BASICSR = f"""\
Now {_SLOT}and run {{mark}} as ever, with PYTHONPATH=. if it is not installed itself, in {{folder}}. With BasicSR's
own SRModel, `model_type: PCLModel` and `pcl_opt: {{{{type: PCLLoss, loss_weight: 1.0}}}}` log more.
A fresh clone may lack basicsr/version.py: `python setup.py --version` makes it."""
_PIPELINE = r"^(?:from basicsr\.train import|def) train_pipeline\b"

# The first that fits counts.
FAMILIES = (
    Family(
        "loss/__init__.py",
        _EDSR,
        {"loss/__init__.py": places.into_the_losses},
        lr_places={"trainer.py": places.into_the_trainer},
    ),
    Family(
        "traiNNer/losses/__init__.py",
        "Now add `- type: pclloss` with a `loss_weight` to `losses:` in the options, and train as ever.",
        {"traiNNer/losses/pcl_loss.py": places.into_trainner},
    ),
    Family("train.py", _SCRIPT, says=_PIPELINE),
    Family("[!.]*/train.py", _SCRIPT, says=_PIPELINE),
    Family(
        "basicsr/train.py",
        _BASICSR,
        {"basicsr/train.py": places.into_basicsr, "basicsr/test.py": places.into_basicsr},
        needs=("basicsr/__init__.py", "basicsr/utils/registry.py"),
    ),
)


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
        folder = family.folder(mark)
        print(family.text.format(mark=mark.relative_to(folder).as_posix(), folder=folder))
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


def find_family(root: Path) -> tuple[Family, Path]:
    """The codebase in a folder, or the nearest below it, and the file that tells it.

    Raises ValueError if there is no codebase or more than one, OSError if a file cannot be read.
    """
    for depth in range(MAX_DEPTH + 1):
        found: dict[Path, tuple[Family, Path]] = {}
        for family in FAMILIES:
            for mark in sorted(root.glob("[!.]*/" * depth + family.mark)) if family.places or not depth else ():
                folder = family.folder(mark)
                if _fits(family, mark, folder.relative_to(root).as_posix()):
                    found.setdefault(folder, (family, mark))
        if len(found) > 1:
            folders = ", ".join(sorted(map(str, found)))
            raise ValueError(f"{root} holds more than one codebase; name one of these instead: {folders}")
        if found:
            return found.popitem()[1]
    raise ValueError(
        f"{root} is no codebase that can be patched, and nothing was changed. PCLCriterion works in any loop: see "
        "docs/codebases.md"
    )


def _fits(family: Family, mark: Path, folder: str) -> bool:
    # RCAN and SAN keep a copy for testing, which trains nothing.
    is_test = re.search(r"(?i)(^|[/_-])test", folder)
    is_basicsr = "*" in family.mark and mark.parts[-2:] == ("basicsr", "train.py")  # the pipeline itself
    has_all = all((family.folder(mark) / name).exists() for name in family.needs)
    says = re.search(family.says, mark.read_text("latin-1"), re.MULTILINE)
    return not is_test and not is_basicsr and has_all and bool(says)


def _put_in(before: bytes, insert: Callable[[str], str], path: Path) -> bytes:
    text = before.decode("latin-1")  # which gives every byte back as it was
    if re.search(places.OURS, text, re.MULTILINE):
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
    return b"".join(line for line in lines if not line.rstrip().endswith(places.MARKER.encode()))


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
