"""The photographs are cut so that nothing of a test crop is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data

from pcl_loss.tools._images import read_image, resize
from pcl_loss.tools._pictures import Region
from pcl_loss.tools.demo.data import TEST_REGIONS, TRAIN_REGIONS, write_pairs

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def is_inside(region: Region, height: int, width: int) -> bool:
    ends = region.top + region.height <= height and region.left + region.width <= width
    return ends and min(region.top, region.left) >= 0 and min(region.height, region.width) >= 1


def test_no_pixel_is_tested_twice_or_both_tested_and_trained_on() -> None:
    seen = {photo: np.zeros(getattr(skimage.data, photo)().shape[:2], int) for photo in PHOTOS}
    for photo, region in TRAIN_REGIONS:
        assert is_inside(region, *seen[photo].shape)
        region.cut(seen[photo])[:] = 1
    for photo, region in TEST_REGIONS:
        assert is_inside(region, *seen[photo].shape)
        region.cut(seen[photo])[:] += 1
    assert all(count.max() == 1 for count in seen.values())


def test_lr_is_a_quarter_of_hr_and_made_from_it_alone(tmp_path: Path) -> None:
    parts = (TRAIN_REGIONS[0], *TEST_REGIONS)
    write_pairs(tmp_path, parts)
    assert len(list((tmp_path / "HR").iterdir())) == len(parts)
    for name, (top, left, height, width) in parts:
        hr, lr = (read_image(tmp_path / size / f"{name}_{top:03d}_{left:03d}.png") for size in ("HR", "LR"))
        photo = getattr(skimage.data, name)()
        np.testing.assert_array_equal(hr, photo[top : top + height, left : left + width, ::-1])
        np.testing.assert_array_equal(lr, resize(hr, 1 / 4))
