"""The Haar transform: what the discriminator sees of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_images


def haar_dwt(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of the orthonormal Haar transform: `(ll, lh, hl, hh)`, each `(N, C, ceil(H / 2), ceil(W / 2))`.

    With the 2x2 block `a b / c d`: `ll = (a + b + c + d) / 2`, `lh = (a + b - c - d) / 2` (change along the
    height), `hl = (a - b + c - d) / 2` (change along the width), `hh = (a - b - c + d) / 2`. On even sizes these
    are PyWavelets' `cA, (cH, cV, cD) = dwt2(x, 'haar')`.

    `x` is `(N, C, H, W)`, any floating dtype and range, `H, W >= 2`; an odd side is padded by one reflected row or
    column. Raises TypeError or ValueError if it is not such a tensor.
    """
    check_images("x", x, min_size=2)
    top, bottom = _halves(x, dim=-2)
    row_low, row_high = top + bottom, top - bottom
    (a, b), (c, d) = _halves(row_low, dim=-1), _halves(row_high, dim=-1)
    return (a + b) * 0.5, (c + d) * 0.5, (a - b) * 0.5, (c - d) * 0.5


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    size = x.shape[dim]
    if size % 2:
        # Not F.pad: its reflection has no half-precision kernel on every device.
        x = torch.cat([x, x.narrow(dim, size - 2, 1)], dim)
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim)
    return even, odd
