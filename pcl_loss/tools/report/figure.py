"""The report's picture, in the form of the paper's Figure 2. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches, at 100 pixels each."""


class Panel(NamedTuple):
    """A crop `(H, W, 3)`, uint8, RGB; what stands above it and what beneath."""

    image: NDArray[np.uint8]
    title: str
    caption: str


def most_lost_window(hr: NDArray[np.uint8], bicubic: NDArray[np.uint8], size: int) -> tuple[int, int]:
    """Where HR has the most detail that LR has lost: bicubic is furthest from it there, in the mean.

    No trained net has a say in it, so that no net can be made to look good or bad by the choice.

    Args:
        hr: `(H, W, 3)`.
        bicubic: of the same shape.
        size: side of the window, no more than H and W.

    Returns:
        Top and left of the first such window.
    """
    error = np.abs(hr.astype(np.float64) - bicubic).mean(axis=2)
    # Sums over all windows at once, as differences of cumulative sums.
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return int(top), int(left)


def draw(rows: Sequence[Sequence[Panel]]) -> Figure:
    """One row of panels beneath the other, 1000 pixels wide; `.savefig(path)` writes it.

    Titles stand above a row only where they differ from those of the row before.

    Raises:
        ValueError: there is no row, or one without panels.
    """
    if not rows or not all(rows):
        raise ValueError(f"rows must hold at least one panel each, got rows of {[len(row) for row in rows]}")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(len(row) for row in rows)
    titled = [i == 0 or [p.title for p in row] != [p.title for p in rows[i - 1]] for i, row in enumerate(rows)]
    side = WIDTH / columns
    heights = [side + 0.4 + 0.25 * with_title for with_title in titled]
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=100, layout=layout)
    # Through Any: matplotlib's own types know neither the squeezing nor the subfigures.
    grid: Any = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, row, with_title in zip(grid, rows, titled, strict=True):
        for ax, panel in zip(axes, row, strict=False):
            ax.imshow(panel.image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(panel.caption, fontsize=10)
            if with_title:
                ax.set_title(panel.title, fontsize=12)
        for ax in axes[len(row) :]:
            ax.set_axis_off()
    return figure
