"""The report's numbers: means, gains and the paper's rows, as tables and as text."""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import _markdown
from . import paper as paper_tables
from .measure import METRICS, Net, Score

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
    images: int | None
    note: str


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
    pairs = baselines(nets)
    order: list[str] = []
    for net in nets:
        if net not in pairs:
            order += [net, *(pcl for pcl, base in pairs.items() if base == net)]
    order += [net for net in nets if net not in order]  # X+PCL+PCL and the like

    counts: dict[tuple[str, str], int] = {}
    means: dict[tuple[str, str, str], float] = {}
    for set_name in sets:
        for metric in METRICS:
            of_net: dict[str, dict[str, float]] = {net: {} for net in nets}
            for score in scores:
                if score.set_name == set_name and getattr(score, metric) is not None:
                    of_net[score.net][score.image] = getattr(score, metric)
            common = set.intersection(*map(set, of_net.values()))
            if common:
                counts[set_name, metric] = len(common)
                for net, values in of_net.items():
                    means[net, set_name, metric] = statistics.fmean(v for image, v in values.items() if image in common)

    def ours(net: str, base: str | None = None) -> Iterator[Entry]:
        for (set_name, metric), count in counts.items():
            value = means[net, set_name, metric] - (means[base, set_name, metric] if base else 0)
            yield Entry("ours", net, "gain" if base else "mean", set_name, metric, value, count, "")

    entries: list[Entry] = []
    for net in order:
        entries += [*ours(net), *_of_the_paper(net, sets, scale, "mean")]
        if net in pairs:
            entries += [*ours(net, pairs[net]), *_of_the_paper(net, sets, scale, "gain")]
    return entries


def _of_the_paper(net: str, sets: Sequence[str], scale: int, kind: str) -> Iterator[Entry]:
    name, printed, misprinted = paper_tables.net_name(net), paper_tables.value, paper_tables.MISPRINTED_VALUES
    if name is None or scale != paper_tables.SCALE:
        return
    if kind == "gain":
        name = name.removesuffix(paper_tables.PCL)
        printed, misprinted = paper_tables.gain, paper_tables.MISPRINTED_GAINS
    for set_name, metric in itertools.product(sets, METRICS):
        cell = paper_tables.Cell(name, paper_tables.set_name(set_name) or "", metric)
        value = printed(cell)
        if value is not None:
            yield Entry("paper", net, kind, set_name, metric, value, None, misprinted.get(cell, ""))


def format_table(entries: Sequence[Entry], sets: Sequence[str], metrics: Sequence[str], notes: dict[str, str]) -> str:
    """A Markdown table of `tabulate`'s entries with these metrics under each set.

    `notes` has the footnote marks by their text; new ones are added.
    """
    columns = [(set_name, metric) for set_name in sets for metric in metrics]
    rows: dict[tuple[str, str, str], dict[tuple[str, str], Entry]] = {}
    for entry in entries:
        if entry.metric in metrics:
            rows.setdefault(entry[:3], {})[entry.set_name, entry.metric] = entry
    table = [["Method", *(f"{set_name} {metric.upper()} {BETTER[metric]}" for set_name, metric in columns)]]
    for (source, net, kind), cells in rows.items():
        label = net if kind == "mean" else f"gain of {net}"
        missing = "n/a" if source == "ours" else ""
        numbers = [_cell(cells[column], notes) if column in cells else missing for column in columns]
        table.append([label if source == "ours" else f"*{label}, paper*", *numbers])
    return _markdown.table(table)


def _cell(entry: Entry, notes: dict[str, str]) -> str:
    digits = DIGITS[entry.metric]
    if entry.kind == "gain":
        # Ours with one digit more than the means, since it is no difference of rounded numbers.
        text = f"{entry.value:+.{digits + (entry.source == 'ours')}f}"
    else:
        text = f"{entry.value:.{digits}f}"
    return text + notes.setdefault(entry.note, f"[^{len(notes) + 1}]") if entry.note else text


def report_text(
    nets: Sequence[Net],
    sets: Sequence[str],
    scores: Sequence[Score],
    entries: Sequence[Entry],
    scale: int,
    no_lpips: str,
) -> str:
    """What `report.md` says: both tables, their notes, and how it was measured.

    `entries` are `tabulate`'s of these nets, sets and scores; `no_lpips` says why there is no LPIPS, and is empty if
    there is.
    """
    notes: dict[str, str] = {}
    parts = [
        f"# Super-resolution x{scale}",
        "## PSNR and SSIM (the form of the paper's Table 2)",
        format_table(entries, sets, ("psnr", "ssim"), notes),
        "## NIQE and LPIPS (the form of the paper's Table 3)",
        format_table(entries, sets, ("niqe", "lpips"), notes),
    ]
    if notes:
        parts.append("\n".join(f"{mark}: {text}." for text, mark in notes.items()))
    paper = [entry for entry in entries if entry.source == "paper"]
    points = {
        f"PSNR, SSIM and NIQE on Y, as BasicSR has them, without {scale} pixels of each border.": True,
        "LPIPS: AlexNet, of the whole image.": True,
        "Each number is the mean over the images of the set. A gain is PCL minus baseline, from unrounded means: above "
        "0 is better for PSNR and SSIM, below 0 for NIQE and LPIPS.": True,
        f"LPIPS is n/a: {no_lpips}.": no_lpips,
        **dict.fromkeys(_missing_niqe(sets, scores, scale), True),
        "Rows in italics are printed in the paper; their gains are computed from its printed values, also in "
        "Table 3, which has no such rows.": paper,
        "The paper's Table 3 lists Set14 before Set5; here the sets stand in the order of the call.": any(
            entry.metric == "lpips" for entry in paper
        ),
        "In the paper, too, HAN's LPIPS gets worse with PCL, on all five sets.": any(
            (entry.metric, entry.kind) == ("lpips", "gain") and entry.net.lower().startswith("han") for entry in paper
        ),
        **{f"{net.name}: {net.source}.": True for net in nets},
    }
    parts += ["## How it was measured", "\n".join(f"- {text}" for text, applies in points.items() if applies)]
    return "\n\n".join(parts) + "\n"


def _missing_niqe(sets: Sequence[str], scores: Sequence[Score], scale: int) -> Iterator[str]:
    for set_name in sets:
        images = {score.image for score in scores if score.set_name == set_name}
        missing = dict.fromkeys(s.image for s in scores if s.set_name == set_name and s.niqe is None)
        if missing:
            which = "n/a" if len(missing) == len(images) else f"the mean without {', '.join(missing)}"
            yield (
                f"NIQE of {set_name} is {which}: it needs two blocks of 96x96 pixels within the border of {scale}, and "
                "not all flat."
            )


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows of the same keys, which are the head."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write the numbers of every image: net, set, image and metrics."""
    write_csv(path, ({k: v for k, v in score._asdict().items() if k != "sr"} for score in scores))
