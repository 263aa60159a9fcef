"""`pcl-loss report`: trained nets on test sets, in the form of the paper's Tables 2 and 3 and Figure 2.

```
OUT/report.md               both tables, with the gains of PCL, and how it was measured
OUT/images.csv              the numbers of every image
OUT/figure.png              HR, bicubic, baseline and PCL crops
OUT/results/NET/SET-*/      the SR images, kept for the next run
```

A net called `X+PCL` or `X_PCL` is compared with the net `X`. A net runs again only if its checkpoint, its `network_g`,
the images or the scale have changed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..._checks import check_count
from ...basicsr_plugin.lpips_metric import backbone_file, fetch_backbone
from .. import _pictures
from .._checkpoints import usable_device
from .measure import BICUBIC, Net, find_net, find_pairs, find_results, measure_all
from .tables import figure_rows, report_text, tabulate, write_csv

PathLike = str | os.PathLike[str]
BACKBONE = "alex"  # of LPIPS, as papers report it
LPIPS = ("auto", "always", "never")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss report`."""
    add = parser.add_argument
    text = (
        "a checkpoint net_g_*.pth, BasicSR's folder experiments/RUN (its last checkpoint), or a folder of SR images in "
        "SET/; NAME+PCL is compared with NAME. Repeat"
    )
    add("--net", dest="nets", action="append", required=True, metavar="NAME=PATH", help=text)
    text = "folders of a test set; without LR, it is made from HR by MATLAB-like bicubic. Repeat"
    add("--set", dest="sets", action="append", required=True, metavar="NAME=HR[:LR]", help=text)
    add("--scale", type=int, default=4, metavar="S", help="2 to 8 (default 4, that of the paper)")
    add("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    text = "a YAML with the net's network_g; without NAME, for nets with no YAML beside their checkpoint"
    add("--opt", dest="opts", action="append", default=[], metavar="[NAME=]FILE.yml", help=text)
    add("--device", help="of the nets, such as cuda:1 or cpu (default: a GPU if there is one)")
    text = "auto: if its package and weights are at hand; always: download AlexNet's weights (233 MB) if need be"
    add("--lpips", choices=LPIPS, default="auto", help=text)


def run(args: argparse.Namespace) -> int:
    """The tables to standard output, all else to standard error; returns the exit status."""
    nets = _named("--net", args.nets)
    # A file name may hold an equals sign: a flag names a net only if there is one of that name.
    opts = [text if "=" in text and text.partition("=")[0] in nets else f"={text}" for text in args.opts]
    named = {"nets": nets, "sets": _named("--set", args.sets), "opts": _named("--opt", opts)}
    print(make_report(**vars(args) | named), end="")
    print(f"written to {args.out}", file=sys.stderr)
    return 0


def _named(flag: str, values: Sequence[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in values:
        name, _, value = text.partition("=")
        if not value or name in result:
            raise ValueError(f"{flag} {text}: expected {flag} NAME=PATH, each with a name of its own")
        result[name] = value
    return result


def make_report(
    nets: Mapping[str, PathLike],
    sets: Mapping[str, PathLike],
    out: PathLike,
    *,
    scale: int = 4,
    opts: Mapping[str, PathLike] | None = None,
    device: str | None = None,
    lpips: str = "auto",
) -> str:
    """Measure nets on sets, write tables and figure as the module's docstring shows, and return the text of report.md.

    The arguments are the flags of `pcl-loss report`: `nets` and `sets` by name, `opts` too, where the empty name has
    the YAML of the nets that have no other. Raises OSError where a checkpoint, YAML, folder or image is missing,
    ValueError or TypeError where a value cannot be used, ImportError for `lpips='always'` without the package.
    """
    out = Path(out)
    check_count("scale", scale, 2, 8)
    for name in (*nets, *sets):
        if not re.fullmatch(r"\w[\w.+-]*", name) or name in (BICUBIC, "HR"):
            raise ValueError(f"the name {name!r} cannot be used; take letters, digits and _ + - ., not {BICUBIC} or HR")
    device = usable_device(device)
    pairs = [pair for name, folders in sets.items() for pair in find_pairs(name, str(folders), scale)]
    yamls = {name: Path(path) for name, path in (opts or {}).items()}
    found = [Net(BICUBIC)]
    for name, given in nets.items():
        path = Path(given)
        last = path / "models" / "net_g_latest.pth"
        if path.is_dir() and not last.is_file():
            found.append(find_results(name, path, pairs))
        else:
            found.append(find_net(name, last if path.is_dir() else path, yamls))

    if lpips == "always":
        fetch_backbone(BACKBONE)
    has_lpips = lpips != "never" and importlib.util.find_spec("lpips") is not None and backbone_file(BACKBONE).is_file()
    backbone = BACKBONE if has_lpips else None
    scores = measure_all(found, pairs, out / "results", scale=scale, device=device, lpips=backbone)
    names = [net.name for net in found]
    rows = tabulate(names, list(sets), scores)
    text = report_text(rows, list(sets), scores, scale, has_lpips)
    if importlib.util.find_spec("matplotlib") is None:
        text += "- There is no figure: it needs matplotlib, pip install 'pcl_loss[plots]'.\n"
    else:
        _pictures.draw(figure_rows(names, scores, scale))[0].savefig(out / "figure.png")
        text += "\n![HR, bicubic, baseline and PCL crops](figure.png)\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    write_csv(out / "images.csv", (score.row() for score in scores))
    return text
