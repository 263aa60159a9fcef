"""The numbers of the paper's Tables 2 and 3 (scale 4), as printed, with their misprints marked.

`paper_table_*.txt` have the rows and columns of the paper, so that they can be compared with it line by line. A row
`+PCL` belongs to the net above it, and `Gains` to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

SCALE = 4
PCL = "+PCL"


class Cell(NamedTuple):
    """Where a number stands; `metric` is 'psnr', 'ssim', 'niqe' or 'lpips'."""

    net: str
    set_name: str
    metric: str


@dataclass(frozen=True)
class Table:
    """One of the paper's tables of results."""

    sets: tuple[str, ...]  # from left to right
    metrics: tuple[str, ...]  # under each set
    values: dict[Cell, float]  # every printed number; a net with PCL is called `NET+PCL`
    printed_gains: dict[Cell, float]  # the numbers of the rows `Gains`, by the name of the baseline


def _read(file: str) -> Table:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    sets, metrics, *rows = (line.split() for line in text.splitlines())
    columns = [(name, metrics[i].lower()) for name in sets for i in range(2)]
    values: dict[Cell, float] = {}
    printed_gains: dict[Cell, float] = {}
    net = ""
    for label, *numbers in rows:
        if label not in (PCL, "Gains"):
            net = label
        target = printed_gains if label == "Gains" else values
        name = net + PCL if label == PCL else net
        for (set_name, metric), number in zip(columns, numbers, strict=True):
            target[Cell(name, set_name, metric)] = float(number)
    return Table(tuple(sets), (columns[0][1], columns[1][1]), values, printed_gains)


TABLE_2 = _read("paper_table_2.txt")
TABLE_3 = _read("paper_table_3.txt")  # here Set14 comes first

MISPRINTED_VALUES = {Cell("VDSR", "B100", "ssim"): "printed as 0.0726, which cannot be: very likely 0.726"}
MISPRINTED_GAINS = {
    Cell("EDSR-L", "Set5", "psnr"): "the paper prints a gain of 0.06, but 32.52 - 32.48 = 0.04",
    Cell("RCAN", "Manga109", "ssim"): "the paper prints a gain of 0.0005, but 0.9185 - 0.9170 = 0.0015",
}

_SET_ALIASES = {"bsd100": "B100"}


def net_name(name: str) -> str | None:
    """The paper's name of a net, `NET+PCL` with PCL; None if it has no such row.

    Upper and lower case do not matter, and `NET_PCL` means `NET+PCL`.
    """
    known = {cell.net.lower(): cell.net for cell in TABLE_2.values}
    lower = name.lower()
    return known.get(lower.removesuffix("_pcl") + PCL.lower() if lower.endswith("_pcl") else lower)


def set_name(name: str) -> str | None:
    """The paper's name of a test set; None if it has no such columns. BSD100 is its B100."""
    known = {known.lower(): known for known in TABLE_2.sets} | _SET_ALIASES
    return known.get(name.lower())


def value(cell: Cell) -> float | None:
    """What Table 2 or 3 prints, misprinted or not; None if neither has it."""
    return TABLE_2.values.get(cell, TABLE_3.values.get(cell))


def gain(cell: Cell) -> float | None:
    """The difference of the two printed values, PCL minus the baseline `cell.net`; None if there are none.

    It is right where the printed gain is a misprint, and there for NIQE and LPIPS too.
    """
    without, with_pcl = value(cell), value(cell._replace(net=cell.net + PCL))
    # The values have four decimals at most; the rest is binary rounding.
    return None if without is None or with_pcl is None else round(with_pcl - without, 4)
