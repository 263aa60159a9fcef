"""The demo's evaluation, table and picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _markdown, _panels
from .._checkpoints import usable_device
from .._images import Image, read_image
from .._panels import Panel
from .._regions import Region, best_region
from ..report.measure import BICUBIC, Net, find_pairs, lpips_missing, measure_all
from ..report.tables import write_csv
from .data import CROP, SCALE
from .runs import BASELINE, LIGHT, PAPER, DemoSettings, Run, weights_path

WINDOW = 48
"""Side of what the picture shows of a test crop."""


class CropScore(NamedTuple):
    """What was measured of one image; `lpips` is None where it cannot be had without a download."""

    method: str
    crop: str
    sr: Path
    hr: Path
    psnr: float
    ssim: float
    lpips: float | None
    gmsd: float


class Metric(NamedTuple):
    """A column of the table; `better` is the sign of a gain."""

    title: str
    digits: int
    better: int


METRICS = {
    "psnr": Metric("PSNR (dB), higher is better", 2, 1),
    "ssim": Metric("SSIM, higher is better", 4, 1),
    "lpips": Metric("LPIPS, lower is better", 4, -1),
    "gmsd": Metric("GMSD, lower is better", 4, -1),
}

READING = (
    "`light W` is L1 + the light recipe with `loss_weight: W`, `paper W` the same with the paper's recipe. PSNR and "
    "SSIM are those of Y. GMSD (Xue et al., 2014) compares the gradients of two images, that is, their edges. The "
    "crops differ much more from each other than the methods do: compare the methods by their differences from L1. "
    "With this small network and these short runs, the pictures of the two lower weights are hard to tell from L1; at "
    "the highest, edges are a little sharper and smooth parts show a fine pattern."
)
NO_LPIPS = (
    "LPIPS, which sees how alike two images look, is missing. To have it in the next run: `pip install lpips` and "
    "`python -c \"from torchvision import models; models.alexnet(weights='DEFAULT')\"` (a download of 233 MB)."
)
DISCLAIMER = (
    "This is a small demonstration: a small network, minutes of training on parts of four photographs, one seed. It is "
    "no evidence for or against the paper's results."
)

PREWITT = np.array([[1, 0, -1]] * 3) / 3
# Distinguishable for colour-blind readers too (Okabe and Ito).
LIGHT_COLOR, PAPER_COLOR = "#0072B2", "#D55E00"


def evaluate(folder: Path, runs: Sequence[Run]) -> list[CropScore]:
    """Measure bicubic and the methods on all test crops; the images go to `folder/sr/METHOD/test/`."""
    test = folder / "data" / "test"
    crops = find_pairs("test", test / "HR", test / "LR", SCALE)
    nets = [Net(BICUBIC)]
    for run in runs:
        if run.method:
            checkpoint, yml = folder / weights_path(run.name), folder / f"{run.name}.yml"
            nets.append(Net(run.method, checkpoint, run.options["network_g"], yml, "params_ema"))
    how: dict[str, Any] = {"device": usable_device(None), "with_lpips": not lpips_missing(), "progress": True}
    measured, _ = measure_all(nets, {"test": crops}, folder / "sr", scale=SCALE, **how)
    scores = []
    for score in measured:
        hr = test / "HR" / f"{score.image}.png"
        edges = gmsd(read_image(score.sr), read_image(hr))
        scores.append(CropScore(score.net, score.image, score.sr, hr, score.psnr, score.ssim, score.lpips, edges))
    return scores


def gmsd(sr: Image, hr: Image) -> float:
    """Gradient magnitude similarity deviation (Xue et al., 2014) of Y at half the size, without `SCALE` of the border.

    Args:
        sr: `(H, W, 3)`, uint8, BGR.
        hr: of the same shape.
    """
    import cv2

    magnitudes = []
    for image in (sr, hr):
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[SCALE:-SCALE, SCALE:-SCALE].astype(np.float64)
        half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        # Zeros beyond the border, as in piq.
        y, x = (cv2.filter2D(half, -1, kernel, borderType=cv2.BORDER_CONSTANT) for kernel in (PREWITT.T, PREWITT))
        magnitudes.append(np.hypot(y, x))
    first, second = magnitudes
    similarity = (2 * first * second + 170) / (first**2 + second**2 + 170)
    return float(similarity.std())


def values_of(scores: Sequence[CropScore], method: str, metric: str) -> list[float]:
    """One metric of one method, a number per crop."""
    return [getattr(score, metric) for score in scores if score.method == method]


def metrics_of(scores: Sequence[CropScore]) -> list[str]:
    """The metrics that were measured."""
    return [metric for metric in METRICS if getattr(scores[0], metric) is not None]


def format_table(scores: Sequence[CropScore]) -> str:
    """A Markdown table: the means over the test crops, and how each method differs from L1, crop by crop."""
    metrics = metrics_of(scores)
    methods = list(dict.fromkeys(score.method for score in scores))
    rows = [["", *(METRICS[metric].title for metric in metrics)]]
    for method in methods:
        means = (f"{statistics.fmean(values_of(scores, method, m)):.{METRICS[m].digits}f}" for m in metrics)
        rows.append([method, *means])
    for method in methods:
        if method not in (BICUBIC, BASELINE):
            rows.append([f"{method} minus {BASELINE}", *(difference(scores, method, metric) for metric in metrics)])
    return _markdown.table(rows)


def difference(scores: Sequence[CropScore], method: str, metric: str) -> str:
    """How a method differs from L1: mean and standard deviation over the crops, and on how many it is better."""
    pairs = zip(values_of(scores, method, metric), values_of(scores, BASELINE, metric), strict=True)
    gains = [value - baseline for value, baseline in pairs]
    _, digits, sign = METRICS[metric]
    better = sum(gain * sign > 0 for gain in gains)
    mean, spread = statistics.fmean(gains), statistics.stdev(gains)
    return f"{mean:+.{digits + 1}f} ± {spread:.{digits + 1}f} ({better} of {len(gains)})"


def write_results(folder: Path, scores: Sequence[CropScore], settings: DemoSettings) -> str:
    """Write `results.csv`, a row per crop and method, and `results.md`; returns the latter's text."""
    write_csv(folder / "results.csv", ({k: v for k, v in s._asdict().items() if k not in ("sr", "hr")} for s in scores))
    crops = len(values_of(scores, BASELINE, "psnr"))
    paragraphs = [
        f"EDSR ({settings.num_block} blocks of {settings.num_feat} channels), x{SCALE}: {settings.warmup_iters} "
        f"iterations of L1, then {settings.iters} of each method from the same checkpoint, with the same patches; seed "
        f"{settings.seed}.",
        READING,
        f"Means over {crops} test crops of {CROP} x {CROP} pixels. Differences: mean ± standard "
        "deviation over the crops, and on how many the method is better.",
        format_table(scores),
        *([] if "lpips" in metrics_of(scores) else [NO_LPIPS]),
        DISCLAIMER,
    ]
    text = "\n\n".join(paragraphs)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def draw(folder: Path, scores: Sequence[CropScore]) -> None:
    """Write `comparison.png`: what the strengths of the light recipe change, and their price."""
    methods = [BASELINE, *LIGHT]
    known = {(s.method, s.crop): s for s in scores}
    images = {key: read_image(score.sr) for key, score in known.items() if score.method in methods}
    rows = []
    for crop, region in most_changed(images):
        hr = read_image(known[BASELINE, crop].hr)
        row = [Panel(region.cut(hr)[..., ::-1], "HR", f"{crop}\n")]
        for method in methods:
            score = known[method, crop]
            perceptual = f"GMSD {score.gmsd:.4f}" if score.lpips is None else f"LPIPS {score.lpips:.4f}"
            caption = f"{score.psnr:.2f} dB\n{perceptual}"
            cut = region.cut(images[method, crop])[..., ::-1]
            row.append(Panel(cut, method, caption))
        rows.append(row)
    note = (
        f"Of each photograph the {WINDOW} x {WINDOW} pixels where {BASELINE} and {list(LIGHT)[-1]} differ most; "
        f"numbers: of the crop of {CROP} x {CROP} around it"
    )
    figure, below = _panels.draw(rows, note, below=3.2)
    draw_curves(below, scores)
    figure.savefig(folder / "comparison.png")


def most_changed(images: dict[tuple[str, str], Any]) -> list[tuple[str, Region]]:
    """Of each photograph a crop, and the window of it where L1 and the strongest of the light runs differ most.

    Args:
        images: `(H, W, 3)` by method and crop, whose name begins with the photograph's.
    """
    best: dict[str, tuple[float, str, Region]] = {}
    for method, crop in images:
        if method == BASELINE:
            strongest = images[list(LIGHT)[-1], crop].astype(np.float64)
            change = np.abs(strongest - images[BASELINE, crop]).mean(axis=2)
            region = best_region(change, WINDOW, WINDOW)
            found = (float(region.cut(change).sum()), crop, region)
            photo = crop.partition("_")[0]
            best[photo] = max(best.get(photo, found), found)
    return [(crop, region) for _, crop, region in best.values()]


def draw_curves(figure: Any, scores: Sequence[CropScore]) -> None:
    """The means of each perceptual measure over those of PSNR, on a figure or subfigure."""
    metrics = [metric for metric in metrics_of(scores) if metric in ("lpips", "gmsd")]
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for methods, color, offset in (([BASELINE, *LIGHT], LIGHT_COLOR, 7), ([PAPER], PAPER_COLOR, -7)):
            x, y = ([statistics.fmean(values_of(scores, method, m)) for method in methods] for m in ("psnr", metric))
            ax.plot(x, y, "o-", color=color)
            for method, *point in zip(methods, x, y, strict=True):
                where = {"xytext": (offset, 0), "textcoords": "offset points", "ha": "left" if offset > 0 else "right"}
                ax.annotate(method, point, va="center", **where)
        ax.set(xlabel=METRICS["psnr"].title, ylabel=METRICS[metric].title)
        ax.margins(x=0.2, y=0.1)
        ax.grid(alpha=0.3)
