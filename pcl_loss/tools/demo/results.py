"""The demo's evaluation, table and picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _markdown, _panels
from .._checkpoints import usable_device
from ..report.figure import default_crop, figure_rows
from ..report.measure import BICUBIC, Net, Pair, Score, find_pairs, lpips_missing, measure_all
from ..report.tables import write_scores
from .data import CROP, SCALE, TEST_REGIONS
from .runs import DemoSettings, LogLine, Run, weights_path

WINDOW = 72  # side of what the picture shows of a test crop

BASELINE, REFERENCE = "L1", "HR itself"
METRICS = {
    "psnr": ("PSNR (dB)", 2, "higher"),
    "ssim": ("SSIM", 4, "higher"),
    "niqe": ("NIQE", 2, "lower"),
    "lpips": ("LPIPS", 4, "lower"),
}

# Distinguishable for colour-blind readers too (Okabe and Ito).
CURVES = ({"pos_sim": "#0072B2", "neg_sim": "#D55E00"}, {"margin": "#009E73"})
LABELS = ("similarity to SR", "pos_sim - neg_sim")

DISCLAIMER = (
    "This is a small demonstration: a small network, minutes of training on parts of three photographs, one seed, and "
    "a recipe that was chosen on these test crops. It shows that the loss trains; it is no evidence for or against the "
    "paper's results."
)


def find_crops(folder: Path) -> dict[str, list[Pair]]:
    """The test crops by their photograph, which is the test set of the report's measuring."""
    test = folder / "data" / "test"
    pairs = find_pairs("test", test / "HR", test / "LR", SCALE)
    photos = dict.fromkeys(part.photo for part in TEST_REGIONS)
    return {photo: [pair for pair in pairs if pair.name.startswith(f"{photo}_")] for photo in photos}


def evaluate(folder: Path, runs: Sequence[Run]) -> list[Score]:
    """Measure bicubic, the methods and HR itself on all test crops; the images go to `folder/sr/METHOD/PHOTO/`."""
    crops = find_crops(folder)
    nets = [Net(BICUBIC)]
    for run in runs:
        if run.method:
            checkpoint, yml = folder / weights_path(run.name), folder / f"{run.name}.yml"
            nets.append(Net(run.method, checkpoint, run.options["network_g"], yml, "params"))
    nets.append(Net(REFERENCE, images={(photo, pair.name): pair.hr for photo in crops for pair in crops[photo]}))
    how: dict[str, Any] = {"device": usable_device(None), "with_lpips": not lpips_missing(), "progress": True}
    return measure_all(nets, crops, folder / "sr", scale=SCALE, **how)[0]


def values_of(scores: Sequence[Score], method: str, metric: str) -> list[float]:
    """One metric of one method, a number per crop."""
    return [getattr(score, metric) for score in scores if score.net == method]


def differences(scores: Sequence[Score], method: str, metric: str) -> list[float]:
    """A method minus L1, a number per crop."""
    pairs = zip(values_of(scores, method, metric), values_of(scores, BASELINE, metric), strict=True)
    return [value - baseline for value, baseline in pairs]


def _metrics_of(scores: Sequence[Score]) -> dict[str, tuple[str, int, str]]:
    """The metrics that were measured: title, digits, and which direction is better."""
    return {m: about for m, about in METRICS.items() if all(getattr(score, m) is not None for score in scores)}


def _methods_of(scores: Sequence[Score], *without: str) -> list[str]:
    return [method for method in dict.fromkeys(score.net for score in scores) if method not in (REFERENCE, *without)]


def format_table(scores: Sequence[Score]) -> str:
    """A Markdown table: mean and standard deviation over the test crops."""
    metrics = _metrics_of(scores)
    digits = {metric: digits for metric, (_, digits, _) in metrics.items()}
    rows = [["", *(f"{title} ({better} is better)" for title, _, better in metrics.values())]]
    for method in _methods_of(scores):
        rows.append([method, *(_mean_and_spread(values_of(scores, method, m), digits[m]) for m in metrics)])
    for method in _methods_of(scores, BICUBIC, BASELINE):
        numbers = [_mean_and_spread(differences(scores, method, m), digits[m] + 1, "+") for m in metrics]
        rows.append([f"{method} minus {BASELINE}, per crop", *numbers])
    # NIQE alone looks at one image; the others compare HR with itself here.
    niqe = _mean_and_spread(values_of(scores, REFERENCE, "niqe"), METRICS["niqe"][1])
    rows.append([REFERENCE, *(niqe if m == "niqe" else "-" for m in metrics)])
    return _markdown.table(rows)


def _mean_and_spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.{digits}f} ± {spread:.{digits}f}"


def verdict(scores: Sequence[Score]) -> str:
    """On how many crops each method is better than L1, metric by metric."""
    sentences = []
    for method in _methods_of(scores, BICUBIC, BASELINE):
        parts = []
        for metric, (title, _, better) in _metrics_of(scores).items():
            gains = [value if better == "higher" else -value for value in differences(scores, method, metric)]
            parts.append(f"{title.split()[0]} on {sum(gain > 0 for gain in gains)} of {len(gains)}")
        sentences.append(f"{method} is better than {BASELINE} in {', '.join(parts[:-1])} and {parts[-1]} test crops.")
    return " ".join(sentences)


def write_results(folder: Path, scores: Sequence[Score], settings: DemoSettings) -> str:
    """Write `results.csv`, a row per crop and method, and `results.md`; returns the latter's text."""
    write_scores(folder / "results.csv", scores)
    text = "\n\n".join(
        [
            f"EDSR ({settings.num_block} blocks of {settings.num_feat} channels), x{SCALE}; {settings.warmup_iters} "
            f"iterations of warm-up, then {settings.iters} with each of {', '.join(_methods_of(scores, BICUBIC))} from "
            f"the same checkpoint, with the same patches; seed {settings.seed}.",
            f"Mean ± standard deviation over {len(TEST_REGIONS)} test crops of {CROP} x {CROP} pixels; PSNR and SSIM "
            "on Y. The crops differ much more from each other than the methods do: compare the methods by the rows of "
            "differences. NIQE is meant for whole photographs and is rough on such small crops.",
            format_table(scores),
            verdict(scores),
            DISCLAIMER,
        ]
    )
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def draw(folder: Path, scores: Sequence[Score], log: Sequence[LogLine]) -> None:
    """Write `comparison.png`: a crop of each photograph with its numbers, and the curves of a contrastive run."""
    sets = find_crops(folder)
    crops = [default_crop(photo, pairs, scores, SCALE, WINDOW) for photo, pairs in sets.items()]
    rows = figure_rows(_methods_of(scores), sets, crops, scores, SCALE)
    note = f"{WINDOW} x {WINDOW} pixels each, where HR has the most that bicubic lacks"
    figure, below = _panels.draw(rows, note, below=2.9)
    draw_curves(below, log)
    figure.savefig(folder / "comparison.png")


def draw_curves(figure: Any, log: Sequence[LogLine]) -> None:
    """The similarities and the margin over the iterations of a log, on a figure or subfigure."""
    iterations = [line.iteration for line in log]
    for ax, colors, label in zip(figure.subplots(1, 2), CURVES, LABELS, strict=True):
        for key, color in colors.items():
            values = [line.values[key] for line in log]
            # A value belongs to one batch, and batches differ more than iterations do.
            ax.plot(iterations, values, color=color, linewidth=0.8, alpha=0.4)
            ax.plot(iterations, running_mean(values), color=color, label=key, linewidth=2)
        ax.set_xlabel("iteration of L1 + PCL (thin: single batches)")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(colors), frameon=False)


def running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean over each value and its neighbours, a tenth of all in total; near the ends over those there are."""
    reach = len(values) // 20
    window = np.ones(2 * reach + 1)
    count = np.convolve(np.ones(len(values)), window)
    means: NDArray[np.float64] = np.convolve(values, window) / count
    return means[reach : reach + len(values)]
