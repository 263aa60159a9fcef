"""The test sets and the nets of a report, found before anything is measured."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..._checks import MIN_SIZE
from .._checkpoints import choose_params, read, read_options
from .._images import Image, find_images, read_image

BICUBIC = "Bicubic"


class Pair(NamedTuple):
    """An image of a test set; without `lr`, LR is made from HR."""

    set_name: str
    name: str
    hr: Path
    lr: Path | None

    def load(self, scale: int) -> tuple[Image, Image | None]:
        """HR, cropped to a multiple of the scale, and LR if it is given; raises ValueError if they do not match."""
        hr = read_image(self.hr)
        height, width = (side // scale * scale for side in hr.shape[:2])
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"{self.hr} has {hr.shape[0]}x{hr.shape[1]} pixels, too few to be measured; leave it out")
        if self.lr is None:
            return hr[:height, :width], None
        lr = read_image(self.lr)
        fits = (0 <= side - small * scale < scale for side, small in zip(hr.shape[:2], lr.shape[:2], strict=True))
        if not all(fits):
            sizes = f"{self.hr} has {hr.shape[0]}x{hr.shape[1]} pixels and {self.lr} {lr.shape[0]}x{lr.shape[1]}"
            raise ValueError(f"{sizes}, not 1/{scale} of it; check --scale {scale} and the LR folder")
        return hr[: lr.shape[0] * scale, : lr.shape[1] * scale], lr


@dataclass(frozen=True)
class Net:
    """What makes SR images; without a checkpoint or images it is MATLAB-like bicubic."""

    name: str  # in the table
    checkpoint: Path | None = None  # BasicSR's file
    options: Mapping[str, Any] | None = None  # the `network_g` block of the checkpoint
    options_file: Path | None = None  # where that block was read
    param_key: str | None = None  # which of the checkpoint's networks; None where the file is the state dict itself
    images: Mapping[Pair, Path] | None = None  # SR images that are there already

    def sr_files(self, pairs: Sequence[Pair], out: Path, scale: int) -> dict[Pair, Path]:
        """Where its SR images lie or belong: a set's in a folder that is named by all that they depend on."""
        if self.images is not None:
            return dict(self.images)
        files: dict[Pair, Path] = {}
        for set_name, group in itertools.groupby(pairs, key=lambda pair: pair.set_name):
            of_set = list(group)
            digest = hashlib.sha256(repr((scale, self.options, self.param_key)).encode())
            for path in (self.checkpoint, *(path for pair in of_set for path in (pair.hr, pair.lr))):
                digest.update(path.read_bytes() if path else b"none")
            folder = out / self.name / f"{set_name}-{digest.hexdigest()[:10]}"
            files |= {pair: folder / f"{pair.name}.png" for pair in of_set}
        return files


def find_pairs(set_name: str, folders: str, scale: int) -> list[Pair]:
    """The images of a set `HR` or `HR:LR`: every HR image, with `NAME.*` or `NAMExSCALE.*` of the LR folder."""
    # A folder may have a colon in its name, as C:\HR has.
    first, _, second = folders.rpartition(":")
    has_lr = bool(first and second) and not Path(folders).is_dir()
    hr, lr = (Path(first), Path(second)) if has_lr else (Path(folders), None)
    sources = find_images(f"the HR folder of the set {set_name}", hr)
    found = {} if lr is None else find_images(f"the LR folder of the set {set_name}", lr)
    pairs = [Pair(set_name, n, path, found.get(n, found.get(f"{n}x{scale}"))) for n, path in sources.items()]
    for pair in pairs:
        if lr and pair.lr is None:
            names = f"{pair.name}.* nor {pair.name}x{scale}.*"
            raise FileNotFoundError(
                f"{lr} has no LR image for {pair.hr}: neither {names}; without LR, it is made from HR"
            )
    return pairs


def find_net(name: str, path: Path, opts: Mapping[str, Path], param_key: str) -> Net:
    """A net from a checkpoint and its YAML: `opts[name]`, else the one that BasicSR left beside it, else `opts[""]`."""
    if not path.exists():
        raise FileNotFoundError(f"the checkpoint of {name}, {path}, does not exist; check --net {name}=...")
    # experiments/NAME/models/net_g_latest.pth has experiments/NAME/*.yml, if there is no doubt which.
    experiment = path.absolute().parent.parent
    beside = sorted(experiment.glob("*.yml"))
    own = [yml for yml in beside if yml.stem == experiment.name] or (beside if len(beside) == 1 else [])
    options_file = opts.get(name) or (own[0] if own else opts.get(""))
    advice = f"name a training or test YAML: --opt {name}=FILE.yml"
    if options_file is None:
        raise FileNotFoundError(f"the architecture of {name} is unknown: there is no {experiment}/*.yml; {advice}")
    options = read_options(options_file).get("network_g")
    if not isinstance(options, dict) or "type" not in options:
        raise ValueError(f"{options_file} has no network_g block with a type; {advice}")
    return Net(name, path, options, options_file, choose_params(path, read(path), param_key))


def find_results(name: str, folder: Path, pairs: Sequence[Pair]) -> Net:
    """A net whose SR images lie in `folder/SET/` as BasicSR names them: one `IMAGE.png`, `IMAGE_test.png`, ... each."""
    images: dict[Pair, Path] = {}
    for set_name, group in itertools.groupby(pairs, key=lambda pair: pair.set_name):
        found = find_images(f"the folder of {name}'s SR images of {set_name}", folder / set_name)
        of_set = list(group)
        # `a_b_test` is an image of `a_b`, if there is one, and not of `a`.
        owners = {stem: max((p.name for p in of_set if stem.startswith(p.name)), key=len, default="") for stem in found}
        for pair in of_set:
            own = [found[stem] for stem, owner in owners.items() if owner == pair.name]
            if len(own) != 1:
                raise ValueError(f"{folder / set_name} must have one SR image {pair.name}*.png, has {len(own)}")
            images[pair] = own[0]
    return Net(name, images=images)
