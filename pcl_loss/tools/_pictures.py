"""Parts of images, and images side by side. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._images import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0  # of a picture: inches, at 100 pixels each


class Region(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: NDArray[Any], shrink: int = 1) -> NDArray[Any]:
        """Its part of an image `(H, W, ...)`, or of one `shrink` times smaller."""
        top, left, height, width = (value // shrink for value in self)
        return image[top : top + height, left : left + width]


class Panel(NamedTuple):
    """An image `(H, W, 3)`, uint8, RGB; what stands above it and what beneath."""

    image: Image
    title: str
    caption: str


def tiles(height: int, width: int, size: int, step: int) -> list[Region]:
    """Squares that cover an image row by row: one every `step` pixels, and a last one flush with the edge."""
    tops, lefts = (sorted({*range(0, length - size + 1, step), length - size}) for length in (height, width))
    return [Region(top, left, size, size) for top in tops for left in lefts]


def best_region(detail: NDArray[Any], size: int) -> Region:
    """The square with the largest sum of `detail`, `(H, W)`, the first of equal ones; it must fit."""
    # Sums over all windows at once, as differences of cumulative sums.
    sums = np.pad(detail.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return Region(int(top), int(left), size, size)


def draw(rows: Sequence[Sequence[Panel]], note: str = "", below: float = 0.0) -> tuple[Figure, Any]:
    """One row of square panels beneath the other, 1000 pixels wide, under a note; titles stand where they change.

    `below` inches are left free under the rows. Returns the figure and a subfigure on what is left free.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(map(len, rows))
    titles = [[panel.title for panel in row] for row in rows]
    titled = [now != before for now, before in zip(titles, [[], *titles], strict=False)]
    heights = [WIDTH / columns + 0.4 + 0.25 * with_title for with_title in titled]
    parts = [sum(heights) + 0.25 * bool(note), *([below] if below else [])]
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(WIDTH, sum(parts)), dpi=100, layout=layout)
    # Through Any: matplotlib's own types know neither the squeezing nor the subfigures.
    subfigures: Any = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=parts)[:, 0]
    subfigures[0].suptitle(note or None, fontsize=10)
    grid = subfigures[0].subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, row, with_title in zip(grid, rows, titled, strict=True):
        for ax, panel in zip(axes, row, strict=False):
            ax.imshow(panel.image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(panel.caption, fontsize=10)
            if with_title:
                ax.set_title(panel.title, fontsize=12)
        for ax in axes[len(row) :]:
            ax.set_axis_off()
    return figure, subfigures[-1]
