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

    def check_inside(self, height: int, width: int) -> None:
        """Raise ValueError unless it has pixels, and all of them lie within an image of this size."""
        inside = self.top + self.height <= height and self.left + self.width <= width
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1 or not inside:
            crop = f"{self.height}x{self.width} at {self.top},{self.left}"
            raise ValueError(f"the crop of {crop} reaches beyond the image of {height}x{width}")


def parse_square(text: str) -> Region:
    """The region of a flag `--crop TOP,LEFT,SIZE`; raises ValueError if the form is another."""
    try:
        top, left, size = (int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"a crop must be TOP,LEFT,SIZE, three whole numbers, got {text!r}") from None
    return Region(top, left, size, size)


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
