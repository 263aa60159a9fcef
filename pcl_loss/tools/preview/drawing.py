"""A sheet as a picture. matplotlib is imported where it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .sheet import Panel, Sheet

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MAX_COLUMNS = 6
TITLES = {"sharpen": "sharpened", "blur": "blurred", "lq": "enlarged LR"}
DRAWS = {"sharpen": "factor", "blur": "sigma"}
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"

# Inches, but for the first.
DPI = 100
WIDTH = 12.0
LEFT, RIGHT, GAP = 0.42, 0.12, 0.12
MAX_PANEL = 2.9
TITLE, CAPTION, GROUP_GAP = 0.26, 0.26, 0.18
HEADER, FOOTER = 0.5, 0.72


def draw(sheet: Sheet, title: str = "") -> Figure:
    """The sheet as a figure, 1200 pixels wide, with a title in its head line: positives above, SR and negatives below.

    Under each image are its bands and, if there are, its similarities to SR: all bands in one scale, and all
    similarities in one. Raises ImportError if matplotlib is not installed.
    """
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the preview needs matplotlib: pip install 'pcl_loss[plots]'") from error
    rows = [row for group in (sheet.positives, sheet.negatives) for row in _split(group)]
    columns = max(map(len, rows))
    width = min(MAX_PANEL, (WIDTH - LEFT - RIGHT - (columns - 1) * GAP) / columns)
    image_height, image_width = sheet.panels[0].image.shape[-2:]
    # A very long or very wide image is centred in its panel.
    depth = min(max(width * image_height / image_width, 1.1), 1.5 * width)
    labels = ["image", "|LH| + |HL| + |HH|"] + ["similarity to SR"] * (sheet.l_cl is not None)
    row_height = TITLE + len(labels) * (depth + CAPTION) + GROUP_GAP
    height = HEADER + len(rows) * row_height + FOOTER
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)

    def place(left: float, top: float, width: float, depth: float) -> Any:
        """Axes at inches from the left and from the top: nothing can overlap."""
        return figure.add_axes((left / WIDTH, 1 - (top + depth) / height, width / WIDTH, depth / height))

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / WIDTH, 1 - top / height, text, **style)

    head = [title] if title else []
    if sheet.l_cl is not None:
        head.append(f"$L_{{CL}}$ = {sheet.l_cl:.4f} over {sheet.num_layers} layers")
    write(LEFT, 0.14, "     ".join(head), fontsize=11, weight="bold", va="top")
    write(LEFT, 0.36, "; ".join(sheet.notes), fontsize=8.5, va="top", color="#444444")

    band_max = max(_quantile(panel.bands, 0.995) for panel in sheet.panels) or 1.0
    # Dark ones are lifted, all by the same curve: fine texture is far weaker than an edge.
    band_style = {"cmap": "gray", "norm": PowerNorm(0.6, 0, band_max, clip=True)}
    sim_style = {"cmap": "viridis", "vmin": _lowest_similarity(sheet), "vmax": 1, "interpolation": "nearest"}
    bars = {}
    for number, row in enumerate(rows):
        tops = [HEADER + number * row_height + TITLE + line * (depth + CAPTION) for line in range(len(labels))]
        for top, label in zip(tops, labels, strict=True):
            style = {"fontsize": 8.5 if depth > 1.3 else 6.5, "rotation": 90, "ha": "center", "va": "center"}
            write(LEFT - 0.16, top + depth / 2, label, **style)
        for column, panel in enumerate(row):
            shown = tops if panel.similarity_map is not None else tops[:2]
            axes = [place(LEFT + column * (width + GAP), top, width, depth) for top in shown]
            picture = torch.nan_to_num(panel.image).clamp(0, 1).movedim(0, -1).numpy()
            axes[0].imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
            role, color = _role(panel, sheet)
            axes[0].set_title(role, fontsize=9.5, color=color, weight="bold", pad=4)
            _frame(axes[0], "" if panel.kind == "gt" else f"PSNR {_number(panel.psnr, '.1f')} dB")
            image = axes[1].imshow(torch.nan_to_num(panel.bands).numpy(), **band_style)
            bars["|LH| + |HL| + |HH|, mean over the channels"] = image
            _frame(axes[1], f"HF energy {_number(panel.energy, '.2f')} x GT")
            if panel.similarity_map is not None:
                image = axes[2].imshow(torch.nan_to_num(panel.similarity_map).numpy(), **sim_style)
                of = "mean over the layers" if sheet.layer is None else f"layer {sheet.layer}"
                bars[f"channel cosine with SR (eq 9), {of}"] = image
                _frame(axes[2], f"s = {_number(panel.similarity, '.4f')}")
    width = min(4.5, (WIDTH - LEFT - RIGHT) / 2 - 0.5)
    for number, (label, image) in enumerate(bars.items()):
        cax = place(LEFT + number * (width + 0.6), height - FOOTER + 0.08, width, 0.13)
        bar = figure.colorbar(image, cax=cax, orientation="horizontal")
        bar.set_label(label, fontsize=8.5)
        low, high = image.get_clim()
        ticks = [low + (high - low) * quarter / 4 for quarter in range(5)]
        bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
        bar.ax.tick_params(labelsize=8)
    return figure


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure rendered to `(H, W, 3)`, RGB, without a window and without pyplot's global state."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _split(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Rows of at most `MAX_COLUMNS`, as equal as they can be; no row for no panel."""
    count = math.ceil(len(panels) / MAX_COLUMNS)
    width = math.ceil(len(panels) / count) if count else 1
    return [panels[start : start + width] for start in range(0, len(panels), width)]


def _quantile(values: Tensor, share: float) -> float:
    """The end of a scale but for a few pixels, which would darken all others."""
    return float(torch.nan_to_num(values).flatten().kthvalue(max(1, int(share * values.numel()))).values)


def _lowest_similarity(sheet: Sheet) -> float:
    maps = [panel.similarity_map for panel in sheet.panels if panel.similarity_map is not None]
    lowest = min((_quantile(one, 0.01) for one in maps), default=0.0)
    return max(-1.0, min(0.9, math.floor(lowest * 10) / 10))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _role(panel: Panel, sheet: Sheet) -> tuple[str, str]:
    """A panel's title and its colour, distinguishable for colour-blind readers too (Okabe and Ito)."""
    if panel.kind == "gt":
        return ("GT, a positive", POSITIVE) if sheet.gt_is_positive else ("GT, no positive", "black")
    if panel.kind == "sr":
        return "SR, the anchor", "black"
    drawn = "" if panel.draw is None else f", {DRAWS[panel.kind]} {panel.draw:.2f}"
    return TITLES[panel.kind] + drawn, POSITIVE if panel.kind == "sharpen" else NEGATIVE


def _frame(ax: Any, caption: str) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)
    ax.set_xlabel(caption, fontsize=8.5, labelpad=3)
