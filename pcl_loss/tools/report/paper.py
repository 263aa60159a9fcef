"""The numbers of the paper's Tables 2, 3 and 4 (scale 4), as printed, with their misprints marked.

The text blocks have the rows and columns of the paper, so that they can be compared with it line by line. A row `+PCL`
belongs to the net above it, and `Gains` to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SCALE = 4
PCL = "+PCL"

_TABLE_2 = """
          Set5            Set14           B100            Urban100        Manga109
          PSNR    SSIM    PSNR    SSIM    PSNR    SSIM    PSNR    SSIM    PSNR    SSIM
Bicubic   28.42   0.8104  26.00   0.7027  25.96   0.6675  23.14   0.6577  24.89   0.7866
SRCNN     30.48   0.8628  27.50   0.7513  26.90   0.7101  24.52   0.7221  27.58   0.8555
FSRCNN    30.72   0.8660  27.61   0.7550  26.98   0.7150  24.62   0.7280  27.90   0.8610
VDSR      31.35   0.8830  28.02   0.7680  27.29   0.0726  25.18   0.7540  28.83   0.8870
LapSRN    31.54   0.8850  28.19   0.7720  27.32   0.7270  25.21   0.7560  29.09   0.8900
MemNet    31.74   0.8893  28.26   0.7723  27.40   0.7281  25.50   0.7630  29.42   0.8942
SRMDNF    31.96   0.8925  28.35   0.7787  27.49   0.7337  25.68   0.7731  30.09   0.9024
D-DBPN    32.47   0.8980  28.82   0.7860  27.72   0.7400  26.38   0.7946  30.91   0.9137
RDN       32.47   0.8990  28.81   0.7871  27.72   0.7419  26.61   0.8028  31.00   0.9151
SRFBN     32.47   0.8983  28.81   0.7868  27.72   0.7409  26.60   0.8015  31.15   0.9160
SAN       32.64   0.9003  28.92   0.7888  27.78   0.7436  26.79   0.8068  31.18   0.9169
EDSR-S    32.09   0.8938  28.58   0.7813  27.57   0.7357  26.04   0.7849  30.35   0.9067
+PCL      32.17   0.8948  28.61   0.7825  27.58   0.7365  26.07   0.7863  30.45   0.9078
Gains     0.08    0.0010  0.03    0.0012  0.01    0.0008  0.03    0.0014  0.10    0.0011
EDSR-L    32.48   0.8988  28.81   0.7879  27.73   0.7422  26.65   0.8037  31.04   0.9158
+PCL      32.52   0.8993  28.84   0.7881  27.74   0.7428  26.71   0.8056  31.20   0.9171
Gains     0.06    0.0005  0.03    0.0002  0.01    0.0006  0.06    0.0019  0.16    0.0013
RCAN      32.64   0.9002  28.85   0.7885  27.75   0.7432  26.75   0.8066  31.20   0.9170
+PCL      32.70   0.9005  28.89   0.7889  27.78   0.7437  26.84   0.8083  31.41   0.9185
Gains     0.06    0.0003  0.04    0.0004  0.03    0.0005  0.09    0.0017  0.21    0.0005
HAN       32.60   0.8997  28.88   0.7887  27.78   0.7437  26.78   0.8073  31.42   0.9174
+PCL      32.68   0.9006  28.91   0.7894  27.79   0.7441  26.88   0.8095  31.43   0.9188
Gains     0.08    0.0009  0.03    0.0007  0.01    0.0004  0.10    0.0022  0.01    0.0014
"""

# Set14 comes first here.
_TABLE_3 = """
          Set14           Set5            B100            Urban100        Manga109
          NIQE    LPIPS   NIQE    LPIPS   NIQE    LPIPS   NIQE    LPIPS   NIQE    LPIPS
EDSR-S    6.166   0.3058  6.917   0.2153  6.349   0.3419  5.633   0.2837  5.018   0.1698
+PCL      6.193   0.3039  7.043   0.2139  6.392   0.3411  5.658   0.2825  5.095   0.1676
EDSR-L    6.308   0.2957  7.155   0.2085  6.320   0.3343  5.461   0.2630  5.138   0.1616
+PCL      6.166   0.2944  7.048   0.2080  6.251   0.3335  5.443   0.2618  4.998   0.1590
RCAN      6.215   0.2958  7.275   0.2102  6.314   0.3351  5.521   0.2604  5.225   0.1608
+PCL      6.214   0.2938  7.008   0.2074  6.372   0.3331  5.448   0.2577  5.004   0.1555
HAN       6.060   0.2912  6.796   0.2061  6.406   0.3302  5.408   0.2537  4.879   0.1501
+PCL      6.211   0.2931  7.017   0.2079  6.374   0.3324  5.515   0.2571  5.068   0.1556
"""


class Cell(NamedTuple):
    """Where a number stands; `metric` is 'psnr', 'ssim', 'niqe' or 'lpips'."""

    net: str
    set_name: str
    metric: str


@dataclass(frozen=True)
class Table:
    """One of the paper's tables of results.

    Attributes:
        sets: the test sets from left to right.
        metrics: the metrics under each set.
        values: every printed number; a net with PCL is called `NET+PCL`.
        printed_gains: the numbers of the rows `Gains`, by the name of the baseline.
    """

    sets: tuple[str, ...]
    metrics: tuple[str, ...]
    values: dict[Cell, float]
    printed_gains: dict[Cell, float]


class Ablation(NamedTuple):
    """A row of Table 4: RCAN on Set5; None where the table's cell is empty."""

    config: int
    contrastive: str | None
    wavelet: bool
    negatives: str | None
    psnr: float
    lpips: float | None


def _parse(text: str) -> Table:
    sets, metrics, *rows = (line.split() for line in text.strip().splitlines())
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


TABLE_2 = _parse(_TABLE_2)
TABLE_3 = _parse(_TABLE_3)
TABLE_4 = (
    Ablation(1, None, False, None, 32.639, 0.2102),
    Ablation(2, "VCL", False, "Gen", 32.672, 0.2098),
    Ablation(3, "PCL", True, None, 32.692, None),  # section 4.3 says that its negatives are the LR input
    Ablation(4, "PCL", False, "Gen", 32.652, 0.2083),
    Ablation(5, "PCL", True, "Rand", 32.666, 0.2086),
    Ablation(6, "PCL", True, "Gen", 32.697, 0.2074),
)

MISPRINTED_VALUES = {
    Cell("VDSR", "B100", "ssim"): "printed as 0.0726, which cannot be: very likely 0.726",
}
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
