"""The photographs are cut so that nothing of a test crop is trained on, or chosen on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data

from pcl_loss.tools._images import read_image, resize
from pcl_loss.tools.demo.data import CHOOSE_REGIONS, TEST_REGIONS, TILE, TRAIN_REGIONS, Part, write_pairs

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
PATCH = 96  # of the training


def mask(part: Part) -> np.ndarray:
    top, left, height, width = part.region
    covered = np.zeros(getattr(skimage.data, part.photo)().shape[:2], bool)
    part.region.check_inside(*covered.shape)
    covered[top : top + height, left : left + width] = True
    return covered


def test_no_pixel_is_in_two_crops_or_in_two_of_training_choice_and_test() -> None:
    seen = {photo: np.zeros(getattr(skimage.data, photo)().shape[:2], int) for photo in PHOTOS}
    for part in TRAIN_REGIONS:
        seen[part.photo] |= mask(part)
    for part in (*TEST_REGIONS, *CHOOSE_REGIONS):
        seen[part.photo] += mask(part)
    assert all(count.max() == 1 for count in seen.values())
    assert all((count == 1).mean() > 0.6 for count in seen.values()), "little of the photographs is left unused"


def test_a_training_patch_can_lie_anywhere_in_the_training_part() -> None:
    for photo in PHOTOS:
        regions = [part.region for part in TRAIN_REGIONS if part.photo == photo]
        ends = {(r.top + r.height, r.left + r.width) for r in regions}
        for starts, end in (({r.top for r in regions}, max(ends)[0]), ({r.left for r in regions}, max(ends)[1])):
            positions = {start + offset for start in starts for offset in range(TILE - PATCH + 1)}
            assert positions == set(range(min(starts), end - PATCH + 1))
            assert end - min(starts) >= 200


def test_lr_is_a_quarter_of_hr_and_made_from_it_alone(tmp_path: Path) -> None:
    parts = (TRAIN_REGIONS[0], *TEST_REGIONS)
    write_pairs(tmp_path, parts)
    assert {path.name for path in (tmp_path / "HR").iterdir()} == {f"{part.name}.png" for part in parts}
    for part in parts:
        hr, lr = (read_image(tmp_path / size / f"{part.name}.png") for size in ("HR", "LR"))
        top, left, height, width = part.region
        photo = getattr(skimage.data, part.photo)()
        np.testing.assert_array_equal(hr, photo[top : top + height, left : left + width, ::-1])
        np.testing.assert_array_equal(lr, resize(hr, 1 / 4))
