"""The tables and the picture of `frontier.py`, from its results alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _frontier_methods import L1, REORDERED, UNSHARP, parse_method
from scipy.interpolate import PchipInterpolator

from pcl_loss.tools.report.tables import markdown_table

Pair = tuple[str, int]
"""A net's name and a seed: what two runs must share to be compared."""

PAIRS_TO_JUDGE = 6
TITLES = {
    L1: "L1",
    REORDERED: "L1, another order of the batches",
    UNSHARP: "unsharp masking of L1's output",
    "unsharp,factor=1.4": "unsharp masking of L1's output, 1.4",
    "cosine": "similarity to GT by a trained E_D",
    "cosine,light=True": "similarity to GT by light's bands",
    "extra:gradient_variance": "gradient variance",
    "extra:focal_frequency": "focal frequency",
    "interp:pcl_few+0.8*energy@1.2": "weights between L1's and light's at r 1.2",
    "extra:mdf": "MDF",
    "extra:lpips_loss": "LPIPS (AlexNet) as a loss",
    "extra:lpips_loss,net=vgg": "LPIPS (VGG16) as a loss",
    "vgg": "L1 between VGG16's maps",
    "dists": "DISTS as a loss",
    "pcl_paper": "PCL, the paper's recipe",
    "pcl_trained": "PCL, E_D trained before and frozen",
    "pcl_random": "PCL, small random E_D",
    "pcl_few": "PCL, light without its energy",
    "pcl_few+0.8*energy": "PCL, light",
    "gan": "more of the GAN",
    "vgg,bf16=True": "L1 between VGG16's maps, bf16",
    "4*vgg,bf16=True+0.3*pcl_few+0.24*energy": "VGG16 with r 4 and light with r 0.3",
    "1000*vgg,bf16=True+99*gan": "VGG16 with r 1000, a GAN with r 100",
    "1000*vgg,bf16=True+99*gan+300*pcl_few+240*energy": "the same, and light with r 300",
}
"""What a reader is shown, in the order of the rows; other methods are candidates that were looked at on the way."""
# A measure, and what the losses that share its network have in their names.
SHARED = {"dists": "vgg|dists", "lpips": "lpips_loss$"}


class Metric(NamedTuple):
    """How a metric is shown: its title with its unit, whether more is better, and how it is compared with L1's."""

    title: str
    higher_is_better: bool = False
    digits: int = 2
    change: Callable[[float, float], float] = lambda value, of_l1: 100 * (value / of_l1 - 1)


METRICS = {
    "psnr": Metric("PSNR-Y, dB", True, 3, lambda value, of_l1: value - of_l1),
    "ssim": Metric("SSIM-Y, %", True, 3),
    "lpips": Metric("LPIPS-alex, %"),
    "dists": Metric("DISTS, %"),
    "haarpsi": Metric("HaarPSI, %", True),
    "mdsi": Metric("MDSI, %"),
    "niqe": Metric("NIQE, %"),
    "colour": Metric("colour, %"),
    "grid": Metric("grid, %", False, 0, lambda value, of_l1: 100 * math.expm1(value - of_l1)),
}


class Results:
    """The records of one length of runs on one test set, with the differences to L1 of the same net and seed."""

    def __init__(self, records: Iterable[Mapping[str, Any]], on: str, iters: int, set_name: str) -> None:
        scores: dict[tuple[str, float | None], dict[Pair, dict[str, float]]] = {}
        for each in records:
            if (each["on"], each["iters"]) == (on, iters) and set_name in each["scores"]:
                of_run = scores.setdefault((each["method"], each["ratio"]), {})
                of_run[each["net"], each["seed"]] = each["scores"][set_name]
        self.iters, self.set_name, self.scores = iters, set_name, scores
        self.l1 = scores.get((L1, None), {})
        self.metrics = [metric for metric in METRICS if any(metric in of_pair for of_pair in self.l1.values())]
        order = list(TITLES)
        shown = [row for row in scores if row[0] in TITLES and row[0] != L1]
        self.rows = sorted(shown, key=lambda row: (order.index(row[0]), row[1] or 0.0))
        self.curves = list(dict.fromkeys(_curve(method) for method, _ in self.rows if method != REORDERED))

    def differences(self, method: str, ratio: float | None, metric: str) -> dict[Pair, float]:
        """Of every net and seed: in the metric's own unit, or in percent of L1's."""
        return {
            pair: METRICS[metric].change(scores[metric], self.l1[pair][metric])
            for pair, scores in self.scores.get((method, ratio), {}).items()
            if metric in scores and metric in self.l1.get(pair, {})
        }

    def noise_floor(self, metric: str) -> float:
        """The root mean square of what another order of the batches changes; not a number where that was not run."""
        noise = self.differences(REORDERED, None, metric).values()
        return math.sqrt(statistics.mean(d * d for d in noise)) if noise else math.nan

    def verdict(self, differences: Mapping[Pair, float], metric: str) -> str:
        """`'better'`, `'worse'`, or '' unless six pairs or more agree in sign and the mean is twice the noise floor."""
        values = list(differences.values())
        if len(values) < PAIRS_TO_JUDGE or len({value > 0 for value in values}) > 1:
            return ""
        if not abs(statistics.mean(values)) > 2 * self.noise_floor(metric):
            return ""
        return "better" if (values[0] > 0) == METRICS[metric].higher_is_better else "worse"

    def curve(self, name: str, pair: Pair, metric: str) -> list[tuple[float, float, float]]:
        """(strength, difference in PSNR, difference in the metric) along a method's strength, from L1's zeros on."""
        points = {0.0: (0.0, 0.0)}
        for method, ratio in self.rows:
            if _curve(method) == name and pair in (values := self.differences(method, ratio, metric)):
                strength = parse_method(method)[0].options["factor"] - 1 if ratio is None else ratio
                points[strength] = (self.differences(method, ratio, "psnr")[pair], values[pair])
        return [(strength, *points[strength]) for strength in sorted(points)]

    def at_psnr_loss(self, name: str, loss: float, metric: str) -> dict[Pair, float]:
        """The difference in a metric where a method's curve first loses so many dB; of pairs whose curve goes there.

        Both are interpolated along the strength, monotone and smooth: PSNR falls with its square, the metric in a line,
        so that a straight line between two points would flatter whatever has a point near.
        """
        found = {}
        for pair in self.l1:
            if len(curve := self.curve(name, pair, metric)) < 2:
                continue
            strengths, *values = np.array(curve).T
            fine = np.linspace(0, strengths[-1], 2001)
            psnrs, metrics = (PchipInterpolator(strengths, value)(fine) for value in values)
            below = np.flatnonzero(psnrs <= -loss + 1e-9)
            if len(below):
                found[pair] = float(metrics[below[0]])
        return found

    def cell(self, values: Mapping[Pair, float], method: str, metric: str) -> str:
        """Mean, standard deviation and verdict."""
        if not values:
            return "-"
        digits, mean = METRICS[metric].digits, statistics.mean(values.values())
        spread = f" ({statistics.stdev(values.values()):.{digits}f})" if len(values) > 1 else ""
        shared = "†" if metric in SHARED and re.search(SHARED[metric], method) else ""
        mark = {"better": "**", "worse": "_", "": ""}[self.verdict(values, metric)]
        return f"{mark}{mean:+.{digits}f}{spread}{shared}{mark}"


def _curve(method: str) -> str:
    return UNSHARP if method.partition(",")[0] == UNSHARP else method


def differences_table(results: Results, up_to: float = 1.0, every: bool = False) -> str:
    """A row for each method: what it changes against L1, at every ratio, or at that up to this with most pairs."""
    metrics = results.metrics
    rows = [["second loss", "r", "pairs", *(METRICS[metric].title for metric in metrics)]]
    of_l1 = [[scores[metric] for scores in results.l1.values() if metric in scores] for metric in metrics]
    means = [f"{statistics.mean(values):.4f}" for values in of_l1]
    rows.append(["none: the values of L1", "", str(len(results.l1)), *means])
    shown = [row for row in results.rows if (row[1] or 0.0) <= up_to]
    shown.sort(key=lambda row: len(results.differences(row[0], row[1], "psnr")))  # stable: the largest is last
    for method, ratio in results.rows if every else sorted(dict(shown).items(), key=results.rows.index):
        values = [results.differences(method, ratio, metric) for metric in metrics]
        cells = [results.cell(of_metric, method, metric) for of_metric, metric in zip(values, metrics, strict=True)]
        rows.append([TITLES[method], "" if ratio is None else f"{ratio:g}", str(len(values[0])), *cells])
    return markdown_table(rows)


def equal_psnr_table(results: Results, loss: float) -> str:
    """A row for each curve that goes there: what it changes where it has lost so many dB."""
    metrics = [metric for metric in results.metrics if metric not in ("psnr", "ssim")]
    rows = [[f"at -{loss:g} dB", "pairs", *(METRICS[metric].title for metric in metrics)]]
    for name in results.curves:
        values = [results.at_psnr_loss(name, loss, metric) for metric in metrics]
        if values[0]:
            cells = [results.cell(of_metric, name, metric) for of_metric, metric in zip(values, metrics, strict=True)]
            rows.append([TITLES[name], str(len(values[0])), *cells])
    return markdown_table(rows)


def csv_rows(results: Results) -> list[list[Any]]:
    """For each method and ratio, each net and all of them: the mean differences to L1, and their spread."""
    rows: list[list[Any]] = []
    for method, ratio in results.rows:
        for net in (*sorted({net for net, _ in results.l1}), "all"):
            row: list[Any] = [results.set_name, results.iters, TITLES[method], ratio, net]
            for metric in METRICS:
                values = results.differences(method, ratio, metric)
                chosen = [value for pair, value in values.items() if net in (pair[0], "all")]
                row.append(f"{statistics.mean(chosen):.4f}" if chosen else "")
                row.append(f"{statistics.stdev(chosen):.4f}" if len(chosen) > 1 else "")
            rows.append(row)
    return rows


def draw(results: Results, file: Path) -> None:
    """The plane of distortion and perception: a curve a method, a column a net, bars for the spread over the seeds."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    nets = sorted({net for net, _ in results.differences(REORDERED, None, "psnr")})  # those of which all was run
    figure = Figure(figsize=(5 * len(nets), 8.5))
    axes = figure.subplots(2, len(nets), squeeze=False, sharex="col")
    for row, metric in zip(axes, ("lpips", "dists"), strict=True):
        for axis, net in zip(row, nets, strict=True):
            for index, name in enumerate(results.curves):
                curves = [results.curve(name, pair, metric) for pair in results.l1 if pair[0] == net]
                length = max(map(len, curves))
                # (curves, points, strength or PSNR or metric)
                points = np.array([curve for curve in curves if len(curve) == length > 1])
                if len(points):
                    (_, xs, ys), (_, x_bars, y_bars) = points.mean(0).T, points.std(0, ddof=len(points) > 1).T
                    color = "black" if TITLES[name] == "PCL, light" else colormaps["tab20"](index)
                    look = {"color": color, "linewidth": 1, "capsize": 2, "label": TITLES[name]}
                    axis.errorbar(xs, ys, y_bars, x_bars, f"{'osD^v'[index % 5]}-", **look)
            axis.axhline(0, color="grey", linewidth=0.5)
            axis.axvline(0, color="grey", linewidth=0.5)
            axis.set(title=f"{net}, {results.set_name}", xlabel="PSNR-Y minus L1's, dB (right is better)")
            axis.set(xlim=(-0.2, 0.02), ylim=(-13, 2), xticks=(-0.2, -0.1, 0))  # a line may go on beyond
            axis.set_ylabel(f"{METRICS[metric].title} against L1's (down is better)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(file, dpi=110)
