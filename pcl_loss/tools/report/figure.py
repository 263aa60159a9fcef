"""The report's picture, in the form of the paper's Figure 2. matplotlib is imported where it draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._files import Image, read_image
from .._regions import Region, best_region
from .measure import BICUBIC, Pair, Score, by_image, load_pair
from .tables import baselines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches, at 100 pixels each."""
CROP = 64
"""Side of the crops, if none is given."""


class Crop(NamedTuple):
    """What the figure shows of an image."""

    set_name: str
    image: str
    region: Region

    def find(self, pairs: Mapping[str, Sequence[Pair]]) -> Pair:
        """Its image. Raises ValueError if there is none."""
        for pair in pairs.get(self.set_name, ()):
            if pair.name == self.image:
                return pair
        known = [f"{set_name}/{pair.name}" for set_name, images in pairs.items() for pair in images]
        raise ValueError(f"there is no image {self.set_name}/{self.image} to crop; there are {', '.join(known)}")


class Panel(NamedTuple):
    """A crop `(H, W, 3)`, uint8, RGB; what stands above it and what beneath."""

    image: Image
    title: str
    caption: str


def most_lost(hr: Image, bicubic: Image, size: int) -> Region:
    """Where HR has the most detail that LR has lost: bicubic is furthest from it there, in the mean.

    No trained net has a say in it, so that no net can be made to look good or bad by the choice.

    Args:
        hr: `(H, W, 3)`.
        bicubic: of the same shape.
        size: side of the square, no more than H and W.
    """
    return best_region(np.abs(hr.astype(np.float64) - bicubic).mean(axis=2), size, size)


def default_crop(set_name: str, pairs: Sequence[Pair], scores: Sequence[Score], scale: int) -> Crop:
    """Of the image with the lowest PSNR of bicubic, the part where bicubic is furthest from HR."""
    known = by_image(scores)
    pair = min(pairs, key=lambda pair: known[BICUBIC, set_name, pair.name].psnr)
    hr, _ = load_pair(pair, scale)
    bicubic = read_image(known[BICUBIC, set_name, pair.name].sr)
    return Crop(set_name, pair.name, most_lost(hr, bicubic, min(CROP, *hr.shape[:2])))


def figure_rows(
    nets: Sequence[str],
    pairs: Mapping[str, Sequence[Pair]],
    crops: Sequence[Crop],
    scores: Sequence[Score],
    scale: int,
) -> list[list[Panel]]:
    """A row per crop with HR, bicubic, baseline and PCL, for each pair of nets; all nets where there is no pair."""
    couples: list[tuple[str, ...]] = [(base, pcl) for pcl, base in baselines(nets).items()]
    known = by_image(scores)
    rows = []
    for columns in couples or [tuple(net for net in nets if net != BICUBIC)]:
        for crop in crops:
            hr, _ = load_pair(crop.find(pairs), scale)
            caption = f"{crop.set_name}/{crop.image}\nPSNR / LPIPS of the whole image"
            row = [Panel(crop.region.cut(hr)[..., ::-1], "HR", caption)]
            for net in (BICUBIC, *columns):
                score = known[net, crop.set_name, crop.image]
                lpips = "n/a" if score.lpips is None else f"{score.lpips:.4f}"
                psnr = "exact" if math.isinf(score.psnr) else f"{score.psnr:.2f} dB"
                row.append(Panel(crop.region.cut(read_image(score.sr))[..., ::-1], net, f"{psnr} / {lpips}"))
            rows.append(row)
    return rows


def draw(rows: Sequence[Sequence[Panel]], note: str = "", below: float = 0.0) -> tuple[Figure, Any]:
    """One row of panels beneath the other, 1000 pixels wide; `.savefig(path)` writes the figure.

    Titles stand above a row only where they differ from those of the row before.

    Args:
        rows: of panels.
        note: what a reader must know of the panels; stands above them.
        below: inches that are left free under the rows.

    Returns:
        The figure, and what is left free as a subfigure to draw on.

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
    lines = [max(panel.caption.count("\n") + 1 for panel in row) for row in rows]
    heights = [side + 0.2 * count + 0.25 * with_title for count, with_title in zip(lines, titled, strict=True)]
    top = sum(heights) + 0.25 * bool(note)
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(WIDTH, top + below), dpi=100, layout=layout)
    # Through Any: matplotlib's own types know neither the squeezing nor the subfigures.
    parts: Any = figure.subfigures(2 if below else 1, 1, squeeze=False, height_ratios=[top, below] if below else None)
    panels = parts[0, 0]
    panels.suptitle(note or None, fontsize=10)
    grid = panels.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, row, with_title in zip(grid, rows, titled, strict=True):
        for ax, panel in zip(axes, row, strict=False):
            ax.imshow(panel.image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(panel.caption, fontsize=10)
            if with_title:
                ax.set_title(panel.title, fontsize=12)
        for ax in axes[len(row) :]:
            ax.set_axis_off()
    return figure, parts[-1, 0]
