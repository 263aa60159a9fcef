"""A rectangle of an image, and the search for the square that shows most."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = TypeVar("Pixels", Tensor, NDArray[Any])


class Region(NamedTuple):
    """A rectangle, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Pixels, shrink: int = 1) -> Pixels:
        """Its part of an array `(H, W, ...)` or a tensor `(..., H, W)`, or of one `shrink` times smaller."""
        top, left, height, width = (value // shrink for value in self)
        rows, columns = slice(top, top + height), slice(left, left + width)
        return image[..., rows, columns] if isinstance(image, Tensor) else image[rows, columns]


def tiles(height: int, width: int, size: int, step: int) -> list[Region]:
    """Squares that cover an image row by row: one every `step` pixels, and a last one flush with the edge."""
    tops, lefts = (sorted({*range(0, length - size + 1, step), length - size}) for length in (height, width))
    return [Region(top, left, size, size) for top in tops for left in lefts]


def best_region(detail: NDArray[Any], size: int) -> Region:
    """The square with the largest sum of `detail`, `(H, W)`, the first of equal ones; it must fit."""
    # Sums over all windows at once, as differences of cumulative sums.
    sums = np.pad(detail.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return Region(int(top), int(left), size, size)
