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
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..._checks import check_count
from .. import _panels
from .._checkpoints import PARAM_KEYS, usable_device
from .._regions import parse_square
from .figure import Crop, default_crop, figure_rows
from .measure import (
    BICUBIC,
    Net,
    Pair,
    Score,
    find_net,
    find_pairs,
    find_results,
    load_pair,
    lpips_missing,
    measure_all,
)
from .tables import Entry, report_text, tabulate, write_csv, write_scores

PathLike = str | os.PathLike[str]
LPIPS = ("auto", "always", "never")


class Report(NamedTuple):
    """What `make_report` did."""

    entries: list[Entry]  # every number of the tables
    scores: list[Score]  # of every net on every image
    text: str  # of `report.md`
    made: int  # images that were measured now; the others had been before


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss report`."""
    required: dict[str, Any] = {"action": "append", "required": True}
    many: dict[str, Any] = {"action": "append", "default": []}
    text = "a checkpoint net_g_*.pth, or a folder of SR images in SET/; NAME+PCL is compared with NAME. Repeat"
    parser.add_argument("--net", **required, metavar="NAME=PATH", help=text)
    text = "folders of a test set; without LR, it is made from HR by MATLAB-like bicubic. Repeat"
    parser.add_argument("--set", **required, metavar="NAME=HR[:LR]", help=text)
    parser.add_argument("--scale", type=int, default=4, metavar="S", help="2 to 8 (default 4, that of the paper)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    text = "a YAML with the net's network_g; without NAME, for nets with no YAML beside their checkpoint"
    parser.add_argument("--opt", **many, metavar="[NAME=]FILE.yml", help=text)
    text = "which weights of a checkpoint; auto: params_ema if it has them, as BasicSR's validation does"
    parser.add_argument("--param-key", choices=("auto", *PARAM_KEYS), default="auto", help=text)
    parser.add_argument("--device", help="of the nets, such as cuda:1 or cpu (default: a GPU if there is one)")
    text = "auto: if its package and weights are installed; always: download the weights if need be"
    parser.add_argument("--lpips", choices=LPIPS, default="auto", help=text)
    text = "a crop of the figure (default: of each set the one where bicubic is furthest from HR). Repeat"
    parser.add_argument("--crop", **many, metavar="SET/IMAGE:TOP,LEFT,SIZE", help=text)


def run(args: argparse.Namespace) -> int:
    """The tables to standard output, all else to standard error; 0, or 130 if it was interrupted."""
    nets = _named("--net", args.net, "NAME=PATH")
    # A file name may hold an equals sign: a flag names a net only if there is one of that name.
    plain = [value for value in args.opt if value.partition("=")[0] not in nets or "=" not in value]
    if len(plain) > 1:
        raise ValueError(f"--opt is given {len(plain)} times without the name of a --net: {', '.join(plain)}")
    try:
        report = make_report(
            nets,
            {name: _folders(value) for name, value in _named("--set", args.set, "NAME=HRDIR").items()},
            args.out,
            scale=args.scale,
            opts=_named("--opt", [value for value in args.opt if value not in plain], "NAME=FILE.yml"),
            opt=plain[0] if plain else None,
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
    kept = len(report.scores) - report.made
    print(f"images: {report.made} measured, {kept} known from before; written to {args.out}", file=sys.stderr)
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


def _folders(text: str) -> tuple[str, str | None]:
    # A folder may have a colon in its name, as C:\HR has.
    hr, _, lr = text.rpartition(":")
    return (hr, lr) if hr and lr and not Path(text).is_dir() else (text, None)


def parse_crop(text: str) -> Crop:
    """A crop from `SET/IMAGE:TOP,LEFT,SIZE`. Raises ValueError if it has another form."""
    match = re.fullmatch(r"([^/]+)/(.+):(\d+,\d+,\d+)", text)
    if match is None:
        raise ValueError(f"--crop {text}: expected SET/IMAGE:TOP,LEFT,SIZE, such as Set5/butterfly:40,100,64")
    return Crop(match[1], match[2], parse_square(match[3]))


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
        lpips: 'auto' measures it if its package and weights are installed, 'always' downloads, 'never' leaves it out.
        crops: for the figure; none: of each set the window where bicubic is furthest from HR.
        progress: show a bar on standard error.

    Raises:
        OSError: a checkpoint, YAML, folder or image is missing.
        ValueError, TypeError: a value is out of range, a name unfit, a checkpoint or image of the wrong shape.
        ImportError: `lpips='always'` without the package.
    """
    out = Path(out)
    check_count("scale", scale, 2, 8)
    _check_names("net", nets, reserved=(BICUBIC, "HR"))
    _check_names("set", sets)
    yamls = {name: Path(path) for name, path in (opts or {}).items()}
    for name in yamls:
        if name not in nets:
            raise ValueError(f"there is an option file for {name}, but no such net; nets are {', '.join(nets)}")
    if lpips not in LPIPS:
        raise ValueError(f"lpips must be one of {', '.join(LPIPS)}, got {lpips!r}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, but {out} is a file; give another --out")
    device = usable_device(device)

    pairs: dict[str, list[Pair]] = {}
    for name, folders in sets.items():
        hr, lr = folders if isinstance(folders, tuple) else (folders, None)
        pairs[name] = find_pairs(name, Path(hr), None if lr is None else Path(lr), scale)
    fallback = None if opt is None else Path(opt)
    found = [Net(BICUBIC)]
    for name, given in nets.items():
        path = Path(given)
        if path.is_dir():
            found.append(find_results(name, path, pairs, scale))
        else:
            found.append(find_net(name, path, yamls.get(name), fallback, scale, param_key))
    for crop in crops:
        crop.region.check_inside(*load_pair(crop.find(pairs), scale)[0].shape[:2])

    no_lpips = "it was not asked for" if lpips == "never" else ""
    if lpips == "auto":
        no_lpips = lpips_missing()
    scores, made = measure_all(
        found, pairs, out / "results", scale=scale, device=device, with_lpips=not no_lpips, progress=progress
    )
    names = [net.name for net in found]
    entries = tabulate(names, list(pairs), scores, scale)
    text = report_text(found, list(pairs), scores, entries, scale, no_lpips)
    if importlib.util.find_spec("matplotlib") is None:
        text += "- There is no figure: it needs matplotlib, pip install 'pcl_loss[plots]'.\n"
    else:
        crops = list(crops) or [default_crop(name, images, scores, scale) for name, images in pairs.items()]
        figure, _ = _panels.draw(figure_rows(names, pairs, crops, scores, scale))
        figure.savefig(out / "figure.png")
        shown = ", ".join(f"{c.set_name}/{c.image}:{c.region.top},{c.region.left},{c.region.height}" for c in crops)
        text += f"\n![HR, bicubic, baseline and PCL crops](figure.png)\n\nCrops (`--crop`): {shown}\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    write_csv(out / "report.csv", (entry._asdict() for entry in entries))
    write_scores(out / "images.csv", scores)
    return Report(entries, scores, text, made)


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
