"""What the loss compares of one image, as a picture: GT, its positives, SR, its negatives, and their bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import MIN_SIZE, at_least_float32, check_images
from ._missing import named_in_errors
from .embedding import Embedding
from .functional import info_nce, similarity
from .loss import PCLLoss
from .samples import seeded_generator
from .wavelet import haar_dwt

MAX_WINDOW = 256
TITLES = {"gt": "GT", "sharpen": "sharpened", "sr": "SR", "blur": "blurred", "lq": "enlarged LR"}
Window = tuple[int, int, int, int]  # top, left, height and width, in pixels


@dataclass(frozen=True, eq=False)
class Sheet:
    """One image and its samples, K images, and what was measured of them; all tensors are on the CPU."""

    kinds: list[str]  # of 'gt', 'sharpen', 'sr', 'blur' and 'lq', in this order
    draws: list[float | None]  # the sharpening factor or the sigma of each; None for the others
    images: Tensor  # `(K, C, H, W)`, in [0, 1] but for SR, which is not clamped
    bands: Tensor  # `(K, ceil(H / 2), ceil(W / 2))`: `|LH| + |HL| + |HH|`, averaged over the channels
    energy: list[float]  # the mean of `LH^2 + HL^2 + HH^2`, relative to that of GT (nan where GT has none)
    psnr: list[float]  # to GT, in dB, over all pixels and channels; inf for an equal image
    notes: list[str]  # what the reader must know besides
    # With an SR image and an embedding: equation 10, unweighted, and equation 9 of SR and each image, over all layers.
    l_cl: float | None
    similarities: list[float]


@torch.no_grad()
def make_sheet(
    hr: Tensor,
    pcl: PCLLoss,
    *,
    sr: Tensor | None = None,
    lq: Tensor | None = None,
    embedding: Embedding | None = None,
    generator: torch.Generator | None = None,
) -> Sheet:
    """The samples that `pcl` would make of one image, and what can be measured of them; nothing is changed by it.

    Images are as `PCLLoss` takes them, one each. The negatives `'batch'` are left out with a note; so is `'lq'` without
    `lq`. By default `generator` is that of the first call. Raises TypeError or ValueError if `hr` does not fit.
    """
    check_images("hr", hr, min_size=MIN_SIZE)
    gt, sr, lq = (None if x is None else at_least_float32(x.detach()) / pcl.data_range for x in (hr, sr, lq))
    assert gt is not None
    with torch.autocast(gt.device.type, enabled=False):
        draws = pcl.samples.draw(1, generator or seeded_generator(pcl.seed, 0))
        numbers = iter(draws[:, 0].tolist())
        kinds = [kind for kind in pcl.samples.kinds if kind != "lq" or lq is not None]
        drawn = [next(numbers) if kind in ("sharpen", "blur") else None for kind in kinds]
        found = [*zip(kinds, drawn, pcl.samples.make(gt, lq, draws), strict=True)]
        found += [("gt", None, gt)] * ("gt" not in kinds) + ([] if sr is None else [("sr", None, sr)])
        found.sort(key=lambda sample: [*TITLES].index(sample[0]))
        images = torch.cat([image for _, _, image in found])
        notes = ["without the negative 'lq': no LR image"] * ("lq" in pcl.samples.negatives and lq is None)
        notes += ["without the negatives 'batch': one image has no mates"] * ("batch" in pcl.samples.negatives)
        high = torch.stack(haar_dwt(images)[1:])
        energy = high.square().sum(0).mean(dim=(1, 2, 3))
        psnr = -10 * (images - gt).square().mean(dim=(1, 2, 3)).log10()
        l_cl, similarities = None, []
        if embedding is not None and sr is not None:
            layers = zip(*(embedding.embed(x, pcl.num_layers) for x in (sr, images)), strict=True)
            sims = torch.cat([similarity(anchor, maps[:, None]) for anchor, maps in layers])
            of = [[kind in sources for kind, *_ in found] for sources in (pcl.samples.positives, pcl.samples.negatives)]
            l_cl = float(info_nce(sims[:, of[0]], sims[:, of[1]], pcl.temperature).mean())
            similarities = sims.mean(0).tolist()
        return Sheet(
            kinds=[kind for kind, _, _ in found],
            draws=[draw for _, draw, _ in found],
            images=images.cpu(),
            bands=high.abs().sum(0).mean(1).cpu(),
            energy=(energy / energy[0]).tolist(),
            psnr=psnr.tolist(),
            notes=notes,
            l_cl=l_cl,
            similarities=similarities,
        )


def cut(images: Tensor, window: Window, shrink: int = 1) -> Tensor:
    """A window of images `(..., H, W)`, or of images that are `shrink` times smaller."""
    top, left, height, width = (side // shrink for side in window)
    return images[..., top : top + height, left : left + width]


def detailed_window(hr: Tensor, size: int = MAX_WINDOW, multiple: int = 1) -> Window:
    """The window of at most `size` pixels a side where an image `(1, C, H, W)` has the most detail; its edges are
    multiples of `multiple`, the scale of an LR image.
    """
    step = multiple * math.ceil(8 / multiple)
    height, width = (min(side, size // multiple * multiple) for side in hr.shape[-2:])
    hr = at_least_float32(hr.detach())
    detail = (hr - F.avg_pool2d(hr, 3, 1, 1, count_include_pad=False)).square().mean(1)
    sums = F.avg_pool2d(detail, (height, width), step)[0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    return row * step, column * step, height, width


def draw(sheet: Sheet, title: str = "") -> Any:
    """The sheet as matplotlib's figure, 1200 pixels wide or more: positives above, SR and negatives below.

    Under each image are its bands, all in one scale. Raises ImportError if matplotlib is not installed.
    """
    with named_in_errors():
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure

    # Dark bands are lifted: fine texture is far weaker than an edge. A few pixels do not count for the scale.
    white = max(float(bands.quantile(0.995)) for bands in sheet.bands.nan_to_num()) or 1.0
    norm = PowerNorm(0.6, 0, white, clip=True)
    above = [index for index, kind in enumerate(sheet.kinds) if kind in ("gt", "sharpen")]
    groups = [above, [*range(len(above), len(sheet.kinds))]][: 1 + (len(above) < len(sheet.kinds))]
    columns = max(map(len, groups))
    # A very long or very wide image is centred in its panel.
    depth = min(2.9, 12 / columns) * min(max(sheet.images.shape[2] / sheet.images.shape[3], 0.5), 1.5)
    size = (max(12.0, 1.4 * columns), 0.6 + len(groups) * (1.2 + 2 * depth))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    head = [title, "" if sheet.l_cl is None else f"$L_{{CL}}$ = {sheet.l_cl:.4f}", *sheet.notes]
    figure.suptitle("     ".join(filter(None, head)), fontsize=10)
    grid = figure.add_gridspec(2 * len(groups), columns)
    for line, group in enumerate(groups):
        for column, index in enumerate(group):
            panels = (grid[2 * line + below, column] for below in (0, 1))
            image, bands = (figure.add_subplot(panel, xticks=[], yticks=[]) for panel in panels)
            kind, number = sheet.kinds[index], sheet.draws[index]
            image.set_title(TITLES[kind] + ("" if number is None else f" {number:.2f}"), fontsize=9)
            pixels = sheet.images[index].clamp(0, 1).nan_to_num().movedim(0, -1)
            image.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            bands.imshow(sheet.bands[index].nan_to_num().numpy(), cmap="gray", norm=norm, interpolation="nearest")
            similarity = f"\ns = {sheet.similarities[index]:.4f}" if sheet.similarities else ""
            image.set_xlabel(f"PSNR {sheet.psnr[index]:.1f} dB{similarity}", fontsize=8)
            bands.set_xlabel(f"energy {sheet.energy[index]:.2f} x GT", fontsize=8)
    return figure


def to_pixels(figure: Any) -> Any:
    """A figure rendered to `(H, W, 3)`, RGB, uint8, without a window and without pyplot's global state."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
