"""The colour shift in front of a network and behind it, folded into its first and last convolution.

The official codes have two 1x1 convolutions `sub_mean` and `add_mean`, BasicSR a constant `rgb_mean`, outside the
checkpoint. RCAN's own training code learns its two convolutions by accident, so they cannot be dropped unseen. With
colours in [0, r], `sub_mean(x) = W x + b`, `add_mean(x) = A x + c` and BasicSR's mean m:

- `A` and `c - r m` always fold into the last convolution, since nothing comes between.
- `W` folds into the first convolution if `b = -r W m`, that is `W x + b = W (x - r m)`. Any other `b` is refused: as a
  bias of the first convolution it would be wrong along the border, where the zero padding has no part in it.
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

    A range of None reads 255 or 1 off the shift. Raises ValueError if the shift is not there, or would not be exact
    with this range and mean.
    """
    try:
        w, b, a, c = (state[name].double().squeeze() for name in NAMES)
    except KeyError as error:
        raise ValueError(f"{error} is missing, a part of the mean shift") from error
    if rgb_range is None:
        rgb_range = 255.0 if b.abs().max() > 2 else 1.0
    # BasicSR rounds its mean to float32 as well.
    mean = torch.tensor(rgb_mean, dtype=torch.float32).double()
    if not (b / rgb_range + w @ mean).abs().max() <= _TOLERANCE:  # NaN too
        raise ValueError(
            f"sub_mean cannot be folded exactly for --rgb-range {rgb_range:g} and --rgb-mean {list(rgb_mean)}; "
            "give those of its training"
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
