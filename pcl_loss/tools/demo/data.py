"""The demo's data: parts of scikit-image's free photographs, to train on and to test with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._files import Image, resize, write_image

SCALE = 4
CROP = 200
"""Side of a test crop: without its border of 4 pixels it holds 2 x 2 of NIQE's blocks of 96, and one is too few."""
TILE, TILE_STEP = 160, 64
"""Side of a training image, and how far one is from the next: a patch of 96 can lie anywhere."""


class Region(NamedTuple):
    """A rectangle of one of scikit-image's photographs."""

    photo: str
    top: int
    left: int
    height: int = CROP
    width: int = CROP

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.photo}_{self.top:03d}_{self.left:03d}"

    def cut(self) -> Image:
        """Its pixels, `(height, width, 3)`."""
        import skimage.data

        photo = getattr(skimage.data, self.photo)()
        rgb = photo[self.top : self.top + self.height, self.left : self.left + self.width]
        return np.ascontiguousarray(rgb[..., ::-1])


def tiles(photo: str, height: int, width: int) -> list[Region]:
    """Overlapping tiles that cover the upper left `height` x `width` pixels of a photograph.

    BasicSR decodes a whole image for every patch, which for whole photographs costs as much as a training step.
    """

    def starts(length: int) -> list[int]:
        return [*range(0, length - TILE, TILE_STEP), length - TILE]

    return [Region(photo, top, left, TILE, TILE) for top in starts(height) for left in starts(width)]


TRAIN_REGIONS = (*tiles("astronaut", 312, 512), *tiles("chelsea", 300, 248), *tiles("coffee", 200, 600))
TEST_REGIONS = (
    Region("astronaut", 312, 24),
    Region("astronaut", 312, 224),
    Region("chelsea", 50, 251),
    Region("coffee", 200, 0),
    Region("coffee", 200, 200),
    Region("coffee", 200, 400),
    *(Region("rocket", top, left) for top in (27, 227) for left in (20, 220, 440)),
)


def write_pairs(folder: Path, regions: Sequence[Region]) -> None:
    """Write `folder/HR/*.png` and, a quarter of its sides, `folder/LR/*.png`.

    The regions are cut first and made smaller then, so that nothing from outside a region reaches its LR image.
    """
    for region in regions:
        hr = region.cut()
        write_image(folder / "HR" / f"{region.name}.png", hr)
        write_image(folder / "LR" / f"{region.name}.png", resize(hr, 1 / SCALE))
