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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..._checks import at_least_float32

NAMES = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")

# What the file of a mean shift may be off, in units of the range: some roundings to float32, which no image shows.
_TOLERANCE = 2e-7


def unfolded(rgb_range: float, rgb_mean: Sequence[float]) -> dict[str, Tensor]:
    """The official codes' two convolutions for this mean."""
    shift = torch.tensor(rgb_mean, dtype=torch.float32) * rgb_range
    identity = torch.eye(3).view(3, 3, 1, 1)
    return dict(zip(NAMES, (identity, -shift, identity.clone(), shift), strict=True))


def fold(
    state: Mapping[str, Tensor], rgb_range: float | None, rgb_mean: Sequence[float]
) -> tuple[dict[str, Tensor], float]:
    """The layers of an official state that change, at least in float32, and the range of the images.

    Args:
        state: with the official names.
        rgb_range: the largest value of the images; None reads 255 or 1 off the shift.
        rgb_mean: the mean colour in [0, 1] of the network that the layers are for.

    Raises:
        ValueError: the shift is not there or not finite, or would not be exact with this range and mean.
    """
    shapes = {name: (3, 3) if name.endswith("weight") else (3,) for name in NAMES}
    try:
        w, b, a, c = (state[name].double().reshape(shape) for name, shape in shapes.items())
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"the mean shift ({', '.join(NAMES)}) is not there as published: {error}") from error
    if not all(value.isfinite().all() for value in (w, b, a, c)):
        raise ValueError("sub_mean or add_mean holds values that are not finite: a checkpoint of a failed training")
    # The colour that becomes 0, which is what the zero padding of the first convolution stands for.
    black = -torch.linalg.pinv(w) @ b
    likely_range = 255.0 if black.abs().max() > 2 else 1.0
    rgb_range = likely_range if rgb_range is None else rgb_range
    # BasicSR rounds its mean to float32 as well.
    mean = torch.tensor(rgb_mean, dtype=torch.float32).double()
    off = {r: float((b / r + w @ mean).abs().max()) for r in (rgb_range, likely_range)}
    if off[rgb_range] > _TOLERANCE >= off[likely_range]:
        raise ValueError(f"the mean shift is that of --rgb-range {likely_range:g}, not {rgb_range:g}")
    if off[rgb_range] > _TOLERANCE:
        fitting = " ".join(f"{value:.9f}" for value in (black / rgb_range).tolist())
        is_singular = (w @ black + b).abs().max() > _TOLERANCE * rgb_range
        raise ValueError(
            f"sub_mean cannot be folded exactly for --rgb-range {rgb_range:g} and the rgb_mean {list(rgb_mean)}: as a "
            "bias it would be wrong along the border of every image, where there is zero padding. "
            + ("Its colour matrix is singular: no rgb_mean is right for it" if is_singular else "")
            + (
                ""
                if is_singular
                else f"Take --rgb-range {rgb_range:g} --rgb-mean {fitting}, and these as rgb_mean in network_g"
            )
        )
    folded = {}
    identity = torch.eye(3, dtype=torch.float64)
    if not torch.equal(w, identity):
        folded["head.0.weight"] = torch.einsum("oikl,ij->ojkl", state["head.0.weight"].double(), w)
    c = c - rgb_range * mean
    if not torch.equal(a, identity) or c.abs().max() > _TOLERANCE * rgb_range:
        folded["tail.1.weight"] = torch.einsum("oi,ijkl->ojkl", a, state["tail.1.weight"].double())
        folded["tail.1.bias"] = a @ state["tail.1.bias"].double() + c
    return {key: value.to(at_least_float32(state[key]).dtype) for key, value in folded.items()}, rgb_range
