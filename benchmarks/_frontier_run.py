"""One run of `frontier.py`: fine-tune a net with L1 and a second loss, weighed by gradients, and measure its images."""

from __future__ import annotations

import functools
import hashlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from _frontier_gan import PatchDiscriminator, pretrained
from _frontier_methods import REORDERED, UNSHARP, Batch, Context, Loss, dists_net, make_losses, parse_method
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import samples
from pcl_loss.preview import cut
from pcl_loss.tools._checkpoints import upscale
from pcl_loss.tools._images import Image, find_images, read_image, resize
from pcl_loss.tools.report.measure import measure as measure_basic

# isort: split
from basicsr.metrics import calculate_niqe

SCALE, LR_PATCH, BATCH_SIZE = 4, 24, 4
LR = 5e-5
# As BasicSR's ema_decay, for short runs. Of the last weights alone, the order of the batches moves LPIPS by 3 %.
EMA_DECAY = 0.99
CALIBRATION_BATCHES = 8
DISTS_CROP = 224
HELD_OUT_MIN_SIDE = 256
NUM_VAL, NUM_TEST = 20, 40
VAL, TEST = "val", "test"
# Streams of batches, far from the seeds that name runs: what the losses are prepared and weighed on, and where the
# discriminator of the second stage learns before all runs.
PREPARE, CALIBRATE, DISCRIMINATE = 10_000, 20_000, 30_000
GAN_RATIO = 1.0  # of the GAN's gradient to L1's
LOGITS = 50  # steps of which the log has the discriminator's lead


class Setting(NamedTuple):
    """What all runs of a command share."""

    net: str  # `MODULE:FUNCTION`, which gives a trained x4 net of images in [0, 1]
    train: tuple[Path, ...]  # folders of HR images, of which those held out are not trained on
    tests: tuple[tuple[str, Path], ...]  # further test sets, by name
    on: str  # which of the images held out are measured
    iters: int  # of a run
    gan: Path | None = None  # second stage: the folder of the discriminators, one a net

    @property
    def name(self) -> str:
        """The net's, in the results; with its stage, of which each compares its own runs."""
        return self.net.partition(":")[2] + ("+GAN" if self.gan else "")


class Job(NamedTuple):
    """A run: a method, with its gradient's ratio to L1's (None without a second loss), and a seed."""

    method: str
    ratio: float | None
    seed: int


def read(path: Path) -> Image:
    """An image, cropped to a multiple of the scale."""
    image = read_image(path)
    height, width = (side - side % SCALE for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def to_tensor(image: Image) -> Tensor:
    """BGR `(H, W, 3)` of 8 bits -> RGB `(3, H, W)` in [0, 1]."""
    return torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)


def split(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """The images as `'train'`, `'val'` and `'test'`.

    The images of which both sides have at least 256 pixels, in the order of the SHA-256 of their names: the first 20
    are for choosing knobs, the next 40 are the test. All others train.
    """
    files = [file for folder in folders for file in find_images("a folder of HR images", folder).values()]
    large = [file for file in files if min(read(file).shape[:2]) >= HELD_OUT_MIN_SIDE]
    large.sort(key=lambda file: hashlib.sha256(file.stem.encode()).hexdigest())
    val, test = large[:NUM_VAL], large[NUM_VAL : NUM_VAL + NUM_TEST]
    return {"train": [file for file in files if file not in val + test], VAL: val, TEST: test}


class Batches:
    """Random patches of images; which ones depends on the stream and the step alone."""

    def __init__(self, images: Sequence[Image], size: int = BATCH_SIZE, lr_patch: int = LR_PATCH) -> None:
        self.size, self.lr_patch, self.hr_patch = size, lr_patch, lr_patch * SCALE
        large = [image for image in images if min(image.shape[:2]) >= self.hr_patch]
        self.pairs = [(to_tensor(resize(hr, 1 / SCALE)), to_tensor(hr)) for hr in large]

    def __call__(self, stream: int, step: int) -> Batch:
        """LR `(N, 3, h, w)` and HR `(N, 3, 4 h, 4 w)` in [0, 1], flipped and transposed at random."""
        generator = samples.seeded_generator(stream, step)

        def draw(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        chosen = []
        for _ in range(self.size):
            lq, hr = self.pairs[draw(len(self.pairs))]
            top, left = (draw(side - self.lr_patch + 1) * SCALE for side in lq.shape[-2:])
            patches = [cut(x, (top, left, self.hr_patch, self.hr_patch), by) for x, by in ((lq, SCALE), (hr, 1))]
            dims = [dim for dim in (1, 2) if draw(2)]
            patches = [patch.flip(dims) for patch in patches]
            chosen.append([patch.transpose(1, 2) for patch in patches] if draw(2) else patches)
        lqs, hrs = zip(*chosen, strict=True)
        return torch.stack(lqs), torch.stack(hrs)


@functools.cache
def load_batches(folders: tuple[Path, ...]) -> Batches:
    """The batches to train on; once a process."""
    return Batches([read(file) for file in split(folders)["train"]])


@functools.cache
def load_sets(setting: Setting) -> dict[str, list[tuple[Image, Image]]]:
    """LR and HR images of the sets that are measured, by name; once a process."""
    files = {setting.on: split(setting.train)[setting.on]}
    if setting.on == TEST:
        files |= {name: list(find_images(f"the set {name}", folder).values()) for name, folder in setting.tests}
    images = {name: [read(file) for file in found] for name, found in files.items()}
    return {name: [(resize(hr, 1 / SCALE), hr) for hr in found] for name, found in images.items()}


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


def train(setting: Setting, job: Job, batches: Callable[[int, int], Batch], net_g: nn.Module) -> dict[str, Any]:
    """Fine-tune the net in place and leave the moving average of its weights in it; what is to be logged of it."""
    calibration = [batches(CALIBRATE + job.seed, step) for step in range(CALIBRATION_BATCHES)]
    net_d: PatchDiscriminator | None = None
    losses: list[tuple[float, Loss]] = []
    if setting.gan:
        file = setting.gan / f"{setting.name}.pth"
        net_d = pretrained(file, net_g, functools.partial(batches, DISCRIMINATE))
        losses.append((GAN_RATIO, net_d.loss))
    if job.ratio is not None:
        context = Context(job.seed, lambda step: batches(PREPARE + job.seed, step), net_g, net_d)
        losses += [(share * job.ratio, loss) for share, loss in make_losses(job.method, context)]
    weighed = [(ratio / gradient_ratio(net_g, loss, calibration), loss) for ratio, loss in losses]
    log: dict[str, Any] = {"weights": [weight for weight, _ in weighed]}
    leads = []
    optimizer = torch.optim.Adam(net_g.parameters(), LR)
    steps = range(setting.iters)
    average = [param.detach().clone() for param in net_g.parameters()]
    seconds = []
    for count, step in enumerate(reversed(steps) if job.method == REORDERED else steps, 1):
        lq, hr = batches(job.seed, step)
        begin = time.process_time()
        sr = net_g(lq)
        total = F.l1_loss(sr, hr)
        for weight, loss in weighed:
            total = total + weight * loss(sr, hr)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if net_d:
            leads.append(net_d.step(sr, hr))
        seconds.append(time.process_time() - begin)
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net_g.parameters()), max(1 - EMA_DECAY, 1 / count))
    with torch.no_grad():
        torch._foreach_copy_(list(net_g.parameters()), average)
    if net_d:
        log["leads"] = [round(statistics.mean(part), 3) for part in (leads[:LOGITS], leads[-LOGITS:])]
    return log | {"seconds_per_step": statistics.median(seconds)}


def run(setting: Setting, job: Job) -> dict[str, Any]:
    """Train and measure: the record of a run. Unsharp masking is of what L1 leaves."""
    module, _, function = setting.net.partition(":")
    net_g = upscale_images = getattr(importlib.import_module(module), function)()
    log = train(setting, job, load_batches(setting.train), net_g.train())
    term = parse_method(job.method)[0]
    if term.name == UNSHARP:
        factor = torch.tensor([[float(term.options["factor"])]])
        upscale_images = lambda lq: samples.sharpen(net_g(lq).clamp(0, 1), factor)[0]  # noqa: E731
    net_g.eval()
    scores = {}
    for name, pairs in load_sets(setting).items():
        measured = [measure(upscale(upscale_images, lr, SCALE, "cpu"), hr) for lr, hr in pairs]
        scores[name] = {metric: round(statistics.mean(m[metric] for m in measured), 7) for metric in measured[0]}
    return {"net": setting.name, "on": setting.on, "iters": setting.iters, **job._asdict(), **log, "scores": scores}


def measure(sr: Image, hr: Image) -> dict[str, float]:
    """All metrics of an SR image: PSNR and SSIM on Y without 4 pixels of the border, DISTS on the centre crop."""
    piq = importlib.import_module("piq")
    unit = [to_tensor(image)[None] for image in (sr, hr)]
    scores: dict[str, Any] = measure_basic(sr, hr, SCALE, lpips="alex")
    with torch.inference_mode():
        top, left = (max(0, side - DISTS_CROP) // 2 for side in sr.shape[:2])
        centres = [image[..., top : top + DISTS_CROP, left : left + DISTS_CROP] for image in unit]
        scores["dists"] = dists_net()(*centres)
        scores |= {"haarpsi": piq.haarpsi(*unit), "mdsi": piq.mdsi(*unit)}
    niqe = calculate_niqe(sr, crop_border=0, input_order="HWC")
    scores |= {"niqe": niqe, "colour": colour_error(sr, hr), "grid": grid(sr) - grid(hr)}
    return {name: float(score) for name, score in scores.items()}


def colour_error(sr: Image, hr: Image) -> float:
    """The mean of delta E (1976) in CIE Lab, both images blurred by a Gaussian of 2 pixels: hue and tone, no detail."""
    blurred = [cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), 2) for image in (sr, hr)]
    labs = [cv2.cvtColor(image, cv2.COLOR_BGR2LAB) for image in blurred]
    return float(np.linalg.norm(labs[0] - labs[1], axis=-1).mean())


def grid(image: Image, block: int = 64) -> float:
    """The log of Y's mean spectral power at periods of 2 and 4 pixels over that around them: how much of a grid shows.

    It is the mean power spectrum of blocks under a Hann window, half a block apart, each without its mean; a bin counts
    with its neighbours, as wide as the window is there.
    """
    luma = image.astype(np.float64) @ [0.114, 0.587, 0.299]
    blocks = np.lib.stride_tricks.sliding_window_view(luma, (block, block))[:: block // 2, :: block // 2]
    hann = np.hanning(block + 1)[:-1]
    window = np.outer(hann, hann)
    mean = (blocks * window).sum((-2, -1), keepdims=True) / window.sum()
    power = (np.abs(np.fft.fft2((blocks - mean) * window)) ** 2).mean((0, 1))
    bins = np.arange(block)
    away = np.abs((bins + block // 8) % (block // 4) - block // 8)  # from the nearest multiple of 1/4
    distance = np.maximum.outer(away, away)
    frequency = np.minimum(bins, block - bins)
    power[np.maximum.outer(frequency, frequency) < block // 8] = np.nan
    return float(np.log(np.nanmean(power[distance <= 1]) / np.nanmean(power[(distance >= 3) & (distance <= 5)])))
