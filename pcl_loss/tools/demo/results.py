"""The demo's evaluation, table and picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from .. import _pictures
from .._checkpoints import usable_device
from .._images import read_image
from .._pictures import Panel, Region, best_region
from ..report.measure import BICUBIC, Net, Score, find_pairs, measure_all
from ..report.tables import markdown_table, write_csv
from .data import CROP, SCALE
from .runs import BASELINE, RECIPE, STRENGTHS, Options, weights_of

WINDOW, ROWS = 48, 3  # side of what the picture shows of a test crop, and of how many
SHOWN = (BASELINE, *list(STRENGTHS)[1:])  # the methods of the picture
BACKBONE = "squeeze"  # of LPIPS: the smallest, 4.7 MB
TITLES = {
    "psnr": "PSNR (dB), higher is better",
    "ssim": "SSIM, higher is better",
    "lpips": "LPIPS, lower is better",
    "mdsi": "MDSI, lower is better",
    "haarpsi": "HaarPSI, higher is better",
}

READING = (
    f"`{RECIPE} W` is L1 + the {RECIPE} recipe with `loss_weight: W`; in brackets, on how many crops it is better than "
    "L1. PSNR and SSIM are those of Y. LPIPS (SqueezeNet) is how far apart two images look to a network; MDSI compares "
    "edges and colours, HaarPSI Haar wavelets."
)
DISCLAIMER = (
    "This is a small demonstration: a small network, minutes of training on parts of four photographs, one seed. It is "
    "no evidence for or against the paper's results; docs/evidence.md has measurements with larger networks."
)


def evaluate(folder: Path, runs: Mapping[str, Options], with_lpips: bool) -> list[Score]:
    """Measure bicubic and the methods on all test crops; the images go to `folder/sr/`."""
    import piq

    test = folder / "data" / "test"
    crops = find_pairs("test", f"{test / 'HR'}:{test / 'LR'}", SCALE)
    nets = [Net(BICUBIC)]
    for method, options in runs.items():
        yml = folder / f"{options['name']}.yml"
        nets.append(Net(method, weights_of(folder, options), options["network_g"], yml, "params_ema"))
    device, lpips = usable_device(None), BACKBONE if with_lpips else None
    scores = []
    for score in measure_all(nets, crops, folder / "sr", scale=SCALE, device=device, lpips=lpips):
        images = (read_image(path)[..., ::-1].astype(np.float32) / 255 for path in (score.sr, score.pair.hr))
        sr, hr = (torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() for image in images)
        structure = {"mdsi": float(piq.mdsi(sr, hr)), "haarpsi": float(piq.haarpsi(sr, hr))}
        scores.append(score._replace(values={**score.values, **structure}))
    return scores


def values_of(scores: Sequence[Score], method: str, metric: str) -> list[float]:
    """One metric of one method, a number per crop; empty if it was not measured."""
    values = (score.values[metric] for score in scores if score.net == method)
    return [value for value in values if value is not None]


def format_table(scores: Sequence[Score]) -> str:
    """A Markdown table: the means over the test crops, and on how many crops a method is better than L1."""
    metrics = [metric for metric in TITLES if values_of(scores, BASELINE, metric)]
    rows = [["", *(TITLES[metric] for metric in metrics)]]
    for method in dict.fromkeys(score.net for score in scores):
        row = [method]
        for metric in metrics:
            values, of_l1 = (values_of(scores, name, metric) for name in (method, BASELINE))
            sign = 1 if "higher" in TITLES[metric] else -1
            better = sum((value - other) * sign > 0 for value, other in zip(values, of_l1, strict=True))
            mean = f"{statistics.fmean(values):.{3 if metric == 'psnr' else 4}f}"
            row.append(f"{mean} ({better} of {len(values)})" if method in STRENGTHS else mean)
        rows.append(row)
    return markdown_table(rows)


def write_results(folder: Path, scores: Sequence[Score], iters: int, seed: int, no_lpips: str) -> None:
    """Write `results.csv`, a row per crop and method, and `results.md`."""
    write_csv(folder / "results.csv", (score.row() for score in scores))
    paragraphs = [
        f"EDSR (8 blocks of 32 channels), x{SCALE}, trained with L1 on other photographs; {iters} more iterations of "
        f"each method from there, with the same patches; seed {seed}. Means over test crops of {CROP} x {CROP} pixels.",
        READING,
        format_table(scores),
        *([f"LPIPS is missing: {no_lpips}"] if no_lpips else []),
        DISCLAIMER,
    ]
    (folder / "results.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def draw(folder: Path, scores: Sequence[Score]) -> None:
    """Write `comparison.png`: what the strengths change, and their price."""
    known = {(score.net, score.pair.name): score for score in scores}
    rows = []
    for crop, region in most_detailed(scores):
        row = [Panel(region.cut(read_image(known[BASELINE, crop].pair.hr))[..., ::-1], "HR", crop)]
        for method in SHOWN:
            score = known[method, crop]
            caption = f"{score.values['psnr']:.2f} dB, MDSI {score.values['mdsi']:.4f}"
            row.append(Panel(region.cut(read_image(score.sr))[..., ::-1], method, caption))
        rows.append(row)
    note = (
        f"The {WINDOW} x {WINDOW} pixels of {ROWS} crops where HR has most fine detail; numbers: of the "
        f"crop of {CROP} x {CROP} around it"
    )
    figure, below = _pictures.draw(rows, note, below=3.2)
    draw_curves(below, scores)
    figure.savefig(folder / "comparison.png")


def most_detailed(scores: Sequence[Score]) -> list[tuple[str, Region]]:
    """The crops with most fine detail in HR, and the window of each where most of it is."""
    found = []
    for pair in dict.fromkeys(score.pair for score in scores):
        hr = read_image(pair.hr).astype(np.float64)
        detail = np.abs(hr - cv2.GaussianBlur(hr, (0, 0), 1)).mean(axis=2)
        region = best_region(detail, WINDOW)
        found.append((float(region.cut(detail).sum()), pair.name, region))
    return [(crop, region) for _, crop, region in sorted(found, reverse=True)[:ROWS]]


def draw_curves(figure: Any, scores: Sequence[Score]) -> None:
    """The means of each perceptual measure over those of PSNR, on a figure or subfigure."""
    metrics = [metric for metric in ("lpips", "mdsi", "haarpsi") if values_of(scores, BASELINE, metric)]
    methods = (BASELINE, *STRENGTHS)
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        x, y = ([statistics.fmean(values_of(scores, method, m)) for method in methods] for m in ("psnr", metric))
        ax.plot(x, y, "o-", color="#0072B2")
        for method, *point in zip(methods, x, y, strict=True):
            ax.annotate(method, point, xytext=(7, 0), textcoords="offset points", va="center")
        ax.set(xlabel=TITLES["psnr"], ylabel=TITLES[metric])
        ax.margins(x=0.25, y=0.1)
        ax.grid(alpha=0.3)
