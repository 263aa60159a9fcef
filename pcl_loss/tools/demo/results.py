"""The demo's evaluation, table and picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _markdown, _panels
from .._checkpoints import usable_device
from .._images import Image, read_image
from .._panels import Panel
from .._regions import Region, best_region
from ..report.measure import Score, measure_all
from ..report.nets import BICUBIC, Net, find_pairs
from ..report.tables import write_csv
from .data import CROP, SCALE
from .runs import BASELINE, RECIPE, STRENGTHS, Run

WINDOW, ROWS = 48, 3
"""Side of what the picture shows of a test crop, and of how many."""
BACKBONE = "squeeze"
"""Of LPIPS: the smallest, 4.7 MB."""
SHOWN = (BASELINE, *list(STRENGTHS)[1:])
"""The methods of the picture."""
COLOR = "#0072B2"


class Metric(NamedTuple):
    """A column of the table; `better` is the sign of a gain."""

    title: str
    digits: int
    better: int


METRICS = {
    "psnr": Metric("PSNR (dB), higher is better", 2, 1),
    "ssim": Metric("SSIM, higher is better", 4, 1),
    "lpips": Metric("LPIPS, lower is better", 4, -1),
    "mdsi": Metric("MDSI, lower is better", 4, -1),
    "haarpsi": Metric("HaarPSI, higher is better", 4, 1),
}

READING = (
    f"`{RECIPE} W` is L1 + the {RECIPE} recipe with `loss_weight: W`. PSNR and SSIM are those of Y. LPIPS (SqueezeNet) "
    "is how far apart two images look to a network; MDSI compares edges and colours, HaarPSI Haar wavelets. The crops "
    "differ much more from each other than the methods do: compare the methods by their differences from L1."
)
DISCLAIMER = (
    "This is a small demonstration: a small network, minutes of training on parts of four photographs, one seed. It is "
    "no evidence for or against the paper's results; docs/evidence.md has measurements with larger networks."
)


def evaluate(folder: Path, runs: Sequence[Run], with_lpips: bool) -> list[Score]:
    """Measure bicubic and the methods on all test crops; the images go to `folder/sr/`."""
    import piq

    test = folder / "data" / "test"
    crops = find_pairs("test", f"{test / 'HR'}:{test / 'LR'}", SCALE)
    nets = [Net(BICUBIC)]
    for run in runs:
        yml = folder / f"{run.name}.yml"
        nets.append(Net(run.method, folder / run.weights, run.options["network_g"], yml, "params_ema"))
    how: dict[str, Any] = {"device": usable_device(None), "lpips": BACKBONE if with_lpips else None}
    scores = []
    for score in measure_all(nets, crops, folder / "sr", scale=SCALE, progress=True, **how):
        sr, hr = (_tensor(read_image(path)) for path in (score.sr, score.pair.hr))
        structure: dict[str, float | None] = {"mdsi": float(piq.mdsi(sr, hr)), "haarpsi": float(piq.haarpsi(sr, hr))}
        scores.append(score._replace(values={**score.values, **structure}))
    return scores


def _tensor(image: Image) -> torch.Tensor:
    rgb = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb)[None].float() / 255


def values_of(scores: Sequence[Score], method: str, metric: str) -> list[float]:
    """One metric of one method, a number per crop; empty if it was not measured."""
    values = (score.values[metric] for score in scores if score.net == method)
    return [value for value in values if value is not None]


def format_table(scores: Sequence[Score]) -> str:
    """A Markdown table: the means over the test crops, and how each method differs from L1, crop by crop: mean and
    standard deviation of the differences, and on how many crops it is better.
    """
    metrics = [metric for metric in METRICS if values_of(scores, BASELINE, metric)]
    methods = list(dict.fromkeys(score.net for score in scores))
    rows = [["", *(METRICS[metric].title for metric in metrics)]]
    for method in methods:
        means = (f"{statistics.fmean(values_of(scores, method, m)):.{METRICS[m].digits}f}" for m in metrics)
        rows.append([method, *means])
    for method in methods[2:]:  # after bicubic and L1
        row = [f"{method} minus {BASELINE}"]
        for metric in metrics:
            pairs = zip(values_of(scores, method, metric), values_of(scores, BASELINE, metric), strict=True)
            gains = [value - baseline for value, baseline in pairs]
            digits, better = METRICS[metric].digits + 1, sum(gain * METRICS[metric].better > 0 for gain in gains)
            mean, spread = statistics.fmean(gains), statistics.stdev(gains)
            row.append(f"{mean:+.{digits}f} ± {spread:.{digits}f} ({better} of {len(gains)})")
        rows.append(row)
    return _markdown.table(rows)


def write_results(folder: Path, scores: Sequence[Score], iters: int, seed: int, no_lpips: str) -> str:
    """Write `results.csv`, a row per crop and method, and `results.md`; returns the latter's text."""
    write_csv(folder / "results.csv", (score.row() for score in scores))
    crops = len(values_of(scores, BASELINE, "psnr"))
    paragraphs = [
        f"EDSR (8 blocks of 32 channels), x{SCALE}, trained with L1 on other photographs; {iters} more iterations of "
        f"each method from there, with the same patches; seed {seed}.",
        READING,
        f"Means over {crops} test crops of {CROP} x {CROP} pixels. Differences: mean ± standard "
        "deviation over the crops, and on how many the method is better.",
        format_table(scores),
        *([f"LPIPS is missing: {no_lpips}"] if no_lpips else []),
        DISCLAIMER,
    ]
    text = "\n\n".join(paragraphs)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def draw(folder: Path, scores: Sequence[Score]) -> None:
    """Write `comparison.png`: what the strengths change, and their price."""
    known = {(score.net, score.pair.name): score for score in scores}
    images = {key: read_image(score.sr) for key, score in known.items() if key[0] in SHOWN}
    rows = []
    for crop, region in most_changed(images):
        row = [Panel(region.cut(read_image(known[BASELINE, crop].pair.hr))[..., ::-1], "HR", crop)]
        for method in SHOWN:
            values = known[method, crop].values
            caption = f"{values['psnr']:.2f} dB, MDSI {values['mdsi']:.4f}"
            row.append(Panel(region.cut(images[method, crop])[..., ::-1], method, caption))
        rows.append(row)
    note = (
        f"The {WINDOW} x {WINDOW} pixels of {ROWS} crops where {BASELINE} and {SHOWN[-1]} differ most; numbers: of the "
        f"crop of {CROP} x {CROP} around it"
    )
    figure, below = _panels.draw(rows, note, below=3.2)
    draw_curves(below, scores)
    figure.savefig(folder / "comparison.png")


def most_changed(images: dict[tuple[str, str], Image]) -> list[tuple[str, Region]]:
    """The crops, and the window of each, where L1 and the strongest run differ most.

    Args:
        images: `(H, W, 3)` by method and crop.
    """
    found = []
    for method, crop in images:
        if method == BASELINE:
            change = np.abs(images[SHOWN[-1], crop].astype(np.float64) - images[BASELINE, crop]).mean(axis=2)
            region = best_region(change, WINDOW, WINDOW)
            found.append((float(region.cut(change).sum()), crop, region))
    return [(crop, region) for _, crop, region in sorted(found, reverse=True)[:ROWS]]


def draw_curves(figure: Any, scores: Sequence[Score]) -> None:
    """The means of each perceptual measure over those of PSNR, on a figure or subfigure."""
    metrics = [metric for metric in ("lpips", "mdsi", "haarpsi") if values_of(scores, BASELINE, metric)]
    methods = (BASELINE, *STRENGTHS)
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        x, y = ([statistics.fmean(values_of(scores, method, m)) for method in methods] for m in ("psnr", metric))
        ax.plot(x, y, "o-", color=COLOR)
        for method, *point in zip(methods, x, y, strict=True):
            ax.annotate(method, point, xytext=(7, 0), textcoords="offset points", va="center")
        ax.set(xlabel=METRICS["psnr"].title, ylabel=METRICS[metric].title)
        ax.margins(x=0.25, y=0.1)
        ax.grid(alpha=0.3)
