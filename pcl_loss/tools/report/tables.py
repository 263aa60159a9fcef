"""The report's numbers: means, gains and the paper's rows, as tables and as text."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .. import _markdown
from . import paper
from .measure import METRICS, Score

DIGITS = {"psnr": 2, "ssim": 4, "niqe": 3, "lpips": 4}
BETTER = {"psnr": "↑", "ssim": "↑", "niqe": "↓", "lpips": "↓"}

Cells = dict[tuple[str, str], float]  # by set and metric
Rows = dict[tuple[str, str, str], Cells]
"""By source ('ours' or 'paper'), net and kind: 'mean', or 'gain', its difference from its baseline."""


def baselines(names: Sequence[str]) -> dict[str, str]:
    """For each `X+PCL` and `X_PCL` among the names its baseline `X`, if that is among them too."""
    by_lower = {name.lower(): name for name in names}
    pcl = [name for name in names if name.lower().endswith(("+pcl", "_pcl")) and name[:-4].lower() in by_lower]
    return {name: by_lower[name[:-4].lower()] for name in pcl}


def tabulate(nets: Sequence[str], sets: Sequence[str], scores: Sequence[Score], scale: int) -> Rows:
    """The numbers of the tables in their order: each net, the paper's row of it; after a pair its gain.

    A mean is taken over the images that have the metric for every net, so that all nets are compared on the same.
    """
    columns = list(itertools.product(sets, METRICS))
    means: dict[str, Cells] = {net: {} for net in nets}
    for set_name, metric in columns:
        values: dict[str, dict[str, float]] = {net: {} for net in nets}
        for score in scores:
            value = score.values[metric]
            if score.pair.set_name == set_name and value is not None:
                values[score.net][score.pair.name] = value
        common = set.intersection(*map(set, values.values()))
        for net in nets if common else ():
            means[net][set_name, metric] = statistics.fmean(values[net][image] for image in common)

    pairs, rows = baselines(nets), Rows()
    # Each net with PCL stands below its baseline.
    for net in sorted(nets, key=lambda net: (nets.index(pairs.get(net, net)), net in pairs)):
        rows["ours", net, "mean"] = means[net]
        rows["paper", net, "mean"] = {c: v for c in columns if (v := paper.value(net, *c)) is not None}
        if net in pairs:
            rows["ours", net, "gain"] = {c: value - means[pairs[net]][c] for c, value in means[net].items()}
            rows["paper", net, "gain"] = {c: v for c in columns if (v := paper.gain(net, *c)) is not None}
    return {key: cells for key, cells in rows.items() if key[0] == "ours" or (scale == paper.SCALE and cells)}


def format_table(rows: Rows, sets: Sequence[str], metrics: Sequence[str]) -> str:
    """A Markdown table of `tabulate`'s rows with these metrics under each set."""
    columns = list(itertools.product(sets, metrics))
    table = [["Method", *(f"{set_name} {metric.upper()} {BETTER[metric]}" for set_name, metric in columns)]]
    for (source, net, kind), cells in rows.items():
        is_ours, sign = source == "ours", "+" if kind == "gain" else ""
        label = f"gain of {net}" if sign else net
        # Our gains have one digit more than the means, since they are no differences of rounded numbers.
        digits = {metric: DIGITS[metric] + bool(sign and is_ours) for metric in metrics}
        missing = "n/a" if is_ours else ""
        texts = [f"{cells[c]:{sign}.{digits[c[1]]}f}" if c in cells else missing for c in columns]
        if any(texts):
            table.append([label if is_ours else f"*{label}, paper*", *texts])
    return _markdown.table(table)


def report_text(rows: Rows, sets: Sequence[str], scores: Sequence[Score], scale: int, no_lpips: str) -> str:
    """What `report.md` says: both tables, and how it was measured; `no_lpips` says why there is none."""
    points = [
        f"PSNR, SSIM and NIQE on Y, as BasicSR has them, without {scale} pixels of each border.",
        f"LPIPS is n/a: {no_lpips}." if no_lpips else "LPIPS: AlexNet, of the whole image.",
        "Each number is the mean over the images of the set. A gain is PCL minus baseline, from unrounded means: above "
        "0 is better for PSNR and SSIM, below 0 for NIQE and LPIPS.",
    ]
    missing = dict.fromkeys(f"{s.pair.set_name}/{s.pair.name}" for s in scores if s.values["niqe"] is None)
    if missing:
        points.append(f"NIQE is without {', '.join(missing)}: too small for two blocks of 96x96 pixels, or flat.")
    if any(source == "paper" for source, _, _ in rows):
        points.append("Rows in italics are printed in the paper; their gains are computed from its printed values.")
        points.append(paper.MISPRINTS)
    parts = [
        f"# Super-resolution x{scale}",
        "## PSNR and SSIM (the form of the paper's Table 2)",
        format_table(rows, sets, ("psnr", "ssim")),
        "## NIQE and LPIPS (the form of the paper's Table 3)",
        format_table(rows, sets, ("niqe", "lpips")),
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
