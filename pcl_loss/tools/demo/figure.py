"""Pictures. matplotlib is imported where it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Distinguishable for colour-blind readers too (Okabe and Ito).
COLORS = {"pos_sim": "#0072B2", "neg_sim": "#D55E00", "margin": "#009E73"}


class Panel(NamedTuple):
    """One image of a comparison: `(H, W, 3)`, uint8, RGB; what stands above and beneath it."""

    image: NDArray[np.uint8]
    title: str
    caption: str


def most_detailed_window(image: NDArray[np.uint8], size: int) -> tuple[float, int, int]:
    """Where an image `(H, W, 3)` has the most fine structure.

    Returns:
        The mean absolute Laplacian in the best window of `size` x `size` pixels; its top and its left.

    Raises:
        ValueError: the image is smaller than the window.
    """
    if size > min(image.shape[:2]):
        raise ValueError(f"a window of {size} x {size} does not fit into an image of shape {image.shape}")
    gray = image.astype(np.float64).mean(axis=2)
    padded = np.pad(gray, 1, mode="edge")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    # Sums over all windows at once, as differences of cumulative sums.
    sums = np.pad(np.abs(neighbours - 4 * gray), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    means = (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2
    top, left = np.unravel_index(means.argmax(), means.shape)
    return float(means[top, left]), int(top), int(left)


def comparison_figure(
    rows: Sequence[Sequence[Panel]], iterations: Sequence[int], curves: Mapping[str, Sequence[float]], note: str = ""
) -> Figure:
    """The panels in their rows; below them the similarities and the margin over the iterations.

    Args:
        rows: of panels, all equally long; the titles of the first row stand above the columns.
        iterations: the x axis of the curves.
        curves: `pos_sim`, `neg_sim` and `margin`, each as long as `iterations`.
        note: what a reader must know of the panels; stands above them.

    Returns:
        A figure, 1000 pixels wide for four columns; `.savefig(path)` writes it.

    Raises:
        ValueError: there is no row, the rows differ in length, or a curve is missing or of another length.
    """
    lengths = [len(row) for row in rows]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"rows must hold at least one panel each and all as many, got rows of {lengths}")
    for key in COLORS:
        if len(curves.get(key, ())) != len(iterations):
            raise ValueError(f"curves[{key!r}] must have one value for each of the {len(iterations)} iterations")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = lengths[0]
    heights = (2.95 * len(rows) + 0.3, 2.9)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure(figsize=(2.5 * columns, sum(heights)), dpi=100, layout=layout)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    panels, plots = parts
    panels.suptitle(note, fontsize=10)
    for number, (axes, row) in enumerate(zip(panels.subplots(len(rows), columns, squeeze=False), rows, strict=True)):
        for ax, panel in zip(axes, row, strict=True):
            _draw_panel(ax, panel, with_title=number == 0)
    left, right = plots.subplots(1, 2)
    _draw_curves(left, iterations, {key: curves[key] for key in ("pos_sim", "neg_sim")}, "similarity to SR")
    _draw_curves(right, iterations, {"margin": curves["margin"]}, "pos_sim - neg_sim")
    return figure


def _draw_panel(ax: Any, panel: Panel, with_title: bool) -> None:
    ax.imshow(panel.image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(panel.caption, fontsize=10)
    if with_title:
        ax.set_title(panel.title, fontsize=12)


def _draw_curves(ax: Any, iterations: Sequence[int], curves: Mapping[str, Sequence[float]], label: str) -> None:
    for key, values in curves.items():
        # A value belongs to one batch, and batches differ more than iterations do.
        ax.plot(iterations, values, color=COLORS[key], linewidth=0.8, alpha=0.4)
        ax.plot(iterations, running_mean(values), color=COLORS[key], label=key, linewidth=2)
    ax.set_xlabel("iteration of L1 + PCL (thin: single batches)")
    ax.set_ylabel(label)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(curves), frameon=False)


def running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean over each value and its neighbours, a tenth of all in total; near the ends over those there are."""
    reach = len(values) // 20
    window = np.ones(2 * reach + 1)
    count = np.convolve(np.ones(len(values)), window)
    means: NDArray[np.float64] = np.convolve(values, window) / count
    return means[reach : reach + len(values)]
