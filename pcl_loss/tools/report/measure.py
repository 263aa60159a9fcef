"""The nets and the test sets of a report: found, run and measured. SR images are kept, so that no net runs twice."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ... import import_repair  # noqa: F401  (it lets basicsr be imported)
from ..._checks import MIN_SIZE
from .._checkpoints import build, choose_params, read, read_options, upscale
from .._images import Image, find_images, read_image, resize, write_image

BICUBIC = "Bicubic"
METRICS = ("psnr", "ssim", "niqe", "lpips")
NIQE_BLOCK = 96
TRIAL = 24  # side of the LR image that a net is tried on before anything is measured


class Pair(NamedTuple):
    """An image of a test set; without `lr`, LR is made from HR."""

    set_name: str
    name: str
    hr: Path
    lr: Path | None

    def load(self, scale: int) -> tuple[Image, Image | None]:
        """HR, cropped to a multiple of the scale, and LR if it is given; raises ValueError if they do not match."""
        hr = read_image(self.hr)
        height, width = (side // scale for side in hr.shape[:2])
        if min(height, width) * scale < MIN_SIZE:
            raise ValueError(f"{self.hr} has {hr.shape[0]}x{hr.shape[1]} pixels, too few to be measured; leave it out")
        lr = None if self.lr is None else read_image(self.lr)
        if lr is not None and lr.shape[:2] != (height, width):
            sizes = f"{self.hr} has {hr.shape[0]}x{hr.shape[1]} pixels and {self.lr} {lr.shape[0]}x{lr.shape[1]}"
            raise ValueError(f"{sizes}, not 1/{scale} of it; check --scale {scale} and the LR folder")
        return hr[: height * scale, : width * scale], lr


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


class Score(NamedTuple):
    """What was measured of one image."""

    net: str
    pair: Pair
    sr: Path
    values: dict[str, float | None]  # by metric; None where it cannot be had

    def row(self) -> dict[str, object]:
        """A row of a CSV."""
        return {"net": self.net, "set": self.pair.set_name, "image": self.pair.name, **self.values}


def find_pairs(set_name: str, folders: str, scale: int) -> list[Pair]:
    """The images of a set `HR` or `HR:LR`: every HR image, with `NAME.*` or `NAMExSCALE.*` of the LR folder."""
    # A folder may have a colon in its name, as C:\HR has.
    first, _, second = folders.rpartition(":")
    has_lr = bool(first and second) and not Path(folders).is_dir()
    sources = find_images(f"the HR folder of the set {set_name}", Path(first if has_lr else folders))
    if not has_lr:
        return [Pair(set_name, name, path, None) for name, path in sources.items()]
    found = find_images(f"the LR folder of the set {set_name}", Path(second))
    pairs = [Pair(set_name, name, hr, found.get(name, found.get(f"{name}x{scale}"))) for name, hr in sources.items()]
    for pair in pairs:
        if pair.lr is None:
            raise FileNotFoundError(f"{second} has no LR image for {pair.hr}: {pair.name}.* or {pair.name}x{scale}.*")
    return pairs


def find_net(name: str, path: Path, opts: Mapping[str, Path]) -> Net:
    """A net from a checkpoint and its YAML: `opts[name]`, else the one that BasicSR left beside it, else `opts[""]`."""
    # experiments/NAME/models/net_g_latest.pth has experiments/NAME/*.yml, if there is no doubt which.
    content, experiment = read(path), path.absolute().parent.parent
    beside = sorted(experiment.glob("*.yml"))
    own = [yml for yml in beside if yml.stem == experiment.name] or (beside if len(beside) == 1 else [])
    options_file = opts.get(name) or (own[0] if own else opts.get(""))
    advice = f"name a training or test YAML: --opt {name}=FILE.yml"
    if options_file is None:
        raise FileNotFoundError(f"the architecture of {name} is unknown: there is no {experiment}/*.yml; {advice}")
    options = read_options(options_file).get("network_g")
    if not isinstance(options, dict) or "type" not in options:
        raise ValueError(f"{options_file} has no network_g block with a type; {advice}")
    return Net(name, path, options, options_file, choose_params(path, content))


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


def measure(sr: Image, hr: Image, scale: int, lpips: str | None) -> dict[str, float | None]:
    """PSNR and SSIM on Y, and NIQE, without `scale` pixels of the border; LPIPS of the whole, by the backbone `lpips`.

    The images are `(H, W, 3)`. NIQE is None where fewer than two of its blocks fit, or all are flat.
    """
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim

    from ...basicsr_plugin.lpips_metric import calculate_lpips

    inner = {"crop_border": scale, "input_order": "HWC"}
    niqe = math.nan
    if math.prod((side - 2 * scale) // NIQE_BLOCK for side in sr.shape[:2]) >= 2:  # one has no covariance
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            niqe = float(calculate_niqe(sr, **inner))
    return {
        "psnr": float(calculate_psnr(sr, hr, **inner, test_y_channel=True)),
        "ssim": float(calculate_ssim(sr, hr, **inner, test_y_channel=True)),
        "niqe": niqe if math.isfinite(niqe) else None,
        "lpips": calculate_lpips(sr, hr, crop_border=0, net=lpips) if lpips else None,
    }


def measure_all(
    nets: Sequence[Net],
    pairs: Sequence[Pair],
    out: Path,
    *,
    scale: int,
    device: str,
    lpips: str | None = None,
) -> list[Score]:
    """All scores of every net on every image; `lpips` names the backbone. SR images are kept below `out`.

    Raises ValueError or OSError where an image or a net cannot be used; every net is tried before anything is measured.
    """
    files = {net.name: net.sr_files(pairs, out, scale) for net in nets}
    to_run = [net for net in nets if net.checkpoint and not all(map(Path.is_file, files[net.name].values()))]
    modules = {net.name: _module(net, scale) for net in to_run}
    scores = []
    with tqdm(total=len(nets) * len(pairs), unit="image", dynamic_ncols=True) as bar:
        for net in nets:
            module = modules.pop(net.name, None)  # its memory is for the next
            if module is not None:
                module.to(device)
            for pair in pairs:
                bar.set_description_str(f"{net.name} on {pair.set_name}", refresh=False)
                hr, lr = pair.load(scale)
                file = files[net.name][pair]
                if not file.is_file():
                    lr = resize(hr, 1 / scale) if lr is None else lr
                    sr = upscale(module, lr, scale, device, _window(net)) if module else resize(lr, scale)
                    write_image(file, sr)
                sr = read_image(file)
                if sr.shape != hr.shape:
                    raise ValueError(f"{file} is {sr.shape[0]}x{sr.shape[1]}, {pair.hr} {hr.shape[0]}x{hr.shape[1]}")
                scores.append(Score(net.name, pair, file, measure(sr, hr, scale, lpips)))
                bar.update()
    return scores


def _window(net: Net) -> int:
    return int((net.options or {}).get("window_size", 1))


def _module(net: Net, scale: int) -> nn.Module:
    """The module of a net that upscales colour images by `scale`; raises ValueError if it does not."""
    assert net.checkpoint is not None
    module = build(net.checkpoint, net.options or {}, net.options_file, net.param_key)
    side = -(-TRIAL // _window(net)) * _window(net)
    try:
        with torch.no_grad():
            shape = module(torch.zeros(1, 3, side, side)).shape
        expected = (1, 3, scale * side, scale * side)
        problem = "" if shape == expected else f"its output is {tuple(shape)} in place of {expected}"
    except (RuntimeError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
    if problem:
        raise ValueError(
            f"{net.name} does not upscale RGB images by {scale}: {problem}; check --scale and {net.options_file}, or "
            f"give a folder of its SR images: --net {net.name}=DIR with DIR/SET/IMAGE.png"
        )
    return module
