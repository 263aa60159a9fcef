"""The codebases, as one table: what tells one, which lines go where, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import places

MAX_DEPTH = 3

Places = dict[str, Callable[[str], str]]  # files below the folder of the code, and what inserts our lines in their text


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

    def next_step(self, mark: Path) -> str:
        """What to do next, in words."""
        folder = self.folder(mark)
        return self.text.format(mark=mark.relative_to(folder).as_posix(), folder=folder)


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


def find_family(root: Path) -> tuple[Family, Path]:
    """The codebase in a folder, or the nearest below it, and the file that tells it.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no codebase, or more than one.
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
