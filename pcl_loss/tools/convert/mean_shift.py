"""The colour shift in front of a network and behind it, folded into its first and last convolution.

The official codes have two 1x1 convolutions `sub_mean` and `add_mean`, BasicSR a constant `rgb_mean`, outside the
checkpoint. RCAN's own training code learns its two convolutions by accident, so they cannot be dropped unseen. With
colours in [0, r], `sub_mean(x) = W x + b`, `add_mean(x) = A x + c` and BasicSR's mean m:

- `A` and `c - r m` always fold into the last convolution, since nothing comes between.
- `W` folds into the first convolution if `b = -r W m`: then `W x + b = W (x - r m)`, and the zeros that pad
  `x - r m` are the zeros that pad `W (x - r m)`.
- Any other `b` is refused: as a bias of the first convolution it would be right inside the image and wrong along its
  border, where the padding has no part in it. As `rgb_mean` is an option of `network_g`, there is a way out for every
  regular `W`, m = -W^-1 b / r, and the error names it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..._tensors import at_least_float32

SHAPES: dict[str, tuple[int, ...]] = {
    "sub_mean.weight": (3, 3, 1, 1),
    "sub_mean.bias": (3,),
    "add_mean.weight": (3, 3, 1, 1),
    "add_mean.bias": (3,),
}

# What the file of a mean shift may be off, in units of the range: some roundings to float32, which no image shows.
_TOLERANCE = 2e-7
_IDENTITY = torch.eye(3, dtype=torch.float64)


def unfolded(rgb_range: float, rgb_mean: tuple[float, ...]) -> dict[str, Tensor]:
    """The official codes' two convolutions for this mean."""
    shift = torch.tensor(rgb_mean, dtype=torch.float32) * rgb_range
    identity = torch.eye(3).view(3, 3, 1, 1)
    return dict(zip(SHAPES, (identity, -shift, identity.clone(), shift), strict=True))


def fold(
    state: Mapping[str, Tensor], rgb_range: float | None, rgb_mean: tuple[float, ...]
) -> tuple[dict[str, Tensor], float]:
    """The layers of an official state that change, at least in float32, and the range of the images.

    `rgb_mean`, in [0, 1], is that of the network that the layers are for. An `rgb_range` of None reads 255 or 1 off the
    shift. Raises ValueError if the shift is not finite, or would not be exact with this range and mean.
    """
    before, before_offset, after, after_offset = (state[key].double().squeeze() for key in SHAPES)
    if not all(value.isfinite().all() for value in (before, before_offset, after, after_offset)):
        raise ValueError("sub_mean or add_mean holds values that are not finite: a checkpoint of a failed training")
    # The colour that becomes 0, which is what the zero padding of the first convolution stands for.
    black = -torch.linalg.pinv(before) @ before_offset
    likely_range = 255.0 if black.abs().max() > 2 else 1.0
    # BasicSR rounds its mean to float32 as well.
    mean = torch.tensor(rgb_mean, dtype=torch.float32).double()

    def error(image_range: float) -> float:
        """How far the padding would be off, in units of the range."""
        return float((before_offset / image_range + before @ mean).abs().max())

    rgb_range = likely_range if rgb_range is None else rgb_range
    if error(rgb_range) > _TOLERANCE >= error(likely_range):
        raise ValueError(f"the mean shift is that of --rgb-range {likely_range:g}, not {rgb_range:g}")
    if error(rgb_range) > _TOLERANCE:
        if (before @ black + before_offset).abs().max() > _TOLERANCE * rgb_range:
            way_out = "Its colour matrix is singular: no rgb_mean is right for it"
        else:
            fitting = " ".join(f"{value:.9f}" for value in (black / rgb_range).tolist())
            way_out = (
                f"It folds exactly with --rgb-range {rgb_range:g} --rgb-mean {fitting}, with the same numbers as "
                "rgb_mean in network_g"
            )
        raise ValueError(
            f"sub_mean cannot be folded exactly for --rgb-range {rgb_range:g} and the rgb_mean {list(rgb_mean)}: the "
            f"colour that it maps to 0, which the first convolution's zero padding stands for, is another one (the "
            f"shift is off by {error(rgb_range):.3g} of the range), and a bias instead of it would be wrong along the "
            f"border of every image. {way_out}"
        )

    folded = {}
    if not torch.equal(before, _IDENTITY):
        folded["head.0.weight"] = torch.einsum("oikl,ij->ojkl", state["head.0.weight"].double(), before)
    after_offset = after_offset - rgb_range * mean
    if not torch.equal(after, _IDENTITY) or after_offset.abs().max() > _TOLERANCE * rgb_range:
        folded["tail.1.weight"] = torch.einsum("oi,ijkl->ojkl", after, state["tail.1.weight"].double())
        folded["tail.1.bias"] = after @ state["tail.1.bias"].double() + after_offset
    return {key: value.to(at_least_float32(state[key]).dtype) for key, value in folded.items()}, rgb_range
