"""One run of `frontier.py`: fine-tune a net with L1 and a second loss, weighed by gradients, and measure its images."""

from __future__ import annotations

import functools
import hashlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from _frontier_methods import (
    L1,
    REORDERED,
    UNSCALED,
    UNSHARP,
    Batch,
    Context,
    Loss,
    dists_net,
    make_loss,
    optional,
    parse_method,
)
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import basicsr_plugin, samples

# isort: split
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.registry import METRIC_REGISTRY

Image = NDArray[np.uint8]
SCALE, LR_PATCH, BATCH_SIZE = 4, 24, 4
LR = 5e-5
# As BasicSR's ema_decay, for short runs. Of the last weights alone, the order of the batches moves LPIPS by 3 %.
EMA_DECAY = 0.99
CALIBRATION_BATCHES = 8
DISTS_CROP = 224
HELD_OUT_MIN_SIDE = 256
NUM_VAL, NUM_TEST = 20, 40
VAL, TEST = "val", "test"
# Streams of batches, far from the seeds that name runs: what the losses are prepared and weighed on.
PREPARE, CALIBRATE = 10_000, 20_000
METRICS = ("psnr", "ssim", "lpips", "dists", "haarpsi", "mdsi")
HIGHER_IS_BETTER = ("psnr", "ssim", "haarpsi")


@dataclass(frozen=True)
class Setting:
    """What all runs of a command share; images are files of the folders named.

    Attributes:
        net: `MODULE:FUNCTION` of the start net, its code outside this repository.
        name: of the net, in the results.
        weights: of the net, a state dict.
        data_range: the net's white.
        train: folders; of their images the held-out ones are not trained on.
        tests: further test sets, by name.
        on: `'val'` or `'test'`.
        iters: of a run.
        work: a folder for the nets that come out, and for what runs share.
    """

    net: str
    name: str
    weights: Path
    data_range: float
    train: tuple[Path, ...]
    tests: tuple[tuple[str, Path], ...]
    on: str
    iters: int
    work: Path


class Job(NamedTuple):
    """A run: a method, with its gradient's ratio to L1's (None without a second loss), and a seed."""

    method: str
    ratio: float | None
    seed: int


# Data


def read_rgb(path: Path) -> Image:
    """An image `(H, W, 3)`, cropped to a multiple of the scale."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} is no image that can be read")
    height, width = (side - side % SCALE for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width, ::-1])


def downsample(hr: Image) -> Image:
    """The LR image by BasicSR's MATLAB-like bicubic, rounded to 8 bits."""
    small: NDArray[np.float32] = imresize(hr.astype(np.float32) / 255, 1 / SCALE)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def to_tensor(image: Image) -> Tensor:
    """`(H, W, 3)` of 8 bits -> `(3, H, W)` in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)


def to_image(tensor: Tensor) -> Image:
    """`(3, H, W)` in [0, 1] -> `(H, W, 3)` of 8 bits."""
    image: Image = (tensor.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return image


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name.

    Raises:
        FileNotFoundError: it holds none.
    """
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no image; name the folder of the HR images")
    return files


def split(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The images as `'train'`, `'val'` and `'test'`.

    The images of which both sides have at least 256 pixels, in the order of the SHA-256 of their names: the first 20
    are for choosing knobs, the next 40 are the test. All others train.
    """
    files = [file for folder in folders for file in image_files(folder)]
    large = [file for file in files if min(read_rgb(file).shape[:2]) >= HELD_OUT_MIN_SIDE]
    large.sort(key=lambda file: hashlib.sha256(file.stem.encode()).hexdigest())
    val, test = large[:NUM_VAL], large[NUM_VAL : NUM_VAL + NUM_TEST]
    return {"train": [file for file in files if file not in val + test], VAL: val, TEST: test}


class Batches:
    """Random patches of images; which ones depends on the stream and the step alone."""

    def __init__(self, images: Sequence[Image], size: int = BATCH_SIZE, lr_patch: int = LR_PATCH) -> None:
        self.size, self.lr_patch = size, lr_patch
        large = [image for image in images if min(image.shape[:2]) >= lr_patch * SCALE]
        self.pairs = [(to_tensor(downsample(hr)), to_tensor(hr)) for hr in large]

    def __call__(self, stream: int, step: int) -> Batch:
        """LR `(N, 3, h, w)` and HR `(N, 3, 4 h, 4 w)` in [0, 1], flipped and transposed at random."""
        generator = samples.seeded_generator(stream, step)

        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        chosen = []
        for _ in range(self.size):
            lq, hr = self.pairs[draw(len(self.pairs))]
            top, left = (draw(side - self.lr_patch + 1) for side in lq.shape[-2:])
            patches = [
                image[:, top * by : (top + self.lr_patch) * by, left * by : (left + self.lr_patch) * by]
                for image, by in ((lq, 1), (hr, SCALE))
            ]
            dims = [dim for dim in (1, 2) if draw(2)]
            patches = [patch.flip(dims) for patch in patches]
            chosen.append([patch.transpose(1, 2) for patch in patches] if draw(2) else patches)
        lqs, hrs = zip(*chosen, strict=True)
        return torch.stack(lqs), torch.stack(hrs)


@functools.cache
def load_batches(setting: Setting) -> Batches:
    """The batches to train on; once a process."""
    return Batches([read_rgb(file) for file in split(setting.train)["train"]])


@functools.cache
def load_sets(setting: Setting) -> dict[str, list[tuple[Image, Image]]]:
    """LR and HR images of the sets that are measured, by name; once a process."""
    files = {setting.on: split(setting.train)[setting.on]}
    if setting.on == TEST:
        files |= {name: image_files(folder) for name, folder in setting.tests}
    images = {name: [read_rgb(file) for file in found] for name, found in files.items()}
    return {name: [(downsample(hr), hr) for hr in found] for name, found in images.items()}


# Nets


class UnitRange(nn.Module):
    """A net of another white, as one of images in [0, 1]."""

    def __init__(self, net: nn.Module, data_range: float) -> None:
        super().__init__()
        self.net, self.data_range = net, data_range

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, h, w)` -> `(N, 3, 4 h, 4 w)`, both in [0, 1]."""
        y: Tensor = self.net(x * self.data_range) / self.data_range
        return y


def build_net(setting: Setting) -> UnitRange:
    """The start net with its weights."""
    module, _, function = setting.net.partition(":")
    net = getattr(importlib.import_module(module), function)()
    state = torch.load(setting.weights, map_location="cpu", weights_only=True)
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return UnitRange(net, setting.data_range)


# Training


def gradient_ratio(net_g: nn.Module, loss: Loss, batches: Sequence[Batch]) -> float:
    """The norm of the loss's gradient at the SR images over that of L1's, the mean over the batches."""
    ratios = []
    for lq, hr in batches:
        with torch.no_grad():
            sr = net_g(lq)
        sr.requires_grad_()
        norms = [torch.autograd.grad(value, sr)[0].norm() for value in (loss(sr, hr), F.l1_loss(sr, hr))]
        ratios.append(float(norms[0] / norms[1]))
    return statistics.mean(ratios)


def train(setting: Setting, job: Job, batches: Batches, net_g: nn.Module) -> dict[str, Any]:
    """Fine-tune the net in place and leave the moving average of its weights in it; what is to be logged of it."""
    log: dict[str, Any] = {}
    loss: Loss | None = None
    weight = 0.0
    calibration = [batches(CALIBRATE + job.seed, step) for step in range(CALIBRATION_BATCHES)]
    if job.ratio is not None:
        cache = setting.work / setting.name
        cache.mkdir(parents=True, exist_ok=True)
        context = Context(job.seed, lambda step: batches(PREPARE + job.seed, step), net_g, cache)
        loss = make_loss(job.method, context)
        weight = job.ratio / gradient_ratio(net_g, loss, calibration)
        log |= {"weight": weight, "alpha": weight * UNSCALED if job.method.startswith("pcl_") else None}
    optimizer = torch.optim.Adam(net_g.parameters(), LR)
    order: Iterable[int] = range(setting.iters)
    if job.method == REORDERED:
        order = reversed(range(setting.iters))
    average = [param.detach().clone() for param in net_g.parameters()]
    seconds = []
    for count, step in enumerate(order, 1):
        lq, hr = batches(job.seed, step)
        begin = time.process_time()
        sr = net_g(lq)
        total = F.l1_loss(sr, hr)
        if loss is not None:
            total = total + weight * loss(sr, hr)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds.append(time.process_time() - begin)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net_g.parameters()), max(1 - EMA_DECAY, 1 / count))
    with torch.no_grad():
        torch._foreach_copy_(list(net_g.parameters()), average)
    if loss is not None:
        log["ratio_at_end"] = weight * gradient_ratio(net_g, loss, calibration)
    return log | {"seconds_per_step": statistics.median(seconds)}


def weights_file(setting: Setting, job: Job) -> Path:
    """Where the net of a run is kept."""
    ratio = "" if job.ratio is None else f"_r{job.ratio:g}"
    return setting.work / setting.name / f"{job.method}{ratio}_seed{job.seed}_{setting.iters}.pth"


def trained_net(setting: Setting, job: Job) -> tuple[UnitRange, dict[str, Any]]:
    """The net of a run and its log, from its file if it was trained before."""
    net_g, file = build_net(setting), weights_file(setting, job)
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        net_g.load_state_dict(kept["net"])
        log = kept["log"]
    else:
        log = train(setting, job, load_batches(setting), net_g)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"net": net_g.state_dict(), "log": log}, file)
    return net_g.eval(), log


def sr_function(setting: Setting, job: Job) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """What makes a run's SR images of LR images, and its log."""
    name, options = parse_method(job.method)
    if name != UNSHARP:
        return trained_net(setting, job)
    net_g, _ = trained_net(setting, Job(L1, None, job.seed))
    factor = torch.tensor([[float(options["factor"])]])
    return lambda lq: samples.sharpen(net_g(lq).clamp(0, 1), factor)[0], {}


def run(setting: Setting, job: Job) -> dict[str, Any]:
    """Train and measure: the record of a run."""
    upscale, log = sr_function(setting, job)
    scores = {}
    for name, pairs in load_sets(setting).items():
        measured = [measure(upscale_image(upscale, lr), hr) for lr, hr in pairs]
        scores[name] = {metric: statistics.mean(m[metric] for m in measured) for metric in METRICS}
    return {
        "net": setting.name,
        "on": setting.on,
        "iters": setting.iters,
        **job._asdict(),
        **log,
        "scores": scores,
    }


# Measuring


def upscale_image(upscale: Callable[[Tensor], Tensor], lr: Image) -> Image:
    """The SR image of 8 bits."""
    with torch.inference_mode():
        return to_image(upscale(to_tensor(lr)[None])[0])


def measure(sr: Image, hr: Image) -> dict[str, float]:
    """All metrics of an SR image: PSNR and SSIM on Y without 4 pixels of the border, DISTS on the centre crop."""
    basicsr_plugin.register()
    y_channel = {"crop_border": SCALE, "input_order": "HWC", "test_y_channel": True}
    bgr = [np.ascontiguousarray(image[..., ::-1]) for image in (sr, hr)]
    unit = [to_tensor(image)[None] for image in (sr, hr)]
    piq = optional("piq", "piq")
    with torch.inference_mode():
        return {
            "psnr": float(METRIC_REGISTRY.get("calculate_psnr")(*bgr, **y_channel)),
            "ssim": float(METRIC_REGISTRY.get("calculate_ssim")(*bgr, **y_channel)),
            "lpips": float(METRIC_REGISTRY.get("calculate_lpips")(*bgr, crop_border=0)),
            "dists": _dists_score(*(centre(image) for image in unit)),
            "haarpsi": float(piq.haarpsi(*unit)),
            "mdsi": float(piq.mdsi(*unit)),
        }


def _dists_score(sr: Tensor, hr: Tensor) -> float:
    """DISTS with the maps of an HR image computed once a process: they are half of its cost."""
    net, maps = _dists_and_maps()
    key = hr.numpy().tobytes()
    if key not in maps:
        maps[key] = type(net).forward_once(net, hr)
    net.forward_once = lambda x: maps[key] if x is hr else type(net).forward_once(net, x)
    return float(net(sr, hr))


@functools.cache
def _dists_and_maps() -> tuple[Any, dict[bytes, Any]]:
    return dists_net(), {}


def centre(images: Tensor, side: int = DISTS_CROP) -> Tensor:
    """The middle of images `(N, C, H, W)`, at most `side` wide and high."""
    height, width = images.shape[-2:]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    return images[..., top : top + side, left : left + side]
