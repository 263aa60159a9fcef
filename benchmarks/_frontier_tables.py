"""The tables and the picture of `frontier.py`, from its results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _frontier_methods import L1, REORDERED, UNSHARP, VGG16_LOSSES, parse_method
from _step_tables import table
from scipy.interpolate import PchipInterpolator

Record = Mapping[str, Any]
Pair = tuple[str, int]
"""A net's name and a seed: what two runs must share to be compared."""
Curve = list[tuple[float, float, float]]

PAIRS_TO_JUDGE = 6
PSNR_LOSSES = (0.01, 0.02, 0.04)


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
        self.l1 = {_pair(record): record for record in self.records if record["method"] == L1}
        self.sets = list(dict.fromkeys(name for record in self.records for name in record["scores"]))

    def rows(self) -> list[tuple[str, float | None]]:
        """The methods and ratios, in the order of their first record, L1 left out."""
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


def describe(results: Results) -> str:
    """All tables, Markdown."""
    pairs = sorted(results.l1)
    parts = [
        f"Pairs of net and seed with L1: {', '.join(f'{net} {seed}' for net, seed in pairs)}. Mean difference to L1 of "
        "the same net and seed, in brackets the standard deviation over the pairs. **Bold**: better, _italic_: worse, "
        f"where all {PAIRS_TO_JUDGE} pairs agree in sign and the mean exceeds twice the noise floor. † shares its "
        "backbone, VGG16, with the loss."
    ]
    for set_name in results.sets:
        parts += [f"### {set_name}", _differences_table(results, set_name), _equal_psnr_table(results, set_name)]
    return "\n\n".join(parts)


def _differences_table(results: Results, set_name: str) -> str:
    header = ["method", "ratio", "pairs", *(f"{m.title}, {m.unit}" for m in METRICS.values()), "CPU s/step", "alpha"]
    absolute = [_mean(record["scores"][set_name][metric] for record in results.l1.values()) for metric in METRICS]
    rows = [["l1 (its values)", "", str(len(results.l1)), *(f"{value:.4f}" for value in absolute)]]
    rows[0] += [_log_mean(results, L1, None, "seconds_per_step"), ""]
    floor = [results.noise_floor(set_name, metric) for metric in METRICS]
    rows.append(["noise floor", "", "", *(f"{value:.3f}" for value in floor), "", ""])
    for method, ratio in results.rows():
        cells = [method, "" if ratio is None else f"{ratio:g}"]
        cells.append(str(len(results.differences(method, ratio, set_name, "psnr"))))
        for metric in METRICS:
            cells.append(_cell(results, results.differences(method, ratio, set_name, metric), method, set_name, metric))
        cells += [_log_mean(results, method, ratio, name) for name in ("seconds_per_step", "alpha")]
        rows.append(cells)
    return table(header, rows)


def _equal_psnr_table(results: Results, set_name: str) -> str:
    columns = [(metric, loss) for metric in ("lpips", "dists") for loss in PSNR_LOSSES]
    header = ["at equal PSNR", "net", *(f"{METRICS[metric].title} at -{loss:g} dB" for metric, loss in columns)]
    nets = sorted({net for net, _ in results.l1})
    rows = []
    for name in results.curves():
        at_loss = [results.at_psnr_loss(name, loss, set_name, metric) for metric, loss in columns]
        for title, of in [*((net, [net]) for net in nets), ("all", nets)]:
            cells = []
            for (metric, _), found in zip(columns, at_loss, strict=True):
                values = {pair: value for pair, value in found.items() if pair[0] in of}
                cells.append(_cell(results, values, name, set_name, metric) + (f", n={len(values)}" if values else ""))
            rows.append([name, title, *cells])
    return table(header, (row for row in rows if any(cell != "-" for cell in row[2:])))


def _cell(results: Results, values: Mapping[Pair, float], method: str, set_name: str, metric: str) -> str:
    if not values:
        return "-"
    digits = 3 if metric in ("psnr", "ssim") else 2
    spread = f"{statistics.stdev(values.values()):.{digits}f}" if len(values) > 1 else "-"
    shared = "†" if metric == "dists" and parse_method(method)[0] in VGG16_LOSSES else ""
    text = f"{_mean(values.values()):+.{digits}f} ({spread}){shared}"
    mark = {"better": "**", "worse": "_", "": ""}[results.verdict(values, set_name, metric)]
    return f"{mark}{text}{mark}"


def _log_mean(results: Results, method: str, ratio: float | None, name: str) -> str:
    runs = [record for record in results.records if (record["method"], record["ratio"]) == (method, ratio)]
    values = [record[name] for record in runs if record.get(name) is not None]
    return f"{_mean(values):.3g}" if values else ""


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
            for index, name in enumerate(methods or results.curves()):
                curves = [results.curve(name, pair, set_name, metric) for pair in pairs]
                length = max(map(len, curves))
                points = list(zip(*(curve for curve in curves if len(curve) == length > 1), strict=True))
                if not points:
                    continue
                (xs, x_bars), (ys, y_bars) = (
                    _means_and_spreads([[p[i] for p in point] for point in points]) for i in (1, 2)
                )
                style = {"color": colours[index % len(colours)], "marker": "osD^v"[index % 5], "markersize": 4}
                dash = "--" if name == UNSHARP else "-"
                axis.errorbar(xs, ys, y_bars, x_bars, label=name, linestyle=dash, capsize=2, linewidth=1, **style)
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
