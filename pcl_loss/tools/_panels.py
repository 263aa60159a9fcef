"""Images side by side, as the report and the demo show them. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ._images import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0  # inches, at 100 pixels each


class Panel(NamedTuple):
    """An image `(H, W, 3)`, uint8, RGB; what stands above it and what beneath."""

    image: Image
    title: str
    caption: str


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
