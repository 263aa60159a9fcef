"""The samples of one image, and what can be measured of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import functional, samples
from ..._checks import MIN_SIZE, check_count, check_images
from ..._tensors import at_least_float32
from ...embedding import Embedding
from ...loss import PCLLoss
from ...wavelet import haar_dwt
from .._regions import Region, best_region

MAX_WINDOW = 256


@dataclass(frozen=True, eq=False)
class Panel:
    """One image of a sheet; all tensors are on the CPU.

    There are no similarities without an SR image and an embedding, and none for SR itself.
    """

    kind: str  # 'gt', 'sharpen', 'sr', 'blur' or 'lq'
    draw: float | None  # the sharpening factor or the sigma that was drawn; None for the others
    image: Tensor  # `(C, H, W)`, in [0, 1] but for SR, which is not clamped
    bands: Tensor  # `(ceil(H / 2), ceil(W / 2))`: `|LH| + |HL| + |HH|`, averaged over the channels
    energy: float  # the mean of `LH^2 + HL^2 + HH^2`, relative to that of GT (nan where GT has none)
    psnr: float  # to GT, in dB, over all pixels and channels; inf for an equal image
    # The cosine of equation 9 between the maps of SR and of this image; all layers have the size of the largest map.
    similarity_map: Tensor | None = None
    similarity: float | None = None  # `s` of equation 9, the mean over the pixels of every layer, and over the layers


@dataclass(frozen=True, eq=False)
class Sheet:
    """What `draw` draws."""

    positives: tuple[Panel, ...]  # GT, whether or not the loss takes it as a positive, and then the sharpened images
    negatives: tuple[Panel, ...]  # SR, if there is one, and then the blurred images and the enlarged LR
    gt_is_positive: bool  # whether the loss takes GT as a positive
    layer: int | None  # whose similarities these are; None is the mean over the layers
    num_layers: int  # how many layers the loss compares
    l_cl: float | None  # equation 10, unweighted, over all layers; None without an SR image and an embedding
    notes: tuple[str, ...]  # what the reader must know besides

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, GT first."""
        return self.positives + self.negatives


_Sample = tuple[str, float | None, Tensor]  # its kind, what was drawn for it, and the image `(1, C, H, W)`


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
    _check_images(hr, sr, lq, embedding)
    if layer is not None:
        check_count("layer", layer, 1, pcl.num_layers)

    def to_unit(images: Tensor) -> Tensor:
        return at_least_float32(images.detach()) / pcl.data_range

    gt, sr, lq = to_unit(hr), None if sr is None else to_unit(sr), None if lq is None else to_unit(lq)
    gt_is_positive = "gt" in pcl.samples.positives
    with torch.autocast(gt.device.type, enabled=False):
        drawn, notes = _draw_samples(gt, lq, pcl, generator or samples.seeded_generator(pcl.seed, 0))
        drawn.insert(0, ("gt", None, gt))
        maps: list[Tensor] = []
        l_cl = None
        if embedding is not None and sr is not None:
            maps = _cosines(sr, [image for _, _, image in drawn], embedding, pcl.num_layers)
            positive = [kind == "sharpen" or (kind == "gt" and gt_is_positive) for kind, _, _ in drawn]
            negative = [kind in ("blur", "lq") for kind, _, _ in drawn]
            sims = torch.stack([one.mean(dim=(1, 2)) for one in maps])
            l_cl = float(functional.info_nce(sims[:, positive], sims[:, negative], pcl.temperature))
        if sr is not None:
            drawn.append(("sr", None, sr))
        images = torch.cat([image for _, _, image in drawn])
        high = torch.stack(haar_dwt(images)[1:])
        bands, energy = high.abs().sum(0).mean(1), high.square().sum(0).mean(dim=(1, 2, 3))
        psnr = -10 * (images - gt).square().mean(dim=(1, 2, 3)).log10()

    panels: dict[str, list[Panel]] = {kind: [] for kind in ("gt", "sharpen", "sr", "blur", "lq")}
    for index, (kind, draw, image) in enumerate(drawn):
        relative = float(energy[index] / energy[0])
        panel = Panel(kind, draw, image[0].cpu(), bands[index].cpu(), relative, float(psnr[index]))
        if maps and kind != "sr":
            similarity_map, similarity = _similarity([one[index] for one in maps], layer)
            panel = replace(panel, similarity_map=similarity_map, similarity=similarity)
        panels[kind].append(panel)
    positives, negatives = panels["gt"] + panels["sharpen"], panels["sr"] + panels["blur"] + panels["lq"]
    return Sheet(tuple(positives), tuple(negatives), gt_is_positive, layer, pcl.num_layers, l_cl, tuple(notes))


def detailed_window(hr: Tensor, size: int = MAX_WINDOW, multiple: int = 1) -> Region:
    """The window of at most `size` pixels a side where an image `(1, C, H, W)` has the most high-frequency energy.

    It is the whole image where that is no larger. Its edges are multiples of `multiple`, the scale of an LR image.
    """
    step = math.lcm(2, multiple)  # whole 2x2 blocks of the Haar transform
    height, width = (min(side, size // step * step) for side in hr.shape[-2:])
    energy = torch.stack(haar_dwt(hr)[1:]).square().sum(dim=(0, 2))[0].float().cpu().numpy()
    # A last block that is half padding is in no window but the whole image.
    rows, columns = ((side + part % 2) // 2 for side, part in zip(hr.shape[-2:], (height, width), strict=True))
    best = best_region(energy[:rows, :columns], math.ceil(height / 2), math.ceil(width / 2), step // 2)
    return Region(2 * best.top, 2 * best.left, height, width)


def size_of(images: Tensor) -> str:
    """Height and width, for a message."""
    return f"{images.shape[-2]}x{images.shape[-1]}"


def _check_images(hr: Tensor, sr: Tensor | None, lq: Tensor | None, embedding: Embedding | None) -> None:
    check_images("hr", hr, min_size=MIN_SIZE)
    if len(hr) != 1:
        raise ValueError(f"hr must hold one image, got {tuple(hr.shape)}; a sheet shows one")
    if sr is not None:
        check_images("sr", sr)
        if sr.shape != hr.shape:
            raise ValueError(
                f"SR is {size_of(sr)}, but the image is {size_of(hr)}; give the SR image of this very image"
            )
    elif embedding is not None:
        raise ValueError("the similarities are those to an SR image: give one besides the embedding")
    if lq is not None:
        check_images("lq", lq)
        if lq.shape[:2] != hr.shape[:2]:
            raise ValueError(f"lq must be one image of hr's channels, got {tuple(lq.shape)} and {tuple(hr.shape)}")


def _draw_samples(
    gt: Tensor, lq: Tensor | None, pcl: PCLLoss, generator: torch.Generator
) -> tuple[list[_Sample], list[str]]:
    """The samples of one image in the order and with the draws of `PCLLoss`; and notes on what is left out."""
    draws = pcl.samples.draw(1, generator)
    made = pcl.samples.make(gt, lq, draws)
    numbers = {"sharpen": iter(draws.factors), "blur": iter(draws.sigmas)}
    kinds = [kind for kind in pcl.samples.kinds if kind != "lq" or lq is not None]
    drawn: list[_Sample] = [
        (kind, float(next(numbers[kind])) if kind in numbers else None, image)
        for kind, image in zip(kinds, made, strict=True)
        if kind != "gt"
    ]
    notes = []
    if "lq" in pcl.samples.negatives and lq is None:
        notes.append("without the negative 'lq': no LR image was given")
    if "batch" in pcl.samples.negatives:
        notes.append("without the negatives 'batch': one image has no batch mates")
    return drawn, notes


def _cosines(sr: Tensor, images: Sequence[Tensor], embedding: Embedding, num_layers: int) -> list[Tensor]:
    """The channel cosine of equation 9 at every pixel, L of `(K, H_l, W_l)`."""
    anchors = [_unit(maps) for maps in embedding.embed(sr, num_layers)]
    per_image = []
    for image in images:  # one at a time: a large window with many samples must not exhaust a GPU during training
        layers = embedding.embed(image, num_layers)
        per_image.append([(a * _unit(maps)).sum(1)[0] for a, maps in zip(anchors, layers, strict=True)])
    return [torch.stack(layer) for layer in zip(*per_image, strict=True)]


def _unit(maps: Tensor) -> Tensor:
    maps = at_least_float32(maps)
    return maps * functional.unit_norm_scale(maps)


def _similarity(maps: Sequence[Tensor], layer: int | None) -> tuple[Tensor, float]:
    """The similarity's map and its mean, of one layer or averaged over all."""
    chosen = list(maps) if layer is None else [maps[layer - 1]]
    # Nearest, so that the mean over the pixels stays what it is.
    resized = [F.interpolate(one[None, None], chosen[0].shape, mode="nearest-exact")[0, 0] for one in chosen]
    return torch.stack(resized).mean(0).cpu(), float(torch.stack([one.mean() for one in chosen]).mean())
