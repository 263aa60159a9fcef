"""The report's means and gains as tables, and its picture in the form of the paper's Figure 2."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .._images import read_image
from .._pictures import Panel, Region, best_region
from .measure import BICUBIC, METRICS, Pair, Score

DIGITS = {"psnr": 2, "ssim": 4, "niqe": 3, "lpips": 4}
BETTER = {"psnr": "↑", "ssim": "↑", "niqe": "↓", "lpips": "↓"}
NO_LPIPS = "LPIPS is n/a: pip install 'pcl_loss[metrics]', and `--lpips always` downloads AlexNet's weights (233 MB)."
CROP = 64  # side of the figure's crops

Cells = dict[tuple[str, str], float]  # by set and metric
Rows = dict[tuple[str, str], Cells]
"""By net and kind: 'mean', or 'gain', its difference from its baseline."""


def baselines(names: Sequence[str]) -> dict[str, str]:
    """For each `X+PCL` and `X_PCL` among the names its baseline `X`, if that is among them too."""
    return {name: name[:-4] for name in names if name[-4:].lower() in ("+pcl", "_pcl") and name[:-4] in names}


def tabulate(nets: Sequence[str], sets: Sequence[str], scores: Sequence[Score]) -> Rows:
    """The rows of the tables in their order: each net, and after a pair its gain.

    A mean is taken over the images that have the metric for every net, so that all nets are compared on the same.
    """
    means: dict[str, Cells] = {net: {} for net in nets}
    for set_name, metric in itertools.product(sets, METRICS):
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
        rows[net, "mean"] = means[net]
        if net in pairs:
            rows[net, "gain"] = {c: value - means[pairs[net]][c] for c, value in means[net].items()}
    return rows


def format_table(rows: Rows, sets: Sequence[str], metrics: Sequence[str]) -> str:
    """A Markdown table of `tabulate`'s rows with these metrics under each set."""
    columns = list(itertools.product(sets, metrics))
    table = [["Method", *(f"{set_name} {metric.upper()} {BETTER[metric]}" for set_name, metric in columns)]]
    for (net, kind), cells in rows.items():
        # A gain has one digit more than the means, since it is no difference of rounded numbers.
        sign, label, more = ("+", f"gain of {net}", 1) if kind == "gain" else ("", net, 0)
        texts = [f"{cells[c]:{sign}.{DIGITS[c[1]] + more}f}" if c in cells else "n/a" for c in columns]
        table.append([label, *texts])
    return markdown_table(table)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of equally long rows, the first being the head; aligned as text too, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]))
    return "\n".join(lines)


def report_text(rows: Rows, sets: Sequence[str], scores: Sequence[Score], scale: int, has_lpips: bool) -> str:
    """What `report.md` says: both tables, and how it was measured."""
    points = [
        f"PSNR, SSIM and NIQE on Y, as BasicSR has them, without {scale} pixels of each border.",
        "LPIPS: AlexNet, of the whole image." if has_lpips else NO_LPIPS,
        "Each number is the mean over the images of the set. A gain is PCL minus baseline, from unrounded means: above "
        "0 is better for PSNR and SSIM, below 0 for NIQE and LPIPS.",
    ]
    missing = dict.fromkeys(f"{s.pair.set_name}/{s.pair.name}" for s in scores if s.values["niqe"] is None)
    if missing:
        points.append(f"NIQE is without {', '.join(missing)}: too small for two blocks of 96x96 pixels, or flat.")
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


def crops_of(scores: Sequence[Score], scale: int) -> list[tuple[Pair, Region]]:
    """Of each set the image with the lowest PSNR of bicubic, and there the part where bicubic is furthest from HR.

    No trained net has a say in it, so that no net can be made to look good or bad by the choice.
    """
    bicubic = [score for score in scores if score.net == BICUBIC]
    crops = []
    for set_name in dict.fromkeys(score.pair.set_name for score in bicubic):
        worst = min((s for s in bicubic if s.pair.set_name == set_name), key=lambda score: score.values["psnr"] or 0)
        lost = np.abs(worst.pair.load(scale)[0].astype(np.float64) - read_image(worst.sr)).mean(axis=2)
        crops.append((worst.pair, best_region(lost, min(CROP, *lost.shape))))
    return crops


def figure_rows(nets: Sequence[str], scores: Sequence[Score], scale: int) -> list[list[Panel]]:
    """A row per crop with HR, bicubic, baseline and PCL, for each pair of nets; all nets where there is no pair."""
    couples: list[tuple[str, ...]] = [(base, pcl) for pcl, base in baselines(nets).items()]
    known = {(score.net, score.pair): score for score in scores}
    rows = []
    for columns in couples or [tuple(net for net in nets if net != BICUBIC)]:
        for pair, region in crops_of(scores, scale):
            caption = f"{pair.set_name}/{pair.name}\nPSNR / LPIPS of the whole image"
            row = [Panel(region.cut(pair.load(scale)[0])[..., ::-1], "HR", caption)]
            for net in (BICUBIC, *columns):
                score = known[net, pair]
                lpips = "n/a" if score.values["lpips"] is None else f"{score.values['lpips']:.4f}"
                caption = f"{score.values['psnr']:.2f} dB / {lpips}"
                row.append(Panel(region.cut(read_image(score.sr))[..., ::-1], net, caption))
            rows.append(row)
    return rows
