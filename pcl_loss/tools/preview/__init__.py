"""`pcl-loss preview`: what the loss compares, as one picture: GT, its positives, its negatives, and their bands."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import functional, samples
from ..._checks import MIN_SIZE, check_count, check_images
from ..._tensors import at_least_float32
from ...discriminator import WaveletDiscriminator
from ...embedding import Embedding
from ...loss import PCLLoss
from ...wavelet import haar_dwt

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MAX_WINDOW = 256
MAX_COLUMNS = 6

TITLES = {"gt": "GT", "sharpen": "sharpened", "sr": "SR", "blur": "blurred", "lq": "enlarged LR"}
DRAWS = {"sharpen": "factor", "blur": "sigma"}


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, images: Tensor, shrink: int = 1) -> Tensor:
        """Its part of images `(N, C, H, W)`, or of ones `shrink` times smaller."""
        top, left, height, width = (value // shrink for value in self)
        return images[..., top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a sheet; all tensors are on the CPU.

    Attributes:
        kind: `'gt'`, `'sharpen'`, `'sr'`, `'blur'` or `'lq'`.
        draw: the sharpening factor or the sigma that was drawn; None for the others.
        image: `(C, H, W)`, in [0, 1] but for SR, which is not clamped.
        bands: `(ceil(H / 2), ceil(W / 2))`: `|LH| + |HL| + |HH|`, averaged over the channels.
        energy: the mean of `LH^2 + HL^2 + HH^2`, relative to that of GT (nan where GT has none).
        psnr: to GT, in dB, over all pixels and channels; inf for an equal image.
        similarity_map: the cosine of equation 9 at every pixel, between the maps of SR and of this image; None
            without an SR image and an embedding, and for SR itself. All layers have the size of the largest map.
        similarity: `s` of equation 9, the mean over the pixels of every layer, and over the layers.
    """

    kind: str
    draw: float | None
    image: Tensor
    bands: Tensor
    energy: float
    psnr: float
    similarity_map: Tensor | None = None
    similarity: float | None = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """What `draw` draws.

    Attributes:
        positives: GT, whether or not the loss takes it as a positive, and then the sharpened images.
        negatives: SR, if there is one, and then the blurred images and the enlarged LR.
        gt_is_positive: whether the loss takes GT as a positive.
        layer: whose similarities these are; None is the mean over the layers.
        num_layers: how many layers the loss compares.
        l_cl: equation 10, unweighted, over all layers; None without an SR image and an embedding.
        notes: what the reader must know besides.
    """

    positives: tuple[Panel, ...]
    negatives: tuple[Panel, ...]
    gt_is_positive: bool
    layer: int | None
    num_layers: int
    l_cl: float | None
    notes: tuple[str, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, GT first."""
        return self.positives + self.negatives


# The data


@torch.no_grad()
def make_sheet(
    hr: Tensor,
    pcl: PCLLoss,
    *,
    sr: Tensor | None = None,
    lq: Tensor | None = None,
    embedding: Embedding | None = None,
    layer: int | None = None,
    generator: torch.Generator | None = None,
) -> Sheet:
    """The samples that `pcl` would make of one image, and what can be measured of them.

    Neither `pcl`, nor the embedding, nor the global random numbers are changed. The negatives `'batch'`, for which one
    image has no batch mates, are left out with a note; so is `'lq'` without an LR image.

    Args:
        hr: the ground truth, `(1, C, H, W)` in `[0, data_range]` of `pcl`, `H, W >= 32`.
        pcl: its knobs tell which samples there are.
        sr: the super-resolved image, the same shape and range.
        lq: the LR image, `(1, C, h, w)`, the same range.
        embedding: what embeds SR and the samples, for the similarities; needs `sr`.
        layer: whose similarities to show, from 1 to `pcl.num_layers`; None is the mean over these layers.
        generator: where the samples' random numbers come from; by default that of the first call of `PCLLoss`, from
            `pcl.seed`.

    Raises:
        TypeError: an image is not a float tensor.
        ValueError: a shape does not fit, `layer` is out of range, or `embedding` is given without `sr`.
    """
    gt, sr, lq = _check_inputs(hr, sr, lq, embedding, pcl)
    if layer is not None:
        check_count("layer", layer, 1, pcl.num_layers)
    if generator is None:
        generator = samples.seeded_generator(pcl.seed, 0)
    with torch.autocast(gt.device.type, enabled=False):
        drawn, notes = _draw_samples(gt, lq, pcl, generator)
        kinds = ["gt", *(kind for kind, _, _ in drawn)]
        draws = [None, *(draw for _, draw, _ in drawn)]
        images = torch.cat([gt, *(image for _, _, image in drawn)])
        maps = None
        if embedding is not None and sr is not None:
            maps = _cosines(sr, images, embedding, pcl.num_layers)
        if sr is not None:
            kinds, draws, images = [*kinds, "sr"], [*draws, None], torch.cat([images, sr])
        bands, energy = high_frequencies(images)
        psnr = -10 * (images - gt).square().mean(dim=(1, 2, 3)).log10()

    panels = []
    for index, kind in enumerate(kinds):
        shown: dict[str, Any] = {}
        if maps is not None and kind != "sr":
            shown = _similarity([layer_maps[index] for layer_maps in maps], layer)
        panels.append(
            Panel(
                kind=kind,
                draw=draws[index],
                image=images[index].cpu(),
                bands=bands[index].cpu(),
                energy=float(energy[index] / energy[0]),
                psnr=float(psnr[index]),
                **shown,
            )
        )
    gt_is_positive = "gt" in pcl.positives
    l_cl = None
    if maps is not None:
        l_cl = _contrastive_loss(maps, kinds, gt_is_positive, pcl.temperature)
    return Sheet(
        positives=tuple(panel for panel in panels if panel.kind in ("gt", "sharpen")),
        negatives=tuple(panel for panel in panels if panel.kind == "sr")
        + tuple(panel for panel in panels if panel.kind in ("blur", "lq")),
        gt_is_positive=gt_is_positive,
        layer=layer,
        num_layers=pcl.num_layers,
        l_cl=l_cl,
        notes=tuple(notes),
    )


def high_frequencies(images: Tensor) -> tuple[Tensor, Tensor]:
    """How strong an image's Haar high-frequency bands are.

    Args:
        images: `(N, C, H, W)`.

    Returns:
        `|LH| + |HL| + |HH|`, averaged over the channels, `(N, ceil(H / 2), ceil(W / 2))`; and the mean of
        `LH^2 + HL^2 + HH^2`, `(N,)`.
    """
    high = torch.stack(haar_dwt(images)[1:])
    return high.abs().sum(0).mean(1), high.square().sum(0).mean(dim=(1, 2, 3))


def detailed_window(hr: Tensor, size: int = MAX_WINDOW, multiple: int = 1) -> Window:
    """The window of at most `size` pixels a side where an image has the most high-frequency energy.

    Args:
        hr: `(1, C, H, W)`.
        size: the most of its height and its width.
        multiple: of which its edges are multiples, for an LR image of such a scale.

    Returns:
        The whole image where it is no larger.
    """
    step = math.lcm(2, multiple)  # whole 2x2 blocks of the Haar transform
    height, width = (min(side, size // step * step) for side in hr.shape[-2:])
    energy = torch.stack(haar_dwt(hr)[1:]).square().sum(dim=(0, 2))
    kernel = (math.ceil(height / 2), math.ceil(width / 2))
    stride = max(step // 2, size // 16 // step * step // 2)
    means = F.avg_pool2d(energy, kernel, stride)[0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return Window(2 * row * stride, 2 * column * stride, height, width)


def load_discriminator(path: str | os.PathLike[str]) -> WaveletDiscriminator:
    """E_D from a file `net_d_*.pth` of BasicSR, built as the shapes in it say, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no E_D file {path}; name a net_d_*.pth below experiments/NAME/models")
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a PyTorch file of weights ({error}); name a net_d_*.pth") from error
    if not isinstance(file, Mapping) or not isinstance(file.get("params"), Mapping):
        found = sorted(map(str, file))[:4] if isinstance(file, Mapping) else type(file).__name__
        raise ValueError(f"{path} has no key 'params' (found: {found}); name a net_d_*.pth that BasicSR saved")
    state = file["params"]
    first = state.get("blocks.0.conv.weight")
    if not isinstance(first, Tensor) or first.dim() != 4 or "head.weight" not in state:
        raise ValueError(
            f"{path} holds no WaveletDiscriminator (its first keys: {list(state)[:3]}); name a net_d_*.pth, "
            "not a net_g_*.pth"
        )
    num_feat, in_ch = first.shape[:2]
    if in_ch not in (3, 9):
        raise ValueError(f"{path}: E_D's first layer has {in_ch} input channels; colour images need 9 (wavelet) or 3")
    norm = "none"
    if "blocks.0.norm.running_mean" in state:
        norm = "batch"
    elif "blocks.0.norm.weight" in state:
        norm = "group"
    # Built with the weights of the file alone: the caller's random numbers are none of its business.
    with torch.device("meta"):
        net = WaveletDiscriminator(3, num_feat, norm, wavelet=in_ch == 9)
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a WaveletDiscriminator with num_feat={num_feat}: {error}") from error
    return net.requires_grad_(False).eval()


def _check_inputs(
    hr: Tensor, sr: Tensor | None, lq: Tensor | None, embedding: Embedding | None, pcl: PCLLoss
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The images in [0, 1]."""
    check_images("hr", hr, min_size=MIN_SIZE)
    if len(hr) != 1:
        raise ValueError(f"hr must hold one image, got {tuple(hr.shape)}; a sheet shows one")
    if sr is not None:
        check_images("sr", sr)
        if sr.shape != hr.shape:
            raise ValueError(
                f"SR is {_size(sr)}, but the image is {_size(hr)}; give the SR image of this very image, at its scale"
            )
    elif embedding is not None:
        raise ValueError("the similarities are those to an SR image: give one besides the embedding")
    if lq is not None:
        check_images("lq", lq)
        if lq.shape[:2] != hr.shape[:2]:
            raise ValueError(f"lq must be one image of hr's channels, got {tuple(lq.shape)} and {tuple(hr.shape)}")

    def to_unit(images: Tensor) -> Tensor:
        return at_least_float32(images.detach()) / pcl.data_range

    return to_unit(hr), None if sr is None else to_unit(sr), None if lq is None else to_unit(lq)


def _draw_samples(
    gt: Tensor, lq: Tensor | None, pcl: PCLLoss, generator: torch.Generator
) -> tuple[list[tuple[str, float | None, Tensor]], list[str]]:
    """Kind, draw and image `(1, C, H, W)` of each sample, in the order and with the draws of `PCLLoss`; and notes."""
    drawn: list[tuple[str, float | None, Tensor]] = []
    notes = []
    if "sharpen" in pcl.positives:
        factors = samples.draw_uniform(*pcl.sharpness, (pcl.num_positives, 1), generator)
        images = samples.sharpen(gt, factors)
        drawn += [("sharpen", float(factor), image) for factor, image in zip(factors, images, strict=True)]
    if "blur" in pcl.negatives:
        sigmas = samples.draw_uniform(*pcl.blur_sigma, (pcl.num_negatives, 1), generator)
        images = samples.blur(gt, sigmas, pcl.blur_sigma[1])
        drawn += [("blur", float(sigma), image) for sigma, image in zip(sigmas, images, strict=True)]
    if "lq" in pcl.negatives:
        if lq is None:
            notes.append("without the negative 'lq': no LR image was given")
        else:
            drawn.append(("lq", None, samples.upsample(lq, (gt.shape[-2], gt.shape[-1]))))
    if "batch" in pcl.negatives:
        notes.append("without the negatives 'batch': one image has no batch mates")
    return drawn, notes


def _cosines(sr: Tensor, images: Tensor, embedding: Embedding, num_layers: int) -> list[Tensor]:
    """The channel cosine of equation 9 at every pixel, L of `(K, H_l, W_l)`."""
    anchors = [_unit(maps) for maps in embedding.embed(sr, num_layers)]
    per_image = []
    for image in images:  # one at a time: a large window with many samples must not exhaust a GPU during training
        layers = embedding.embed(image[None], num_layers)
        per_image.append([(a * _unit(maps)).sum(1)[0] for a, maps in zip(anchors, layers, strict=True)])
    return [torch.stack(layer) for layer in zip(*per_image, strict=True)]


def _unit(maps: Tensor) -> Tensor:
    maps = at_least_float32(maps)
    return maps * functional.unit_norm_scale(maps)


def _similarity(maps: Sequence[Tensor], layer: int | None) -> dict[str, Any]:
    chosen = list(maps) if layer is None else [maps[layer - 1]]
    size = chosen[0].shape
    # Nearest, so that the mean over the pixels stays what it is.
    resized = [F.interpolate(one[None, None], size, mode="nearest-exact")[0, 0] for one in chosen]
    return {
        "similarity_map": torch.stack(resized).mean(0).cpu(),
        "similarity": float(torch.stack([one.mean() for one in chosen]).mean()),
    }


def _contrastive_loss(maps: Sequence[Tensor], kinds: Sequence[str], gt_is_positive: bool, tau: float) -> float:
    positives = [i for i, kind in enumerate(kinds) if kind == "sharpen" or (kind == "gt" and gt_is_positive)]
    negatives = [i for i, kind in enumerate(kinds) if kind in ("blur", "lq")]
    losses = []
    for layer_maps in maps:
        sims = layer_maps.mean(dim=(1, 2))[None]
        losses.append(functional.info_nce(sims[:, positives], sims[:, negatives], tau))
    return float(torch.stack(losses).mean())


def _size(images: Tensor) -> str:
    return f"{images.shape[-2]}x{images.shape[-1]}"


# The picture

DPI = 100
WIDTH = 12.0  # inches
LEFT, RIGHT, GAP = 0.42, 0.12, 0.12
MAX_PANEL = 2.9
TITLE, CAPTION, GROUP_GAP = 0.26, 0.26, 0.18
HEADER, FOOTER = 0.5, 0.72


def draw(sheet: Sheet, title: str = "") -> Figure:
    """The sheet as a figure, 1200 pixels wide: positives above, SR and negatives below; under each image its bands and,
    if there are, its similarities to SR, all bands in one scale and all similarities in one.

    Args:
        sheet: from `make_sheet`.
        title: for the head line.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the preview needs matplotlib: pip install 'pcl_loss[plots]'") from error
    rows = [row for group in (sheet.positives, sheet.negatives) for row in _split(group)]
    columns = max(map(len, rows))
    panel_width = min(MAX_PANEL, (WIDTH - LEFT - RIGHT - (columns - 1) * GAP) / columns)
    image_height, image_width = sheet.panels[0].image.shape[-2:]
    # A very long or very wide image is centred in its panel.
    panel_height = min(max(panel_width * image_height / image_width, 1.1), 1.5 * panel_width)
    has_maps = sheet.l_cl is not None
    lines = 3 if has_maps else 2
    row_height = TITLE + lines * (panel_height + CAPTION) + GROUP_GAP
    height = HEADER + len(rows) * row_height + FOOTER
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)

    def place(left: float, top: float, width: float, depth: float) -> Any:
        """Axes at inches from the left and from the top: nothing can overlap."""
        return figure.add_axes((left / WIDTH, 1 - (top + depth) / height, width / WIDTH, depth / height))

    band_max = max(_top(panel.bands) for panel in sheet.panels) or 1.0
    sim_min = _lowest_similarity(sheet)
    # Dark ones are lifted, all by the same curve: fine texture is far weaker than an edge.
    band_scale = PowerNorm(0.6, 0, band_max, clip=True)
    band_image: Any = None
    sim_image: Any = None
    head = [title] if title else []
    if sheet.l_cl is not None:
        head.append(f"$L_{{CL}}$ = {sheet.l_cl:.4f} over {sheet.num_layers} layers")
    figure.text(LEFT / WIDTH, 1 - 0.14 / height, "     ".join(head), fontsize=11, weight="bold", va="top")
    figure.text(LEFT / WIDTH, 1 - 0.36 / height, "; ".join(sheet.notes), fontsize=8.5, va="top", color="#444444")
    for number, row in enumerate(rows):
        top = HEADER + number * row_height + TITLE
        labels = ("image", "|LH| + |HL| + |HH|", "similarity to SR")[:lines]
        for line, label in enumerate(labels):
            middle = top + line * (panel_height + CAPTION) + panel_height / 2
            size = 8.5 if panel_height > 1.3 else 6.5
            figure.text(
                (LEFT - 0.16) / WIDTH, 1 - middle / height, label, fontsize=size, rotation=90, ha="center", va="center"
            )
        for column, panel in enumerate(row):
            left = LEFT + column * (panel_width + GAP)
            ax = place(left, top, panel_width, panel_height)
            picture = torch.nan_to_num(panel.image).clamp(0, 1).movedim(0, -1).numpy()
            ax.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
            _frame(ax, "" if panel.kind == "gt" else f"PSNR {_number(panel.psnr, '.1f')} dB")
            role = _role(panel, sheet)
            ax.set_title(role, fontsize=9.5, color=_color(panel, sheet), weight="bold", pad=4)
            ax = place(left, top + panel_height + CAPTION, panel_width, panel_height)
            band_image = ax.imshow(torch.nan_to_num(panel.bands).numpy(), cmap="gray", norm=band_scale)
            _frame(ax, f"HF energy {_number(panel.energy, '.2f')} x GT")
            if panel.similarity_map is not None:
                ax = place(left, top + 2 * (panel_height + CAPTION), panel_width, panel_height)
                cosines = torch.nan_to_num(panel.similarity_map).numpy()
                sim_image = ax.imshow(cosines, cmap="viridis", vmin=sim_min, vmax=1, interpolation="nearest")
                _frame(ax, f"s = {_number(panel.similarity, '.4f')}")
    bars = [(band_image, "|LH| + |HL| + |HH|, mean over the channels")]
    if sim_image is not None:
        of = "mean over the layers" if sheet.layer is None else f"layer {sheet.layer}"
        bars.append((sim_image, f"channel cosine with SR (eq 9), {of}"))
    bar_width = min(4.5, (WIDTH - LEFT - RIGHT) / 2 - 0.5)
    for number, (image, label) in enumerate(bars):
        bar = figure.colorbar(
            image,
            cax=place(LEFT + number * (bar_width + 0.6), height - FOOTER + 0.08, bar_width, 0.13),
            orientation="horizontal",
        )
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


def _top(bands: Tensor) -> float:
    """The white of the bands: but for a few pixels, which would darken all others."""
    return float(torch.nan_to_num(bands).flatten().kthvalue(max(1, int(0.995 * bands.numel()))).values)


def _lowest_similarity(sheet: Sheet) -> float:
    maps = [torch.nan_to_num(p.similarity_map).flatten() for p in sheet.panels if p.similarity_map is not None]
    if not maps:
        return 0.0
    lowest = min(float(one.kthvalue(max(1, int(0.01 * one.numel()))).values) for one in maps)
    return max(-1.0, min(0.9, math.floor(lowest * 10) / 10))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def _role(panel: Panel, sheet: Sheet) -> str:
    if panel.draw is not None:
        return f"{TITLES[panel.kind]}, {DRAWS[panel.kind]} {panel.draw:.2f}"
    if panel.kind == "gt":
        return "GT, a positive" if sheet.gt_is_positive else "GT, no positive"
    return f"{TITLES[panel.kind]}, the anchor" if panel.kind == "sr" else TITLES[panel.kind]


def _color(panel: Panel, sheet: Sheet) -> str:
    # Distinguishable for colour-blind readers too (Okabe and Ito).
    if panel.kind in ("blur", "lq"):
        return "#D55E00"
    return "#0072B2" if panel.kind == "sharpen" or (panel.kind == "gt" and sheet.gt_is_positive) else "black"


def _frame(ax: Any, caption: str) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)
    ax.set_xlabel(caption, fontsize=8.5, labelpad=3)


# The verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss preview`."""
    parser.add_argument("--image", type=Path, required=True, metavar="FILE", help="the ground truth")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, such as sheet.png")
    parser.add_argument("--sr", type=Path, metavar="FILE", help="its super-resolved image")
    parser.add_argument("--lq", type=Path, metavar="FILE", help="its LR image, for the negative 'lq'")
    parser.add_argument("--net-d", type=Path, metavar="FILE", help="a trained E_D, net_d_*.pth: similarities to --sr")
    parser.add_argument("--layer", type=int, metavar="N", help="similarities of this layer (default: mean over all)")
    parser.add_argument(
        "--crop", metavar="TOP,LEFT,SIZE", help=f"a square (default: a detailed one, {MAX_WINDOW} pixels at most)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument("--opt", type=Path, metavar="FILE.yml", help="take the knobs from its train.pcl_opt")
    knobs = parser.add_argument_group("knobs of PCLLoss, before those of --opt")
    knobs.add_argument("--num-positives", type=int, metavar="K")
    knobs.add_argument("--num-negatives", type=int, metavar="K")
    knobs.add_argument("--positives", nargs="+", metavar="NAME", help=", ".join(samples.POSITIVE_SOURCES))
    knobs.add_argument("--negatives", nargs="+", metavar="NAME", help=", ".join(samples.NEGATIVE_SOURCES))
    knobs.add_argument("--sharpness", type=float, nargs=2, metavar=("LOW", "HIGH"))
    knobs.add_argument("--blur-sigma", type=float, nargs=2, metavar=("LOW", "HIGH"))
    knobs.add_argument("--num-layers", type=int, metavar="L")
    knobs.add_argument("--temperature", type=float, metavar="TAU")


KNOBS = (
    "num_positives",
    "num_negatives",
    "positives",
    "negatives",
    "sharpness",
    "blur_sigma",
    "num_layers",
    "temperature",
)


def run(args: argparse.Namespace) -> int:
    """Draw the sheet that the flags describe.

    Returns:
        0.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError, TypeError: a file is of another kind or size, or a knob is out of range.
        ImportError: matplotlib is not installed.
    """
    pcl = _loss_of(args)
    if args.net_d is not None and args.sr is None:
        raise ValueError("--net-d gives similarities to an SR image: add --sr FILE")
    if args.layer is not None and args.net_d is None:
        raise ValueError("--layer chooses among the similarities of an E_D: add --net-d FILE")
    hr = read_image(args.image)
    if min(hr.shape[-2:]) < MIN_SIZE:
        raise ValueError(f"{args.image} is {_size(hr)}; at least {MIN_SIZE}x{MIN_SIZE} is needed")
    sr = lq = None
    if args.sr is not None:
        sr = read_image(args.sr)
        if sr.shape != hr.shape:
            raise ValueError(
                f"{args.sr} is {_size(sr)}, but {args.image} is {_size(hr)}; give the SR image of this very image"
            )
    scale = 1
    if args.lq is not None:
        lq = read_image(args.lq)
        scale = _scale(hr, lq, args)
    window = detailed_window(hr, multiple=scale) if args.crop is None else _parse_crop(args.crop, hr, scale)
    net_d = None if args.net_d is None else load_discriminator(args.net_d)
    sheet = make_sheet(
        window.cut(hr),
        pcl,
        sr=None if sr is None else window.cut(sr),
        lq=None if lq is None else window.cut(lq, scale),
        embedding=net_d,
        layer=args.layer,
    )
    place = f"{window.height}x{window.width} at {window.top},{window.left}"
    figure = draw(sheet, f"{args.image.name}, {place}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    value = "" if sheet.l_cl is None else f"; L_CL = {sheet.l_cl:.4f}"
    print("; ".join([f"{args.out}: {place} of {args.image}{value}", *sheet.notes]))
    return 0


def read_image(path: Path) -> Tensor:
    """An image file as `_files.read_image` reads it, as a tensor `(1, 3, H, W)`, RGB, in [0, 1]."""
    import numpy as np

    from .. import _files

    bgr = _files.read_image(path)
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).permute(2, 0, 1)[None].float() / 255


def _loss_of(args: argparse.Namespace) -> PCLLoss:
    knobs = {} if args.opt is None else _pcl_opt(args.opt)
    knobs |= {key: getattr(args, key) for key in KNOBS if getattr(args, key) is not None}
    if args.lq is not None:
        negatives = knobs.get("negatives", ("blur",))
        if "lq" not in negatives:
            if args.negatives is not None or args.opt is not None:
                raise ValueError(
                    f"--lq is given, but the negatives are {list(negatives)}; add 'lq' there, or drop --lq"
                )
            knobs["negatives"] = ("blur", "lq")
    return PCLLoss(**(knobs | {"data_range": 1.0, "seed": args.seed}))


def _pcl_opt(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no option file {path}")
    with path.open(encoding="utf-8") as file:
        try:
            options = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from error
    train = options.get("train") if isinstance(options, dict) else None
    block = train.get("pcl_opt") if isinstance(train, dict) else None
    if not isinstance(block, dict):
        raise ValueError(f"{path} has no block train.pcl_opt; give a training YAML with PCL, or the knobs as flags")
    knobs = {key: value for key, value in block.items() if key != "type"}
    try:
        PCLLoss(**knobs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: train.pcl_opt: {error}") from error
    return knobs


def _scale(hr: Tensor, lq: Tensor, args: argparse.Namespace) -> int:
    scale = hr.shape[-1] // lq.shape[-1]
    if scale < 1 or any(big != scale * small for big, small in zip(hr.shape[-2:], lq.shape[-2:], strict=True)):
        raise ValueError(
            f"{args.image} is {_size(hr)}, which is no whole multiple of {args.lq}, {_size(lq)}; "
            "give the LR image of this very image, and crop the image to a multiple of the scale"
        )
    return scale


def _parse_crop(text: str, hr: Tensor, scale: int) -> Window:
    try:
        top, left, size = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"--crop must be TOP,LEFT,SIZE, three whole numbers, got {text!r}") from None
    if size < MIN_SIZE:
        raise ValueError(f"--crop {text}: SIZE must be at least {MIN_SIZE}")
    height, width = hr.shape[-2:]
    if min(top, left) < 0 or top + size > height or left + size > width:
        raise ValueError(f"--crop {text} reaches beyond the image of {height}x{width}")
    if any(number % scale for number in (top, left, size)):
        fit = ",".join(str(number // scale * scale) for number in (top, left, size))
        raise ValueError(f"--crop {text}: with an LR image of scale {scale} take multiples of it, such as {fit}")
    return Window(top, left, size, size)
