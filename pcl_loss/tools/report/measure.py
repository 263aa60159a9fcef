"""Runs nets on test sets and measures the images, one small file per result, so that nothing is done twice.

In the order of the work: the test sets, the nets, the metrics of one image, and all nets on all sets.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ... import import_repair  # noqa: F401  (it lets basicsr be imported)
from ..._checks import MIN_SIZE
from .._checkpoints import build, choose_params, read, read_options, upscale
from .._files import Image, find_images, read_image, resize, write_file, write_image

METRICS = ("psnr", "ssim", "niqe", "lpips")
BICUBIC = "Bicubic"
NIQE_BLOCK = 96

# A part of the key of each result: to be raised when the same inputs would be measured differently.
_FORMAT = 1


class Pair(NamedTuple):
    """An image of a test set; without `lr`, LR is made from HR."""

    name: str
    hr: Path
    lr: Path | None


@dataclass(frozen=True)
class Net:
    """What makes SR images; without a checkpoint or images it is MATLAB-like bicubic."""

    name: str  # in the table
    checkpoint: Path | None = None  # BasicSR's file
    options: Mapping[str, Any] | None = None  # the `network_g` block of the checkpoint
    options_file: Path | None = None  # where that block was read
    param_key: str | None = None  # which of the checkpoint's networks; None where the file is the state dict itself
    images: Mapping[tuple[str, str], Path] | None = None  # SR images that are there already, by set and image

    @property
    def source(self) -> str:
        """Where its images come from, for a reader."""
        if self.checkpoint is not None:
            which = f"`{self.param_key}` of " if self.param_key else ""
            return f"{which}`{_short(self.checkpoint)}`, architecture from `{_short(self.options_file)}`"
        return "SR images that were there already" if self.images is not None else "MATLAB-like bicubic"


class Score(NamedTuple):
    """What was measured of one image; None where a metric cannot be had."""

    net: str
    set_name: str
    image: str
    sr: Path
    psnr: float
    ssim: float
    niqe: float | None
    lpips: float | None


def by_image(scores: Iterable[Score]) -> dict[tuple[str, str, str], Score]:
    """The scores by net, set and image."""
    return {(score.net, score.set_name, score.image): score for score in scores}


def _short(path: Path | None) -> str:
    """As seen from the current folder, if it is below that."""
    return str(path).removeprefix(f"{Path.cwd()}{os.sep}")


def find_pairs(name: str, hr: Path, lr: Path | None, scale: int) -> list[Pair]:
    """The images of a set: every HR image, with `NAME.*` or `NAMExSCALE.*` of the LR folder if there is one.

    Raises OSError where a folder or an image is missing, ValueError where two images differ in their ending alone.
    """
    sources = find_images(f"the HR folder of the set {name}", hr)
    lr_images = {} if lr is None else find_images(f"the LR folder of the set {name}", lr)
    pairs = [Pair(stem, path, lr_images.get(stem, lr_images.get(f"{stem}x{scale}"))) for stem, path in sources.items()]
    for stem, path, lr_path in pairs if lr else []:
        if lr_path is None:
            raise FileNotFoundError(
                f"{lr} has no LR image for {path}: neither {stem}.* nor {stem}x{scale}.*; leave the LR folder out to "
                "have LR made from HR"
            )
    return pairs


def load_pair(pair: Pair, scale: int) -> tuple[Image, Image]:
    """HR, cropped to a multiple of the scale, and LR. Raises ValueError if HR is too small or they do not match."""
    hr = read_image(pair.hr)
    height, width = (side // scale for side in hr.shape[:2])
    if min(height, width) * scale < max(MIN_SIZE, 4 * scale):
        raise ValueError(f"{pair.hr} has {hr.shape[0]}x{hr.shape[1]} pixels, too few to be measured; leave it out")
    if pair.lr is None:
        hr = hr[: height * scale, : width * scale]
        return hr, resize(hr, 1 / scale)
    lr = read_image(pair.lr)
    if not all(0 <= side - lr_side * scale < scale for side, lr_side in zip(hr.shape[:2], lr.shape[:2], strict=True)):
        raise ValueError(
            f"{pair.hr} has {hr.shape[0]}x{hr.shape[1]} pixels and {pair.lr} {lr.shape[0]}x{lr.shape[1]}, which is not "
            f"1/{scale} of it; check --scale {scale} and the LR folder"
        )
    return hr[: lr.shape[0] * scale, : lr.shape[1] * scale], lr


def find_net(name: str, path: Path, opt: Path | None, fallback_opt: Path | None, scale: int, param_key: str) -> Net:
    """A net from a checkpoint and its YAML: `opt`, else the one that BasicSR left beside it, else `fallback_opt`.

    Raises FileNotFoundError where a file is missing, ValueError where the YAML or the checkpoint does not fit.
    """
    if not path.exists():
        raise FileNotFoundError(f"the checkpoint of {name}, {path}, does not exist; check --net {name}=...")
    # experiments/NAME/models/net_g_latest.pth has experiments/NAME/*.yml, if there is no doubt which.
    experiment = path.absolute().parent.parent
    beside = sorted(experiment.glob("*.yml"))
    own = [yml for yml in beside if yml.stem == experiment.name] or (beside if len(beside) == 1 else [])
    options_file = opt or (own[0] if own else fallback_opt)
    if options_file is None:
        raise FileNotFoundError(
            f"the architecture of {name} is unknown: there is no YAML at {path.parent.parent}/*.yml, where BasicSR's "
            f"training leaves it; name a training or test YAML: --opt {name}=FILE.yml"
        )
    content = read_options(options_file)
    options = content.get("network_g")
    if not isinstance(options, dict) or "type" not in options:
        raise ValueError(
            f"{options_file} has no network_g block with a type; name a training or test YAML: --opt {name}=FILE.yml"
        )
    for key, value in (("scale", content.get("scale")), ("network_g.upscale", options.get("upscale"))):
        if value not in (None, scale):
            raise ValueError(
                f"{options_file}, which describes {name}, has {key}: {value}; the report has --scale {scale}"
            )
    return Net(name, path, options, options_file, choose_params(path, read(path), param_key))


def find_results(name: str, folder: Path, sets: Mapping[str, Sequence[Pair]], scale: int) -> Net:
    """A net whose SR images lie in `folder/SET/`, under BasicSR's names: `IMAGE.png` or `IMAGE_suffix.png`, where
    IMAGE may end with the scale as LR images do (`babyx4_test.png`).

    Raises FileNotFoundError where an image is missing, ValueError where two files could be the SR of one image.
    """
    images: dict[tuple[str, str], Path] = {}
    for set_name, pairs in sets.items():
        names = {stem: pair.name for pair in pairs for stem in (pair.name, f"{pair.name}x{scale}")}
        for stem, path in find_images(f"the folder of {name}'s SR images of {set_name}", folder / set_name).items():
            # `a_b_test` is an image of `a_b`, if there is one, and not of `a`.
            known = max((n for n in names if stem == n or stem.startswith(f"{n}_")), key=len, default=None)
            if known is not None:
                other = images.setdefault((set_name, names[known]), path)
                if other is not path:
                    raise ValueError(
                        f"{other} and {path} could both be {name}'s SR of {names[known]}; remove one of them"
                    )
        for pair in pairs:
            if (set_name, pair.name) not in images:
                raise FileNotFoundError(
                    f"{folder / set_name} has no SR image of {pair.name}: neither {pair.name}.png nor "
                    f"{pair.name}_*.png; test {name} on {set_name} with val.save_img: true, or give its checkpoint"
                )
    return Net(name, images=images)


def lpips_missing() -> str:
    """Why LPIPS cannot be measured without a download, and what to do; empty where it can."""
    from ...basicsr_plugin.lpips_metric import backbone_at_hand, backbone_file

    if importlib.util.find_spec("lpips") is None:
        return "the lpips package is not installed: pip install 'pcl_loss[metrics]'"
    if not backbone_at_hand():
        return f"AlexNet's weights are not at {backbone_file()}: --lpips always downloads them (233 MB)"
    return ""


def measure(sr: Image, hr: Image, scale: int, with_lpips: bool) -> dict[str, float | None]:
    """The metrics of two images of the same shape, `(H, W, 3)`; without `with_lpips` there is no key 'lpips'.

    PSNR and SSIM on Y, and NIQE, without `scale` pixels of the border; LPIPS (AlexNet) of the whole image. NIQE is None
    where fewer than two of its blocks fit, or all are flat.
    """
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim

    pair = {"crop_border": scale, "input_order": "HWC", "test_y_channel": True}
    blocks = math.prod((side - 2 * scale) // NIQE_BLOCK for side in sr.shape[:2])
    niqe = math.nan
    if blocks >= 2:  # one has no covariance
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            niqe = float(calculate_niqe(sr, crop_border=scale, input_order="HWC"))
    result: dict[str, float | None] = {
        "psnr": float(calculate_psnr(sr, hr, **pair)),
        "ssim": float(calculate_ssim(sr, hr, **pair)),
        "niqe": niqe if math.isfinite(niqe) else None,
    }
    return result | ({"lpips": measure_lpips(sr, hr)} if with_lpips else {})


def measure_lpips(sr: Image, hr: Image) -> float:
    """LPIPS of whole images, as published."""
    from ...basicsr_plugin.lpips_metric import calculate_lpips

    return calculate_lpips(sr, hr, crop_border=0)


@dataclass
class _Job:
    """One image of one net: `record` holds the metrics that were measured for the same `key`."""

    net: Net
    set_name: str
    pair: Pair
    sr: Path
    file: Path
    key: str
    record: dict[str, float | None]

    @property
    def must_run(self) -> bool:
        return self.net.images is None and not (self.record and self.sr.is_file())

    def lacks(self, with_lpips: bool) -> bool:
        return self.must_run or not self.record or (with_lpips and "lpips" not in self.record)


def measure_all(
    nets: Sequence[Net],
    sets: Mapping[str, Sequence[Pair]],
    out: Path,
    *,
    scale: int,
    device: str,
    with_lpips: bool,
    progress: bool = False,
) -> tuple[list[Score], int]:
    """All scores of every net on every image, and how many were measured now; the others had been before.

    Results are kept below `out`, as `NET/SET/IMAGE.png` and `IMAGE.json`, by the content of all that they depend on.
    Without `with_lpips`, what is known of LPIPS is passed over. `progress` shows a bar on standard error. Raises
    ValueError or OSError where an image or a net cannot be used.
    """
    digest = functools.cache(lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    jobs = [_job(net, name, pair, out, scale, digest) for net in nets for name, pairs in sets.items() for pair in pairs]
    pending = [job for job in jobs if job.lacks(with_lpips)]
    # All of them first: a net that does not fit must not stop a long run in its middle.
    modules = {
        net.name: build(net.checkpoint, net.options or {}, net.options_file, net.param_key)
        for net in nets
        if net.checkpoint and any(job.net is net and job.must_run for job in pending)
    }
    with tqdm(total=len(pending), unit="image", disable=not (progress and pending), dynamic_ncols=True) as bar:
        current = ""
        for job in pending:
            bar.set_description_str(f"{job.net.name} on {job.set_name}", refresh=False)
            if job.net.name != current:
                modules.pop(current, None)  # its memory is for the next
                current = job.net.name
                if current in modules:
                    modules[current].to(device)
            _do(job, modules.get(current), scale, device, with_lpips)
            bar.update()
    scores = []
    for job in jobs:
        values: dict[str, Any] = dict.fromkeys(METRICS) | job.record | ({} if with_lpips else {"lpips": None})
        scores.append(Score(job.net.name, job.set_name, job.pair.name, job.sr, **values))
    return scores, len(pending)


def _job(net: Net, set_name: str, pair: Pair, out: Path, scale: int, digest: Callable[[Path], str]) -> _Job:
    folder = out / net.name / set_name
    sr = folder / f"{pair.name}.png" if net.images is None else net.images[set_name, pair.name]
    depends_on = {
        "format": _FORMAT,
        "scale": scale,
        "hr": digest(pair.hr),
        "lr": digest(pair.lr) if pair.lr else None,
        "checkpoint": digest(net.checkpoint) if net.checkpoint else None,
        "network_g": net.options,
        "param_key": net.param_key,
        "sr": None if net.images is None else digest(sr),
    }
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True, default=str).encode()).hexdigest()
    file = folder / f"{pair.name}.json"
    return _Job(net, set_name, pair, sr, file, key, _read_record(file, key))


def _read_record(file: Path, key: str) -> dict[str, float | None]:
    """The metrics of an earlier run; empty if there was none, or with other inputs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: content[name] for name in METRICS if name in content} if content["key"] == key else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _do(job: _Job, module: Any, scale: int, device: str, with_lpips: bool) -> None:
    hr, lr = load_pair(job.pair, scale)
    if job.must_run:
        job.record = {}
        if module is None:
            sr = resize(lr, scale)
        else:
            sr = upscale(module, lr, scale, device, window=int((job.net.options or {}).get("window_size", 1)))
        # A record vouches for the image beside it: it goes before the image is replaced, and comes after.
        job.file.unlink(missing_ok=True)
        write_image(job.sr, sr, sync=True)
    else:
        sr = read_image(job.sr)
    if sr.shape != hr.shape:
        raise ValueError(
            f"{job.net.name} gives {sr.shape[0]}x{sr.shape[1]} pixels for {job.pair.hr}, where x{scale} is "
            f"{hr.shape[0]}x{hr.shape[1]}; check --scale {scale}"
        )
    job.record = job.record | {"lpips": measure_lpips(sr, hr)} if job.record else measure(sr, hr, scale, with_lpips)
    write_file(job.file, (json.dumps({"key": job.key, **job.record}, indent=2) + "\n").encode())
