"""The demo's data: parts of scikit-image's free photographs, to train on and to test with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._images import resize, write_image
from .._pictures import Region, tiles

SCALE = 4
# Side of a test crop: without its border of 4 pixels it holds 2 x 2 of NIQE's blocks of 96, and one is too few.
CROP = 200
# Side of a training image, and how far one is from the next: a patch of 96 can lie anywhere. BasicSR decodes a whole
# image for every patch, which for whole photographs costs as much as a training step.
TILE, TILE_STEP = 160, 64


Part = tuple[str, Region]  # a photograph of scikit-image, and a rectangle of it


def _crops(photo: str, *corners: tuple[int, int]) -> list[Part]:
    return [(photo, Region(top, left, CROP, CROP)) for top, left in corners]


def _tiles(photo: str, top: int, left: int, height: int, width: int) -> list[Part]:
    regions = tiles(height, width, TILE, TILE_STEP)
    return [(photo, region._replace(top=top + region.top, left=left + region.left)) for region in regions]


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
# The demo's settings were chosen on parts of the photographs that are in neither list.


def write_pairs(folder: Path, parts: Sequence[Part]) -> None:
    """Write `folder/HR/*.png` and, made of nothing else, a quarter of its sides, `folder/LR/*.png`."""
    import skimage.data

    for photo, region in parts:
        image = np.ascontiguousarray(region.cut(getattr(skimage.data, photo)())[..., ::-1])
        name = f"{photo}_{region.top:03d}_{region.left:03d}.png"
        write_image(folder / "HR" / name, image)
        write_image(folder / "LR" / name, resize(image, 1 / SCALE))
