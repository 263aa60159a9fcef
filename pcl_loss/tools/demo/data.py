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
# Side of a training image, and how far one is from the next: a patch of 96 can lie anywhere.
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


def _tiles(photo: str, top: int, left: int, height: int, width: int) -> list[Part]:
    """Overlapping tiles that cover a rectangle of a photograph.

    BasicSR decodes a whole image for every patch, which for whole photographs costs as much as a training step.
    """
    regions = tiles(height, width, TILE, TILE_STEP)
    return [Part(photo, region._replace(top=top + region.top, left=left + region.left)) for region in regions]


def _crops(photo: str, *corners: tuple[int, int]) -> list[Part]:
    return [Part(photo, Region(top, left, CROP, CROP)) for top, left in corners]


TRAIN_REGIONS = (
    *_tiles("astronaut", 312, 0, 200, 224),
    *_tiles("chelsea", 0, 248, 300, 203),
    *_tiles("coffee", 200, 0, 200, 400),
    *_tiles("rocket", 0, 0, 427, 440),
)
TEST_REGIONS = (
    *_crops("astronaut", (10, 112), (60, 312)),
    *_crops("chelsea", (50, 40)),
    *_crops("coffee", (0, 0), (0, 200), (0, 400)),
)
"""What the demo reports."""
CHOOSE_REGIONS = (
    *_crops("astronaut", (312, 224)),
    *_crops("coffee", (200, 400)),
    *_crops("rocket", (27, 440), (227, 440)),
)
"""What the demo's settings were chosen on: iterations, strengths and measures. Nothing was chosen on `TEST_REGIONS`."""


def write_pairs(folder: Path, regions: Sequence[Part]) -> None:
    """Write `folder/HR/*.png` and, a quarter of its sides, `folder/LR/*.png`.

    The regions are cut first and made smaller then, so that nothing from outside a region reaches its LR image.
    """
    for region in regions:
        hr = region.cut()
        write_image(folder / "HR" / f"{region.name}.png", hr)
        write_image(folder / "LR" / f"{region.name}.png", resize(hr, 1 / SCALE))
