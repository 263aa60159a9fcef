"""The numbers of the paper's Tables 2 and 3 (scale 4), as printed.

`paper_table_*.txt` have the rows and columns of the paper, so that they can be compared with it line by line. A row
`+PCL` belongs to the net above it, and `Gains` to both.
"""

from __future__ import annotations

from importlib import resources

SCALE = 4
PCL = "+PCL"
MISPRINTS = (
    "The paper prints VDSR's SSIM on B100 as 0.0726, which cannot be, and two gains that its own values do not give: "
    "0.06 for EDSR-L's PSNR on Set5, and 0.0005 for RCAN's SSIM on Manga109."
)

Cell = tuple[str, str, str]  # net, set and metric


def _read(file: str) -> dict[Cell, float]:
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    sets, metrics, *rows = (line.split() for line in text.splitlines())
    values: dict[Cell, float] = {}
    net = ""
    for label, *numbers in rows:
        if label != "Gains":
            net = net + PCL if label == PCL else label
            for i, number in enumerate(numbers):
                values[net, sets[i // 2], metrics[i].lower()] = float(number)
    return values


VALUES = _read("paper_table_2.txt") | _read("paper_table_3.txt")
"""Every printed value; a net with PCL is called `NET+PCL`."""

_NETS = {net.lower(): net for net, _, _ in VALUES}
_SETS = {set_name.lower(): set_name for _, set_name, _ in VALUES} | {"bsd100": "B100"}


def value(net: str, set_name: str, metric: str) -> float | None:
    """What the paper prints; None if it has no such number.

    Upper and lower case do not matter, `NET_PCL` means `NET+PCL`, and BSD100 is the paper's B100.
    """
    lower = net.lower()
    lower = lower.removesuffix("_pcl") + PCL.lower() if lower.endswith("_pcl") else lower
    return VALUES.get((_NETS.get(lower, ""), _SETS.get(set_name.lower(), ""), metric))


def gain(net: str, set_name: str, metric: str) -> float | None:
    """What the printed values of a net `X+PCL` or `X_PCL` and of `X` differ by; None if the paper has none."""
    with_pcl, without = value(net, set_name, metric), value(net[: -len(PCL)], set_name, metric)
    # The values have four decimals at most; the rest is binary rounding.
    return None if with_pcl is None or without is None else round(with_pcl - without, 4)
