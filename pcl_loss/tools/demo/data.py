"""The demo's data: parts of scikit-image's free photographs, to train on and to test with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._images import Image, resize, write_image
from .._regions import Region, tiles

SCALE = 4
# Side of a test crop: without its border of 4 pixels it holds 2 x 2 of NIQE's blocks of 96, and one is too few.
CROP = 200
# Side of a training image, and how far one is from the next: a patch of 96 can lie anywhere. BasicSR decodes a whole
# image for every patch, which for whole photographs costs as much as a training step.
TILE, TILE_STEP = 160, 64


class Part(NamedTuple):
    """A rectangle of one of scikit-image's photographs."""

    photo: str
    region: Region

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.photo}_{self.region.top:03d}_{self.region.left:03d}"

    def cut(self) -> Image:
        """Its pixels, `(height, width, 3)`."""
        import skimage.data

        return np.ascontiguousarray(self.region.cut(getattr(skimage.data, self.photo)())[..., ::-1])


def _crops(photo: str, *corners: tuple[int, int], size: int = CROP) -> list[Part]:
    return [Part(photo, Region(top, left, size, size)) for top, left in corners]


def _tiles(photo: str, top: int, left: int, height: int, width: int) -> list[Part]:
    corners = [(top + tile.top, left + tile.left) for tile in tiles(height, width, TILE, TILE_STEP)]
    return _crops(photo, *corners, size=TILE)


TRAIN_REGIONS = [
    *_tiles("astronaut", 312, 0, 200, 224),
    *_tiles("chelsea", 0, 248, 300, 203),
    *_tiles("coffee", 200, 0, 200, 400),
    *_tiles("rocket", 0, 0, 427, 440),
]
TEST_REGIONS = [
    *_crops("astronaut", (10, 112), (60, 312)),
    *_crops("chelsea", (50, 40)),
    *_crops("coffee", (0, 0), (0, 200), (0, 400)),
]
# What the demo's settings were chosen on: iterations, strengths and measures. Nothing was chosen on `TEST_REGIONS`.
CHOOSE_REGIONS = [
    *_crops("astronaut", (312, 224)),
    *_crops("coffee", (200, 400)),
    *_crops("rocket", (27, 440), (227, 440)),
]


def write_pairs(folder: Path, parts: Sequence[Part]) -> None:
    """Write `folder/HR/*.png` and, made of nothing else, a quarter of its sides, `folder/LR/*.png`."""
    for part in parts:
        write_image(folder / "HR" / f"{part.name}.png", part.cut())
        write_image(folder / "LR" / f"{part.name}.png", resize(part.cut(), 1 / SCALE))
