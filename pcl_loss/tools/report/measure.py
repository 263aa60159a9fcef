"""Runs nets on test sets and measures the images, one small file per result, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from ..._checks import MIN_SIZE
from .._files import Image, read_image, resize, write_file, write_image
from ..prepare import EXTENSIONS

METRICS = ("psnr", "ssim", "niqe", "lpips")
BICUBIC = "Bicubic"
PARAM_KEYS = ("params_ema", "params")
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
    """What makes SR images.

    Attributes:
        name: in the table.
        checkpoint: BasicSR's file, or None.
        options: the `network_g` block of the checkpoint.
        options_file: where that block was read.
        param_key: which of the checkpoint's networks; None where the file is the state dict itself.
        images: without a checkpoint, the SR images that are there already, by set and image; None for bicubic.
    """

    name: str
    checkpoint: Path | None = None
    options: Mapping[str, Any] | None = None
    options_file: Path | None = None
    param_key: str | None = None
    images: Mapping[tuple[str, str], Path] | None = None

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


@dataclass(frozen=True)
class Measured:
    """All scores, and how many were measured now and how many had been before."""

    scores: list[Score]
    made: int
    kept: int


def _short(path: Path | None) -> str:
    """As seen from the current folder, if it is below that."""
    try:
        return str(path and path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# --- test sets -------------------------------------------------------------------------------------------------------


def find_pairs(name: str, hr: Path, lr: Path | None, scale: int) -> list[Pair]:
    """The images of a set: every HR image, with `NAME.*` or `NAMExSCALE.*` of the LR folder if there is one.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is missing or has no image, or an HR image has no LR image.
        ValueError: two HR images differ in their ending alone.
    """
    sources = _images(f"the HR folder of the set {name}", hr)
    lr_images = {} if lr is None else _images(f"the LR folder of the set {name}", lr)
    pairs = []
    for stem, path in sources.items():
        lr_path = lr_images.get(stem, lr_images.get(f"{stem}x{scale}"))
        if lr is not None and lr_path is None:
            raise FileNotFoundError(
                f"{lr} has no LR image for {path}: neither {stem}.* nor {stem}x{scale}.*; leave the LR folder out to "
                "have LR made from HR"
            )
        pairs.append(Pair(stem, path, lr_path))
    return pairs


def _images(what: str, folder: Path) -> dict[str, Path]:
    if not folder.exists():
        raise FileNotFoundError(f"{what}, {folder}, does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{what}, {folder}, is a file; name the folder of its images")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and path.name[0] != ".":
            other = found.setdefault(path.stem, path)
            if other is not path:
                raise ValueError(f"{other} and {path} have the same name up to the ending; remove or rename one")
    if not found:
        raise FileNotFoundError(f"{what}, {folder}, holds no image ({', '.join(EXTENSIONS)}); name the one that does")
    return found


def load_pair(pair: Pair, scale: int) -> tuple[Image, Image]:
    """HR, cropped to a multiple of the scale, and LR.

    Raises:
        OSError: a file is no image.
        ValueError: HR is too small, or HR and LR do not match.
    """
    hr = read_image(pair.hr)
    height, width = (side // scale for side in hr.shape[:2])
    if min(height, width) * scale < max(MIN_SIZE, 4 * scale):
        raise ValueError(f"{pair.hr} has {hr.shape[0]}x{hr.shape[1]} pixels, too few to be measured; leave it out")
    if pair.lr is None:
        hr = hr[: height * scale, : width * scale]
        return hr, resize(hr, 1 / scale)
    lr = read_image(pair.lr)
    cut = [side - lr_side * scale for side, lr_side in zip(hr.shape[:2], lr.shape[:2], strict=True)]
    if not all(0 <= rest < scale for rest in cut):
        raise ValueError(
            f"{pair.hr} has {hr.shape[0]}x{hr.shape[1]} pixels and {pair.lr} {lr.shape[0]}x{lr.shape[1]}, which is not "
            f"1/{scale} of it; check --scale {scale} and the LR folder"
        )
    return hr[: lr.shape[0] * scale, : lr.shape[1] * scale], lr


# --- nets ------------------------------------------------------------------------------------------------------------


def find_net(
    name: str, path: Path, opt: Path | None, fallback_opt: Path | None, scale: int, param_key: str = "auto"
) -> Net:
    """A net from a checkpoint and its YAML: `opt`, else the one that BasicSR left beside it, else `fallback_opt`.

    Raises:
        FileNotFoundError: there is no checkpoint, or no YAML can be found.
        ValueError: the YAML has no `network_g` or is for another scale, or the checkpoint has no such `param_key`.
    """
    if not path.exists():
        raise FileNotFoundError(f"the checkpoint of {name}, {path}, does not exist; check --net {name}=...")
    options_file = opt or _training_options(path) or fallback_opt
    if options_file is None:
        raise FileNotFoundError(
            f"the architecture of {name} is unknown: there is no YAML at {path.parent.parent}/*.yml, where BasicSR's "
            f"training leaves it; name a training or test YAML: --opt {name}=FILE.yml"
        )
    options = _network_options(name, options_file, scale)
    key = _choose_params(path, _load(path), param_key)
    return Net(name, checkpoint=path, options=options, options_file=options_file, param_key=key)


def find_results(name: str, folder: Path, sets: Mapping[str, Sequence[Pair]], scale: int) -> Net:
    """A net whose SR images lie in `folder/SET/`, under BasicSR's names: `IMAGE.png` or `IMAGE_suffix.png`, where
    IMAGE may end with the scale as LR images do (`babyx4_test.png`).

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: two files could be the SR of one image.
    """
    images: dict[tuple[str, str], Path] = {}
    for set_name, pairs in sets.items():
        names = {stem: pair.name for pair in pairs for stem in (pair.name, f"{pair.name}x{scale}")}
        for stem, path in _images(f"the folder of {name}'s SR images of {set_name}", folder / set_name).items():
            # `a_b_test` is an image of `a_b`, if there is one, and not of `a`.
            known = max((n for n in names if stem == n or stem.startswith(f"{n}_")), key=len, default=None)
            if known is None:
                continue
            key = (set_name, names[known])
            if key in images:
                raise ValueError(f"{images[key]} and {path} could both be {name}'s SR of {key[1]}; remove one of them")
            images[key] = path
        for pair in pairs:
            if (set_name, pair.name) not in images:
                raise FileNotFoundError(
                    f"{folder / set_name} has no SR image of {pair.name}: neither {pair.name}.png nor "
                    f"{pair.name}_*.png; test {name} on {set_name} with val.save_img: true, or give its checkpoint"
                )
    return Net(name, images=images)


def _training_options(checkpoint: Path) -> Path | None:
    """experiments/NAME/models/net_g_latest.pth -> experiments/NAME/*.yml, if there is no doubt which."""
    experiment = checkpoint.absolute().parent.parent
    found = sorted(experiment.glob("*.yml"))
    own = experiment / f"{experiment.name}.yml"
    if own in found:
        return own
    return found[0] if len(found) == 1 else None


def _network_options(name: str, options_file: Path, scale: int) -> dict[str, Any]:
    if not options_file.is_file():
        raise FileNotFoundError(f"the option file of {name}, {options_file}, does not exist; check --opt")
    try:
        content = yaml.safe_load(options_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{options_file} is no YAML file ({error}); name one with a network_g block") from error
    options = content.get("network_g") if isinstance(content, dict) else None
    if not isinstance(options, dict) or "type" not in options:
        raise ValueError(
            f"{options_file} has no network_g block with a type; name a training or test YAML: --opt {name}=FILE.yml"
        )
    for key, value in (("scale", content.get("scale")), ("network_g.upscale", options.get("upscale"))):
        if value not in (None, scale):
            raise ValueError(
                f"{options_file}, which describes {name}, has {key}: {value}; the report has --scale {scale}"
            )
    return options


def _load(checkpoint: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        raise ValueError(f"{checkpoint} is no checkpoint that can be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{checkpoint} holds no state dict but {type(content).__name__}; name BasicSR's net_g_*.pth")
    return content


def _choose_params(checkpoint: Path, content: Mapping[str, Any], param_key: str) -> str | None:
    here = [key for key in PARAM_KEYS if isinstance(content.get(key), dict)]
    if param_key == "auto":
        return here[0] if here else None
    if param_key not in PARAM_KEYS:
        raise ValueError(f"param_key must be one of auto, {', '.join(PARAM_KEYS)}, got {param_key!r}")
    if param_key not in here:
        raise ValueError(f"{checkpoint} has no {param_key}, only {', '.join(here) or 'a bare state dict'}; take auto")
    return param_key


def build(net: Net) -> Any:
    """The net as a module on the CPU, with its weights, in evaluation mode.

    Raises:
        ValueError: BasicSR does not know the architecture, or the weights are of another one.
    """
    from ... import basicsr_plugin

    # isort: split
    from basicsr.utils.registry import ARCH_REGISTRY

    basicsr_plugin.register()
    if net.checkpoint is None:
        raise ValueError(f"{net.name} has no checkpoint to build it from")
    options = dict(net.options or {})
    kind = options.pop("type")
    if kind not in ARCH_REGISTRY:
        raise ValueError(f"{net.options_file}: BasicSR knows no network_g of type {kind}; import what registers it")
    try:
        module = ARCH_REGISTRY.get(kind)(**options)
    except TypeError as error:
        raise ValueError(f"{net.options_file}: network_g does not fit {kind}: {error}") from error
    content = _load(net.checkpoint)
    state = content[net.param_key] if net.param_key else content
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    try:
        module.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = "\n".join(str(error).splitlines()[1:6])
        raise ValueError(
            f"{net.checkpoint} does not fit the network_g ({kind}) of {net.options_file}; name its own YAML "
            f"(--opt {net.name}=FILE.yml), or turn a checkpoint of the official codes into BasicSR's with "
            f"`pcl-loss convert`. The first differences:\n{lines}"
        ) from error
    return module.eval()


def upscale(module: Any, lr: Image, scale: int, device: str, window: int = 1) -> Image:
    """An SR image, rounded as BasicSR does; LR is padded to a multiple of `window` for the time."""
    import torch
    from basicsr.utils import img2tensor, tensor2img

    height, width = lr.shape[:2]
    with torch.no_grad():
        x = img2tensor(lr.astype(np.float32) / 255).unsqueeze(0).to(device)
        # As BasicSR's SwinIRModel pads.
        x = torch.nn.functional.pad(x, (0, -width % window, 0, -height % window), "reflect")
        y = module(x)[..., : height * scale, : width * scale]
    image: Image = tensor2img([y])
    return image


# --- metrics ---------------------------------------------------------------------------------------------------------


def lpips_missing() -> str:
    """Why LPIPS cannot be measured without a download, and what to do; empty where it can."""
    from ...basicsr_plugin.lpips_metric import backbone_at_hand, backbone_file

    if importlib.util.find_spec("lpips") is None:
        return "the lpips package is not installed: pip install 'pcl_loss[metrics]'"
    if not backbone_at_hand():
        return f"AlexNet's weights are not at {backbone_file()}: --lpips always downloads them (233 MB)"
    return ""


def measure(sr: Image, hr: Image, scale: int, with_lpips: bool) -> dict[str, float | None]:
    """PSNR and SSIM on Y, and NIQE, without `scale` pixels of the border; LPIPS (AlexNet) of the whole image.

    Args:
        sr: `(H, W, 3)`.
        hr: of the same shape.
        scale: the upscaling factor.
        with_lpips: without it there is no key 'lpips'.

    Returns:
        A number for each metric; NIQE is None where fewer than two of its blocks fit, or all are flat.
    """
    from ... import import_repair  # noqa: F401  (it lets basicsr be imported)

    # isort: split
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
    if with_lpips:
        result["lpips"] = measure_lpips(sr, hr)
    return result


def measure_lpips(sr: Image, hr: Image) -> float:
    """LPIPS of whole images, as published."""
    from ...basicsr_plugin.lpips_metric import calculate_lpips

    return calculate_lpips(sr, hr, crop_border=0)


# --- all nets on all sets --------------------------------------------------------------------------------------------


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

    def lacks(self, with_lpips: bool) -> bool:
        return not self.record or (with_lpips and "lpips" not in self.record) or not self.sr.is_file()


def measure_all(
    nets: Sequence[Net],
    sets: Mapping[str, Sequence[Pair]],
    out: Path,
    *,
    scale: int,
    device: str,
    with_lpips: bool,
    progress: bool = False,
) -> Measured:
    """Score every net on every image. Results are kept below `out` by the content of all that they depend on.

    Args:
        nets: bicubic among them if it is wanted.
        sets: images by the name of the set.
        out: takes `NET/SET/IMAGE.png` and `IMAGE.json`.
        scale: the upscaling factor.
        device: of the nets.
        with_lpips: measure LPIPS too; without, what is known of it is passed over.
        progress: show a bar on standard error.

    Raises:
        ValueError, OSError: an image or a net cannot be used.
    """
    hashes: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in hashes:
            hashes[path] = _sha256(path)
        return hashes[path]

    jobs = [_job(net, name, pair, out, scale, digest) for net in nets for name, pairs in sets.items() for pair in pairs]
    pending = [job for job in jobs if job.lacks(with_lpips)]
    # All of them first: a net that does not fit must not stop a long run in its middle.
    modules = {net.name: build(net) for net in nets if net.checkpoint and any(_must_run(job, net) for job in pending)}
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
    scores = [
        Score(
            job.net.name,
            job.set_name,
            job.pair.name,
            job.sr,
            psnr=_number(job.record["psnr"]),
            ssim=_number(job.record["ssim"]),
            niqe=job.record["niqe"],
            lpips=job.record["lpips"] if with_lpips else None,
        )
        for job in jobs
    ]
    return Measured(scores, made=len(pending), kept=len(jobs) - len(pending))


def _job(net: Net, set_name: str, pair: Pair, out: Path, scale: int, digest: Callable[[Path], str]) -> _Job:
    folder = out / net.name / set_name
    sr = folder / f"{pair.name}.png" if net.images is None else net.images[set_name, pair.name]
    key = hashlib.sha256(
        json.dumps(
            {
                "format": _FORMAT,
                "scale": scale,
                "hr": digest(pair.hr),
                "lr": digest(pair.lr) if pair.lr else None,
                "checkpoint": digest(net.checkpoint) if net.checkpoint else None,
                "network_g": net.options,
                "param_key": net.param_key,
                "sr": None if net.images is None else digest(sr),
            },
            sort_keys=True,
            default=str,
        ).encode()
    ).hexdigest()
    file = folder / f"{pair.name}.json"
    return _Job(net, set_name, pair, sr, file, key, _read_record(file, key))


def _must_run(job: _Job, net: Net) -> bool:
    return job.net is net and not (job.record and job.sr.is_file())


def _do(job: _Job, module: Any, scale: int, device: str, with_lpips: bool) -> None:
    hr, lr = load_pair(job.pair, scale)
    if job.net.images is None and _must_run(job, job.net):
        job.record = {}
        if module is None:
            sr = resize(lr, scale)
        else:
            sr = upscale(module, lr, scale, device, window=int((job.net.options or {}).get("window_size", 1)))
        # A record vouches for the image beside it: it goes before the image is replaced, and comes after.
        job.file.unlink(missing_ok=True)
        write_image(job.sr, sr)
    else:
        sr = read_image(job.sr)
    if sr.shape != hr.shape:
        raise ValueError(
            f"{job.net.name} gives {sr.shape[0]}x{sr.shape[1]} pixels for {job.pair.hr}, where x{scale} is "
            f"{hr.shape[0]}x{hr.shape[1]}; check --scale {scale}"
        )
    if job.record:
        job.record["lpips"] = measure_lpips(sr, hr)
    else:
        job.record = measure(sr, hr, scale, with_lpips)
    write_file(job.file, (json.dumps({"key": job.key, **job.record}, indent=2) + "\n").encode())


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(file: Path, key: str) -> dict[str, float | None]:
    """The metrics of an earlier run; empty if there was none, or with other inputs."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: content[name] for name in METRICS if name in content} if content.pop("key") == key else {}
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return {}


def by_image(scores: Iterable[Score]) -> dict[tuple[str, str, str], Score]:
    """The scores by net, set and image."""
    return {(score.net, score.set_name, score.image): score for score in scores}
