"""`pcl-loss report`: trained nets on test sets, in the form of the paper's Tables 2 and 3 and Figure 2.

```
OUT/report.md               both tables, with the gains of PCL and the paper's own rows, and how it was measured
OUT/report.csv              every number of the tables, unrounded, one a line
OUT/images.csv              the numbers of every image
OUT/figure.png              HR, bicubic, baseline and PCL crops
OUT/results/NET/SET/        what is kept for the next run: NAME.png (SR) and NAME.json (its numbers)
```

A net called `X+PCL` or `X_PCL` is compared with the net `X`. Numbers are measured again when the checkpoint, its
`network_g`, the image or the scale has changed, and only then.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import os
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..._checks import check_count
from .._files import read_image
from . import figure as report_figure
from . import paper as paper_tables
from .measure import (
    BICUBIC,
    METRICS,
    PARAM_KEYS,
    Measured,
    Net,
    Pair,
    Score,
    by_image,
    find_net,
    find_pairs,
    find_results,
    load_pair,
    lpips_missing,
    measure_all,
)

PathLike = str | os.PathLike[str]

DIGITS = {"psnr": 2, "ssim": 4, "niqe": 3, "lpips": 4}
CROP = 64
"""Side of the crops in the figure, if none is given."""


class Crop(NamedTuple):
    """What the figure shows of an image, in HR pixels."""

    set_name: str
    image: str
    top: int
    left: int
    size: int


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


@dataclass(frozen=True)
class Report:
    """What `make_report` did.

    Attributes:
        entries: every number of the tables.
        scores: of every net on every image.
        text: of `report.md`.
        made: images that were measured now.
        kept: images that had been measured before.
    """

    entries: list[Entry]
    scores: list[Score]
    text: str
    made: int
    kept: int


# --- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss report`."""
    add = parser.add_argument
    add(
        "--net",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a checkpoint (net_g_*.pth), or a folder with SR images in SET/; NAME+PCL is compared with NAME. Repeat",
    )
    add(
        "--set",
        action="append",
        required=True,
        metavar="NAME=HR[:LR]",
        help="folders of a test set; without LR, it is made from HR by MATLAB-like bicubic. Repeat",
    )
    add("--scale", type=int, default=4, metavar="S", help="2 to 8 (default 4, for which the paper has numbers)")
    add("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    add(
        "--opt",
        action="append",
        default=[],
        metavar="[NAME=]FILE.yml",
        help="a YAML with the net's network_g; without NAME, for all nets whose checkpoint has no training YAML beside",
    )
    add(
        "--param-key",
        choices=("auto", *PARAM_KEYS),
        default="auto",
        help="which weights of a checkpoint; auto: params_ema if it has them, as BasicSR's validation does",
    )
    add("--device", help="of the nets, such as cuda:1 or cpu (default: a GPU if there is one)")
    add(
        "--lpips",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: if its package and weights are at hand; always: download the weights if need be",
    )
    add(
        "--crop",
        action="append",
        default=[],
        metavar="SET/IMAGE:TOP,LEFT,SIZE",
        help="a crop of the figure (default: of each set the one where bicubic is furthest from HR). Repeat",
    )


def run(args: argparse.Namespace) -> int:
    """Report as the flags say: the tables to standard output, all else to standard error.

    Returns:
        0, or 130 if it was interrupted.
    """
    nets = {name: Path(path) for name, path in _named("--net", args.net, "NAME=PATH").items()}
    sets = {name: _folders(value) for name, value in _named("--set", args.set, "NAME=HRDIR").items()}
    # A file name may hold an equals sign: a flag names a net only if there is one of that name.
    plain = [value for value in args.opt if value.partition("=")[0] not in nets or "=" not in value]
    if len(plain) > 1:
        raise ValueError(f"--opt is given {len(plain)} times without the name of a --net: {', '.join(plain)}")
    named = _named("--opt", [value for value in args.opt if value not in plain], "NAME=FILE.yml")
    try:
        report = make_report(
            nets,
            sets,
            args.out,
            scale=args.scale,
            opts={name: Path(path) for name, path in named.items()},
            opt=Path(plain[0]) if plain else None,
            param_key=args.param_key,
            device=args.device,
            lpips=args.lpips,
            crops=[parse_crop(crop) for crop in args.crop],
            progress=True,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the rest", file=sys.stderr)
        return 130
    print(report.text, end="")
    print(f"images: {report.made} measured, {report.kept} known from before; written to {args.out}", file=sys.stderr)
    return 0


def _named(flag: str, values: Sequence[str], form: str) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{flag} {text}: expected {flag} {form}")
        if name in result:
            raise ValueError(f"{flag} names {name} twice: {result[name]} and {value}; give each a name of its own")
        result[name] = value
    return result


def _folders(text: str) -> tuple[Path, Path | None]:
    # A folder may have a colon in its name, as C:\HR has.
    if Path(text).is_dir():
        return Path(text), None
    hr, _, lr = text.rpartition(":")
    return (Path(hr), Path(lr)) if hr and lr else (Path(text), None)


def parse_crop(text: str) -> Crop:
    """A crop from `SET/IMAGE:TOP,LEFT,SIZE`.

    Raises:
        ValueError: it has another form.
    """
    match = re.fullmatch(r"([^/]+)/(.+):(\d+),(\d+),(\d+)", text)
    if match is None:
        raise ValueError(f"--crop {text}: expected SET/IMAGE:TOP,LEFT,SIZE, such as Set5/butterfly:40,100,64")
    return Crop(match[1], match[2], *(int(number) for number in match.groups()[2:]))


# --- the whole -------------------------------------------------------------------------------------------------------


def make_report(
    nets: Mapping[str, PathLike],
    sets: Mapping[str, PathLike | tuple[PathLike, PathLike | None]],
    out: PathLike,
    *,
    scale: int = 4,
    opts: Mapping[str, PathLike] | None = None,
    opt: PathLike | None = None,
    param_key: str = "auto",
    device: str | None = None,
    lpips: str = "auto",
    crops: Sequence[Crop] = (),
    progress: bool = False,
) -> Report:
    """Measure nets on sets, and write tables and figure; the module's docstring shows what lies where.

    Args:
        nets: a checkpoint of BasicSR's for each name, or a folder with SR images below `SET/`. `X+PCL` and `X_PCL`
            are compared with `X`. Only the SR network is needed, not E_D.
        sets: the HR folder of each name, or HR and LR folder.
        out: folder of the results, made if missing.
        scale: upscaling factor, from 2 to 8.
        opts: for some nets, a YAML with their `network_g`.
        opt: a YAML for the nets that have none in `opts`, nor one that BasicSR left in the experiment's folder.
        param_key: 'params', 'params_ema', or 'auto': the latter if a checkpoint has it.
        device: of the nets; None is a GPU if there is one.
        lpips: 'auto' measures it where its package and weights are at hand, 'always' downloads, 'never' leaves it out.
        crops: for the figure; none: of each set the window where bicubic is furthest from HR.
        progress: show a bar on standard error.

    Raises:
        FileNotFoundError, NotADirectoryError: a checkpoint, YAML, folder or image is missing.
        ValueError: a value is out of range, a name unfit, a checkpoint or image of the wrong shape.
        TypeError: `scale` is no integer.
        ImportError: `lpips='always'` without the package.
    """
    out = Path(out)
    check_count("scale", scale, 2, 8)
    opts = dict(opts or {})
    _check_names("net", nets, reserved=(BICUBIC, "HR"))
    _check_names("set", sets)
    for name in opts:
        if name not in nets:
            raise ValueError(f"there is an option file for {name}, but no such net; nets are {', '.join(nets)}")
    if lpips not in ("auto", "always", "never"):
        raise ValueError(f"lpips must be auto, always or never, got {lpips!r}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, but {out} is a file; give another --out")
    device = _check_device(device)

    pairs: dict[str, list[Pair]] = {}
    for name, folders in sets.items():
        hr, lr = folders if isinstance(folders, tuple) else (folders, None)
        pairs[name] = find_pairs(name, Path(hr), None if lr is None else Path(lr), scale)
    fallback = None if opt is None else Path(opt)
    found = [Net(BICUBIC)]
    for name, path in nets.items():
        if Path(path).is_dir():
            found.append(find_results(name, Path(path), pairs, scale))
        else:
            own = Path(opts[name]) if name in opts else None
            found.append(find_net(name, Path(path), own, fallback, scale, param_key))
    crops = [_check_crop(crop, pairs, scale) for crop in crops]

    no_lpips = ""
    if lpips != "always":
        no_lpips = lpips_missing() if lpips == "auto" else "it was not asked for"
    measured = measure_all(
        found, pairs, out / "results", scale=scale, device=device, with_lpips=not no_lpips, progress=progress
    )
    return _write_report(out, found, pairs, measured, crops, scale, no_lpips)


def _check_names(what: str, names: Mapping[str, object], reserved: Sequence[str] = ()) -> None:
    if not names:
        raise ValueError(f"there is no {what}; give at least one --{what} NAME=PATH")
    seen: dict[str, str] = {name.lower(): name for name in reserved}
    for name in names:
        if not re.fullmatch(r"\w[\w+-]*(?:\.[\w+-]+)*", name):
            raise ValueError(f"the {what} name {name!r} cannot be a folder's: use letters, digits and _ + - .")
        if name.lower() in seen:
            raise ValueError(f"the {what} name {name} is taken by {seen[name.lower()]}; choose another")
        seen[name.lower()] = name


def _check_device(device: str | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from error
    return device


def _check_crop(crop: Crop, pairs: Mapping[str, Sequence[Pair]], scale: int) -> Crop:
    pair = _find_pair(crop, pairs)
    check_count("the size of a crop", crop.size, 1)
    hr, _ = load_pair(pair, scale)
    if crop.top + crop.size > hr.shape[0] or crop.left + crop.size > hr.shape[1]:
        raise ValueError(f"the crop {tuple(crop)} leaves the image, which has {hr.shape[0]}x{hr.shape[1]} pixels")
    return crop


def _find_pair(crop: Crop, pairs: Mapping[str, Sequence[Pair]]) -> Pair:
    for pair in pairs.get(crop.set_name, ()):
        if pair.name == crop.image:
            return pair
    known = [f"{set_name}/{pair.name}" for set_name, images in pairs.items() for pair in images]
    raise ValueError(f"there is no image {crop.set_name}/{crop.image} to crop; there are {', '.join(known)}")


def baselines(names: Sequence[str]) -> dict[str, str]:
    """For each `X+PCL` and `X_PCL` among the names its baseline `X`, if that is among them too."""
    by_lower = {name.lower(): name for name in names}
    result = {}
    for name in names:
        lower = name.lower()
        if lower.endswith(("+pcl", "_pcl")) and lower[:-4] in by_lower:
            result[name] = by_lower[lower[:-4]]
    return result


# --- tables ----------------------------------------------------------------------------------------------------------


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

    values: dict[tuple[str, str, str], list[float]] = {}
    for set_name in sets:
        for metric in METRICS:
            of_net = {
                net: {s.image: getattr(s, metric) for s in scores if s.net == net and s.set_name == set_name}
                for net in nets
            }
            images = [i for i in of_net[nets[0]] if all(of_net[net][i] is not None for net in nets)]
            for net in nets:
                values[net, set_name, metric] = [of_net[net][image] for image in images]

    entries = []
    for net in order:
        for set_name in sets:
            for metric in METRICS:
                numbers = values[net, set_name, metric]
                if numbers:
                    mean = statistics.fmean(numbers)
                    entries.append(Entry("ours", net, "mean", set_name, metric, mean, len(numbers), ""))
        entries += _of_the_paper(net, sets, scale, "mean")
        if net in pairs:
            for set_name in sets:
                for metric in METRICS:
                    numbers, others = values[net, set_name, metric], values[pairs[net], set_name, metric]
                    if numbers:
                        gain = statistics.fmean(numbers) - statistics.fmean(others)
                        entries.append(Entry("ours", net, "gain", set_name, metric, gain, len(numbers), ""))
            entries += _of_the_paper(net, sets, scale, "gain")
    return entries


def _of_the_paper(net: str, sets: Sequence[str], scale: int, kind: str) -> list[Entry]:
    name = paper_tables.net_name(net)
    if name is None or scale != paper_tables.SCALE:
        return []
    entries = []
    for set_name in sets:
        known = paper_tables.set_name(set_name)
        for metric in METRICS if known else ():
            if kind == "mean":
                cell = paper_tables.Cell(name, known or "", metric)
                value, notes = paper_tables.value(cell), paper_tables.MISPRINTED_VALUES
            else:
                cell = paper_tables.Cell(name.removesuffix(paper_tables.PCL), known or "", metric)
                value, notes = paper_tables.gain(cell), paper_tables.MISPRINTED_GAINS
            if value is not None:
                entries.append(Entry("paper", net, kind, set_name, metric, value, None, notes.get(cell, "")))
    return entries


def format_table(entries: Sequence[Entry], sets: Sequence[str], metrics: Sequence[str], notes: dict[str, str]) -> str:
    """A Markdown table with these metrics under each set.

    Args:
        entries: as `tabulate` gives them.
        sets: from left to right.
        metrics: 'psnr' and 'ssim', or 'niqe' and 'lpips'.
        notes: footnote marks by their text; new ones are added.
    """
    cells = {(e.source, e.net, e.kind, e.set_name, e.metric): e for e in entries}
    ours = dict.fromkeys((e.source, e.net, e.kind) for e in entries)
    better = {"psnr": "↑", "ssim": "↑", "niqe": "↓", "lpips": "↓"}
    table = [["Method", *(f"{set_name} {m.upper()} {better[m]}" for set_name in sets for m in metrics)]]
    for source, net, kind in ours:
        if not any((source, net, kind, set_name, m) in cells for set_name in sets for m in metrics):
            continue
        label = net if kind == "mean" else f"gain of {net}"
        row = [label if source == "ours" else f"*{label}, paper*"]
        for set_name in sets:
            for metric in metrics:
                entry = cells.get((source, net, kind, set_name, metric))
                row.append(_cell(entry, notes) if entry else ("n/a" if source == "ours" else ""))
        table.append(row)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| "
        + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        + " |"
        for row in table
    ]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]))
    return "\n".join(lines)


def _cell(entry: Entry, notes: dict[str, str]) -> str:
    digits = DIGITS[entry.metric]
    if entry.kind == "gain":
        # Ours with one digit more than the means, since it is no difference of rounded numbers.
        text = f"{entry.value:+.{digits + (entry.source == 'ours')}f}"
    else:
        text = f"{entry.value:.{digits}f}"
    if entry.note:
        text += notes.setdefault(entry.note, f"[^{len(notes) + 1}]")
    return text


def _markdown(
    nets: Sequence[Net], sets: Sequence[str], measured: Measured, entries: Sequence[Entry], scale: int, no_lpips: str
) -> str:
    notes: dict[str, str] = {}
    fidelity = format_table(entries, sets, ("psnr", "ssim"), notes)
    perception = format_table(entries, sets, ("niqe", "lpips"), notes)
    parts = [
        f"# Super-resolution x{scale}",
        "## PSNR and SSIM (the form of the paper's Table 2)",
        fidelity,
        "## NIQE and LPIPS (the form of the paper's Table 3)",
        perception,
    ]
    if notes:
        parts.append("\n".join(f"{mark}: {text}." for text, mark in notes.items()))

    paper = [entry for entry in entries if entry.source == "paper"]
    points = [
        f"PSNR, SSIM and NIQE on Y, as BasicSR has them, without {scale} pixels of each border.",
        "LPIPS: AlexNet, of the whole image.",
        "Each number is the mean over the images of the set. A gain is PCL minus baseline, from unrounded means: above "
        "0 is better for PSNR and SSIM, below 0 for NIQE and LPIPS.",
    ]
    if no_lpips:
        points.append(f"LPIPS is n/a: {no_lpips}.")
    points += _missing_niqe(sets, measured.scores, scale)
    if paper:
        points.append(
            "Rows in italics are printed in the paper; their gains are computed from its printed values, also in "
            "Table 3, which has no such rows."
        )
    if any(entry.metric == "lpips" for entry in paper):
        points.append("The paper's Table 3 lists Set14 before Set5; here the sets stand in the order of the call.")
    if any(e.metric == "lpips" and e.kind == "gain" and e.net.lower().startswith("han") for e in paper):
        points.append("In the paper, too, HAN's LPIPS gets worse with PCL, on all five sets.")
    points += [f"{net.name}: {net.source}." for net in nets]
    parts += ["## How it was measured", "\n".join(f"- {point}" for point in points)]
    return "\n\n".join(parts) + "\n"


def _missing_niqe(sets: Sequence[str], scores: Sequence[Score], scale: int) -> list[str]:
    points = []
    for set_name in sets:
        here = [score for score in scores if score.set_name == set_name]
        missing = list(dict.fromkeys(score.image for score in here if score.niqe is None))
        if missing:
            whole = len(missing) == len({score.image for score in here})
            which = "n/a" if whole else f"the mean without {', '.join(missing)}"
            points.append(
                f"NIQE of {set_name} is {which}: it needs two "
                f"blocks of 96x96 pixels within the border of {scale}, and not all flat."
            )
    return points


# --- files -----------------------------------------------------------------------------------------------------------


def _write_report(
    out: Path,
    nets: Sequence[Net],
    pairs: Mapping[str, Sequence[Pair]],
    measured: Measured,
    crops: Sequence[Crop],
    scale: int,
    no_lpips: str,
) -> Report:
    sets = list(pairs)
    names = [net.name for net in nets]
    entries = tabulate(names, sets, measured.scores, scale)
    text = _markdown(nets, sets, measured, entries, scale, no_lpips)
    if importlib.util.find_spec("matplotlib") is None:
        text += "- There is no figure: it needs matplotlib, pip install 'pcl_loss[plots]'.\n"
    else:
        crops = list(crops) or [default_crop(name, images, measured.scores, scale) for name, images in pairs.items()]
        figure = report_figure.draw(figure_rows(names, pairs, crops, measured.scores, scale))
        figure.savefig(out / "figure.png")
        shown = ", ".join(f"{c.set_name}/{c.image}:{c.top},{c.left},{c.size}" for c in crops)
        text += f"\n![HR, bicubic, baseline and PCL crops](figure.png)\n\nCrops (`--crop`): {shown}\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    _write_csv(out / "report.csv", Entry._fields, entries)
    _write_csv(
        out / "images.csv",
        ("net", "set_name", "image", *METRICS),
        [(s.net, s.set_name, s.image, *(getattr(s, metric) for metric in METRICS)) for s in measured.scores],
    )
    return Report(entries, measured.scores, text, measured.made, measured.kept)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def default_crop(set_name: str, pairs: Sequence[Pair], scores: Sequence[Score], scale: int) -> Crop:
    """Of the image with the lowest PSNR of bicubic, the window where bicubic is furthest from HR.

    No trained net has a say in it.
    """
    known = by_image(scores)
    pair = min(pairs, key=lambda pair: known[BICUBIC, set_name, pair.name].psnr)
    hr, _ = load_pair(pair, scale)
    size = min(CROP, *hr.shape[:2])
    bicubic = read_image(known[BICUBIC, set_name, pair.name].sr)
    return Crop(set_name, pair.name, *report_figure.most_lost_window(hr, bicubic, size), size)


def figure_rows(
    nets: Sequence[str],
    pairs: Mapping[str, Sequence[Pair]],
    crops: Sequence[Crop],
    scores: Sequence[Score],
    scale: int,
) -> list[list[report_figure.Panel]]:
    """A row per crop with HR, bicubic, baseline and PCL, for each pair of nets; all nets where there is no pair."""
    couples: list[tuple[str, ...]] = [(base, pcl) for pcl, base in baselines(nets).items()]
    known = by_image(scores)
    rows = []
    for columns in couples or [tuple(net for net in nets if net != BICUBIC)]:
        for crop in crops:
            hr, _ = load_pair(_find_pair(crop, pairs), scale)
            part = (
                slice(crop.top, crop.top + crop.size),
                slice(crop.left, crop.left + crop.size),
                slice(None, None, -1),
            )
            row = [
                report_figure.Panel(hr[part], "HR", f"{crop.set_name}/{crop.image}\nPSNR / LPIPS of the whole image")
            ]
            for net in (BICUBIC, *columns):
                score = known[net, crop.set_name, crop.image]
                lpips = "n/a" if score.lpips is None else f"{score.lpips:.4f}"
                psnr = "exact" if math.isinf(score.psnr) else f"{score.psnr:.2f} dB"
                row.append(report_figure.Panel(read_image(score.sr)[part], net, f"{psnr} / {lpips}"))
            rows.append(row)
    return rows
