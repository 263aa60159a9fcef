"""The tables and the picture of `frontier.py`, from its results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _frontier_methods import L1, REORDERED, UNSHARP, VGG16_LOSSES, parse_method
from scipy.interpolate import PchipInterpolator

from pcl_loss.tools._markdown import table

Record = Mapping[str, Any]
Pair = tuple[str, int]
"""A net's name and a seed: what two runs must share to be compared."""
Curve = list[tuple[float, float, float]]

PAIRS_TO_JUDGE = 6
PSNR_LOSSES = (0.02, 0.04)

LIGHT = "pcl_bands,c=0.01,scales=1,overlap=True"
TITLES = {
    L1: "L1",
    REORDERED: "L1, another order of the batches",
    UNSHARP: "unsharp masking of L1's output",
    "unsharp,factor=1.4": "unsharp masking of L1's output, 1.4",
    "cosine": "similarity to GT by a trained E_D",
    "cosine,light=True": "similarity to GT by light's bands",
    "feature_l1": "L1 between the maps of a trained E_D",
    "vgg": "L1 between VGG16's maps",
    "dists": "DISTS as a loss",
    "pcl_paper": "PCL, the paper's recipe",
    "pcl_trained": "PCL, E_D trained before and frozen",
    "pcl_random": "PCL, small random E_D",
    "pcl_bands,c=0.01,scales=1": "PCL, bands at every second pixel",
    LIGHT: "PCL, light",
}
"""What a reader is shown, in the order of the rows; other methods are candidates that were looked at on the way."""


class Metric(NamedTuple):
    """How a metric is shown: its title, whether more is better, and whether as a difference or in percent."""

    title: str
    higher_is_better: bool
    unit: str


METRICS = {
    "psnr": Metric("PSNR-Y", True, "dB"),
    "ssim": Metric("SSIM-Y", True, "%"),
    "lpips": Metric("LPIPS-alex", False, "%"),
    "dists": Metric("DISTS", False, "%"),
    "haarpsi": Metric("HaarPSI", True, "%"),
    "mdsi": Metric("MDSI", False, "%"),
}


class Results:
    """The records of one length of runs on one split, with the differences to L1 of the same net and seed."""

    def __init__(self, records: Iterable[Record], on: str, iters: int) -> None:
        self.records = [record for record in records if (record["on"], record["iters"]) == (on, iters)]
        self.records.sort(key=lambda record: _place(record["method"], record["ratio"]))
        self.l1 = {_pair(record): record for record in self.records if record["method"] == L1}
        self.sets = list(dict.fromkeys(name for record in self.records for name in record["scores"]))

    def rows(self) -> list[tuple[str, float | None]]:
        """The methods and ratios, in the order of `TITLES`, other methods after them; L1 left out."""
        rows = dict.fromkeys((record["method"], record["ratio"]) for record in self.records)
        return [row for row in rows if row[0] != L1]

    def differences(self, method: str, ratio: float | None, set_name: str, metric: str) -> dict[Pair, float]:
        """Of every net and seed: in dB for PSNR, else in percent of L1's."""
        return {
            _pair(record): _difference(record, self.l1[_pair(record)], set_name, metric)
            for record in self.records
            if (record["method"], record["ratio"]) == (method, ratio) and _pair(record) in self.l1
        }

    def noise_floor(self, set_name: str, metric: str) -> float:
        """The root mean square of what another order of the batches changes; not a number where that was not run."""
        noise = self.differences(REORDERED, None, set_name, metric).values()
        return math.sqrt(statistics.mean(d * d for d in noise)) if noise else math.nan

    def verdict(self, differences: Mapping[Pair, float], set_name: str, metric: str) -> str:
        """`'better'`, `'worse'` or '' unless all six pairs agree in sign and the mean exceeds twice the noise floor."""
        values = list(differences.values())
        if len(values) < PAIRS_TO_JUDGE or not abs(statistics.mean(values)) > 2 * self.noise_floor(set_name, metric):
            return ""
        signs = {value > 0 for value in values}
        if len(signs) > 1:
            return ""
        return "better" if signs.pop() == METRICS[metric].higher_is_better else "worse"

    def curve(self, name: str, pair: Pair, set_name: str, metric: str) -> Curve:
        """(strength, difference in PSNR, difference in the metric) along a method's strength, from L1's zeros on."""
        points = {0.0: (0.0, 0.0)}
        for method, ratio in self.rows():
            if curve_name(method) == name and pair in (values := self.differences(method, ratio, set_name, metric)):
                psnr = self.differences(method, ratio, set_name, "psnr")[pair]
                points[_strength(method, ratio)] = (psnr, values[pair])
        return [(strength, *points[strength]) for strength in sorted(points)]

    def at_psnr_loss(self, name: str, loss: float, set_name: str, metric: str) -> dict[Pair, float]:
        """The difference in a metric where a method's curve has lost so many dB; of pairs whose curve goes there."""
        found = {pair: _first_crossing(self.curve(name, pair, set_name, metric), -loss) for pair in self.l1}
        return {pair: value for pair, value in found.items() if value is not None}

    def curves(self) -> list[str]:
        """The names of the curves."""
        return list(dict.fromkeys(curve_name(method) for method, _ in self.rows() if method != REORDERED))


def curve_name(method: str) -> str:
    """The method, without what goes along its curve."""
    return UNSHARP if parse_method(method)[0] == UNSHARP else method


def title(method: str) -> str:
    """What a method or curve is called in tables and pictures."""
    return TITLES.get(method, method)


def _place(method: str, ratio: float | None) -> tuple[int, float]:
    order = list(TITLES)
    return (order.index(method) if method in TITLES else len(order), ratio or 0.0)


def _strength(method: str, ratio: float | None) -> float:
    return float(parse_method(method)[1]["factor"]) - 1 if ratio is None else ratio


def _pair(record: Record) -> Pair:
    return record["net"], record["seed"]


def _difference(record: Record, base: Record, set_name: str, metric: str) -> float:
    value, of_l1 = (float(each["scores"][set_name][metric]) for each in (record, base))
    return value - of_l1 if METRICS[metric].unit == "dB" else 100 * (value / of_l1 - 1)


def _first_crossing(curve: Curve, psnr: float) -> float | None:
    """The metric where PSNR first falls to `psnr`, below 0; None where it does not.

    Both are interpolated along the strength, monotone and smooth: PSNR falls with its square, the metric in a line, so
    that a straight line between two points would flatter whatever has a point near.
    """
    if len(curve) < 2:
        return None
    strengths, *values = np.array(curve).T
    fine = np.linspace(0, strengths[-1], 2001)
    psnrs, metrics = (PchipInterpolator(strengths, value)(fine) for value in values)
    below = np.flatnonzero(psnrs <= psnr + 1e-9)
    return float(metrics[below[0]]) if len(below) else None


# Text


def describe(results: Results, sets: Iterable[str], every: bool = False) -> str:
    """The tables of test sets, Markdown.

    Args:
        results: what they are of.
        sets: the names.
        every: also the methods that have no title.
    """
    pairs = sorted(results.l1)
    parts = [
        f"Pairs of net and seed with L1: {', '.join(f'{net} {seed}' for net, seed in pairs)}. Mean difference to L1 of "
        "the same net and seed, in brackets the standard deviation over the pairs. **Bold**: better, _italic_: worse, "
        f"where all {PAIRS_TO_JUDGE} pairs agree in sign and the mean exceeds twice the noise floor. † shares its "
        "backbone, VGG16, with the loss."
    ]
    for set_name in sets:
        tables = (make(results, set_name, every) for make in (differences_table, equal_psnr_table))
        parts += [f"### {set_name}", *filter(None, tables)]
    return "\n\n".join(parts)


def differences_table(results: Results, set_name: str, every: bool = False) -> str:
    """A row for each method and ratio: what it changes against L1."""
    header = ["second loss", "r", "pairs", *(f"{m.title}, {m.unit}" for m in METRICS.values()), "CPU s/step"]
    absolute = [_mean(record["scores"][set_name][metric] for record in results.l1.values()) for metric in METRICS]
    rows = [["none: the values of L1", "", str(len(results.l1)), *(f"{value:.4f}" for value in absolute)]]
    rows[0].append(_seconds(results, L1, None))
    floor = [results.noise_floor(set_name, metric) for metric in METRICS]
    rows.append(["noise floor: the next row's RMS", "", "", *(f"{value:.3f}" for value in floor), ""])
    for method, ratio in results.rows():
        if not every and method not in TITLES:
            continue
        cells = [title(method), "" if ratio is None else f"{ratio:g}"]
        cells.append(str(len(results.differences(method, ratio, set_name, "psnr"))))
        for metric in METRICS:
            cells.append(_cell(results, results.differences(method, ratio, set_name, metric), method, set_name, metric))
        rows.append([*cells, _seconds(results, method, ratio)])
    return table([header, *rows])


def equal_psnr_table(results: Results, set_name: str, every: bool = False) -> str:
    """A row for each curve and net: LPIPS and DISTS where the same PSNR is lost; empty where no curve goes there."""
    columns = [(metric, loss) for metric in ("lpips", "dists") for loss in PSNR_LOSSES]
    header = ["at equal PSNR", "net", *(f"{METRICS[metric].title} at -{loss:g} dB" for metric, loss in columns)]
    rows = [header]
    for name in results.curves():
        if not every and name not in TITLES:
            continue
        at_loss = [results.at_psnr_loss(name, loss, set_name, metric) for metric, loss in columns]
        for net in sorted({net for net, _ in results.l1}):
            cells = []
            for (metric, _), found in zip(columns, at_loss, strict=True):
                values = {pair: value for pair, value in found.items() if pair[0] == net}
                cells.append(_cell(results, values, name, set_name, metric) + (f", n={len(values)}" if values else ""))
            if any(cell != "-" for cell in cells):
                rows.append([title(name), net, *cells])
    return table(rows) if len(rows) > 1 else ""


def _cell(results: Results, values: Mapping[Pair, float], method: str, set_name: str, metric: str) -> str:
    if not values:
        return "-"
    digits = 3 if metric in ("psnr", "ssim") else 2
    spread = f"{statistics.stdev(values.values()):.{digits}f}" if len(values) > 1 else "-"
    shared = "†" if metric == "dists" and parse_method(method)[0] in VGG16_LOSSES else ""
    text = f"{_mean(values.values()):+.{digits}f} ({spread}){shared}"
    mark = {"better": "**", "worse": "_", "": ""}[results.verdict(values, set_name, metric)]
    return f"{mark}{text}{mark}"


def _seconds(results: Results, method: str, ratio: float | None) -> str:
    runs = [record for record in results.records if (record["method"], record["ratio"]) == (method, ratio)]
    seconds = _mean(record.get("seconds_per_step", 0.0) for record in runs)
    return f"{seconds:.3f}" if seconds else ""


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


# Picture


def draw(results: Results, file: Path, methods: Sequence[str], set_name: str) -> None:
    """The plane of distortion and perception: a curve a method, a column a net, bars for the spread over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nets = sorted({net for net, _ in results.l1})
    shown = ("lpips", "dists")
    figure, axes = pyplot.subplots(len(shown), len(nets), figsize=(6 * len(nets), 8.5), squeeze=False, sharex="col")
    colours = pyplot.get_cmap("tab20").colors
    for row, metric in enumerate(shown):
        for column, net in enumerate(nets):
            axis = axes[row][column]
            pairs = [pair for pair in results.l1 if pair[0] == net]
            for index, name in enumerate(methods or [name for name in results.curves() if name in TITLES]):
                curves = [results.curve(name, pair, set_name, metric) for pair in pairs]
                length = max(map(len, curves))
                points = list(zip(*(curve for curve in curves if len(curve) == length > 1), strict=True))
                if not points:
                    continue
                (xs, x_bars), (ys, y_bars) = (
                    _means_and_spreads([[p[i] for p in point] for point in points]) for i in (1, 2)
                )
                colour = "black" if name == LIGHT else colours[index % len(colours)]
                style = {"color": colour, "marker": "osD^v"[index % 5], "markersize": 4}
                dash = "--" if name == UNSHARP else "-"
                axis.errorbar(
                    xs, ys, y_bars, x_bars, label=title(name), linestyle=dash, capsize=2, linewidth=1, **style
                )
            axis.axhline(0, color="grey", linewidth=0.5)
            axis.axvline(0, color="grey", linewidth=0.5)
            axis.set_title(f"{net}, {set_name}")
            axis.set_xlabel("PSNR-Y minus L1's, dB (right is better)")
            axis.set_ylabel(f"{METRICS[metric].title} against L1's, % (down is better)")
    legend = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _means_and_spreads(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    spreads = [statistics.stdev(point) if len(point) > 1 else 0.0 for point in points]
    return [statistics.mean(point) for point in points], spreads
