"""The report's numbers: means, gains and the paper's rows, as tables and as text."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import _markdown
from . import paper
from .measure import METRICS, Score

DIGITS = {"psnr": 2, "ssim": 4, "niqe": 3, "lpips": 4}
BETTER = {"psnr": "↑", "ssim": "↑", "niqe": "↓", "lpips": "↓"}


class Entry(NamedTuple):
    """A number of the tables: of a net (`kind` 'mean') or of its difference from its baseline ('gain')."""

    source: str  # 'ours' or 'paper'
    net: str
    kind: str
    set_name: str
    metric: str
    value: float


def baselines(names: Sequence[str]) -> dict[str, str]:
    """For each `X+PCL` and `X_PCL` among the names its baseline `X`, if that is among them too."""
    by_lower = {name.lower(): name for name in names}
    pcl = [name for name in names if name.lower().endswith(("+pcl", "_pcl")) and name[:-4].lower() in by_lower]
    return {name: by_lower[name[:-4].lower()] for name in pcl}


def tabulate(nets: Sequence[str], sets: Sequence[str], scores: Sequence[Score], scale: int) -> list[Entry]:
    """The numbers of the tables in their order: each net, the paper's row of it; after a pair its gain.

    A mean is taken over the images that have the metric for every net, so that all nets are compared on the same.
    Gains are differences of unrounded means.
    """
    means: dict[tuple[str, str, str], float] = {}
    for set_name, metric in itertools.product(sets, METRICS):
        of_net: dict[str, dict[str, float]] = {net: {} for net in nets}
        for score in scores:
            measured = score.values[metric]
            if score.pair.set_name == set_name and measured is not None:
                of_net[score.net][score.pair.name] = measured
        common = set.intersection(*map(set, of_net.values()))
        for net, values in of_net.items() if common else ():
            means[net, set_name, metric] = statistics.fmean(values[image] for image in common)
    pairs = baselines(nets)

    def row(net: str, kind: str) -> Iterator[Entry]:
        for name, set_name, metric in means:
            if name == net:
                minus = means[pairs[net], set_name, metric] if kind == "gain" else 0
                yield Entry("ours", net, kind, set_name, metric, means[net, set_name, metric] - minus)
        printed = paper.gain if kind == "gain" else paper.value
        for set_name, metric in itertools.product(sets, METRICS) if scale == paper.SCALE else ():
            number = printed(net, set_name, metric)
            if number is not None:
                yield Entry("paper", net, kind, set_name, metric, number)

    # Each net with PCL stands below its baseline.
    order = sorted(nets, key=lambda net: (nets.index(pairs.get(net, net)), net in pairs))
    return [
        entry
        for net in order
        for kind in ("mean", "gain")
        if kind == "mean" or net in pairs
        for entry in row(net, kind)
    ]


def format_table(entries: Sequence[Entry], sets: Sequence[str], metrics: Sequence[str]) -> str:
    """A Markdown table of `tabulate`'s entries with these metrics under each set."""
    columns = [(set_name, metric) for set_name in sets for metric in metrics]
    rows: dict[tuple[str, str, str], dict[tuple[str, str], str]] = {}
    for source, net, kind, set_name, metric, value in entries:
        if metric in metrics:
            # Our gains have one digit more than the means, since they are no differences of rounded numbers.
            digits = DIGITS[metric] + (kind == "gain" and source == "ours")
            text = f"{value:+.{digits}f}" if kind == "gain" else f"{value:.{digits}f}"
            rows.setdefault((source, net, kind), {})[set_name, metric] = text
    table = [["Method", *(f"{set_name} {metric.upper()} {BETTER[metric]}" for set_name, metric in columns)]]
    for (source, net, kind), cells in rows.items():
        label = net if kind == "mean" else f"gain of {net}"
        missing = "n/a" if source == "ours" else ""
        table.append([label if source == "ours" else f"*{label}, paper*", *(cells.get(c, missing) for c in columns)])
    return _markdown.table(table)


def report_text(entries: Sequence[Entry], sets: Sequence[str], scores: Sequence[Score], scale: int, lpips: str) -> str:
    """What `report.md` says: both tables, and how it was measured; `lpips` says why there is none, or nothing."""
    points = [
        f"PSNR, SSIM and NIQE on Y, as BasicSR has them, without {scale} pixels of each border.",
        f"LPIPS is n/a: {lpips}." if lpips else "LPIPS: AlexNet, of the whole image.",
        "Each number is the mean over the images of the set. A gain is PCL minus baseline, from unrounded means: above "
        "0 is better for PSNR and SSIM, below 0 for NIQE and LPIPS.",
    ]
    missing = dict.fromkeys(f"{s.pair.set_name}/{s.pair.name}" for s in scores if s.values["niqe"] is None)
    if missing:
        points.append(
            f"NIQE is without {', '.join(missing)}: it needs two blocks of 96x96 pixels within the border of {scale}, "
            "and not all flat."
        )
    if any(entry.source == "paper" for entry in entries):
        points.append("Rows in italics are printed in the paper; their gains are computed from its printed values.")
        points.append(paper.MISPRINTS)
    parts = [
        f"# Super-resolution x{scale}",
        "## PSNR and SSIM (the form of the paper's Table 2)",
        format_table(entries, sets, ("psnr", "ssim")),
        "## NIQE and LPIPS (the form of the paper's Table 3)",
        format_table(entries, sets, ("niqe", "lpips")),
        "## How it was measured",
        "\n".join(f"- {point}" for point in points),
    ]
    return "\n\n".join(parts) + "\n"


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows of the same keys, which are the head."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
