"""The photographs are cut so that nothing of a test crop is trained on, or chosen on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data

from pcl_loss.tools._files import read_image, resize
from pcl_loss.tools.demo import data as demo_data
from pcl_loss.tools.demo import runs as demo_runs

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def mask(part: demo_data.Part) -> np.ndarray:
    top, left, height, width = part.region
    covered = np.zeros(getattr(skimage.data, part.photo)().shape[:2], bool)
    assert top + height <= covered.shape[0]
    assert left + width <= covered.shape[1]
    covered[top : top + height, left : left + width] = True
    return covered


def test_no_pixel_is_in_two_crops_or_in_two_of_training_choice_and_test() -> None:
    seen = {photo: np.zeros(getattr(skimage.data, photo)().shape[:2], int) for photo in PHOTOS}
    for part in demo_data.TRAIN_REGIONS:
        seen[part.photo] |= mask(part)
    for part in (*demo_data.TEST_REGIONS, *demo_data.CHOOSE_REGIONS):
        seen[part.photo] += mask(part)
    assert all(count.max() == 1 for count in seen.values())
    assert all((count == 1).mean() > 0.6 for count in seen.values()), "little of the photographs is left unused"


def test_a_training_patch_can_lie_anywhere_in_the_training_part() -> None:
    size = demo_runs.DemoSettings().gt_size
    for photo in PHOTOS:
        regions = [part.region for part in demo_data.TRAIN_REGIONS if part.photo == photo]
        ends = {(r.top + r.height, r.left + r.width) for r in regions}
        for starts, end in (({r.top for r in regions}, max(ends)[0]), ({r.left for r in regions}, max(ends)[1])):
            positions = {start + offset for start in starts for offset in range(demo_data.TILE - size + 1)}
            assert positions == set(range(min(starts), end - size + 1))
            assert end - min(starts) >= 200


def test_lr_is_a_quarter_of_hr_and_made_from_it_alone(tmp_path: Path) -> None:
    for kind, regions in (("train", demo_data.TRAIN_REGIONS), ("test", demo_data.TEST_REGIONS)):
        folder = tmp_path / kind
        demo_data.write_pairs(folder, regions)
        names = sorted(path.name for path in (folder / "HR").iterdir())
        assert names == sorted(path.name for path in (folder / "LR").iterdir())
        assert names == sorted(f"{part.name}.png" for part in regions)
        for part in regions:
            hr, lr = (read_image(folder / size / f"{part.name}.png") for size in ("HR", "LR"))
            top, left, height, width = part.region
            cut = getattr(skimage.data, part.photo)()[top : top + height, left : left + width, ::-1]
            np.testing.assert_array_equal(hr, cut)
            assert hr.shape == (4 * lr.shape[0], 4 * lr.shape[1], 3)
            np.testing.assert_array_equal(lr, resize(hr, 1 / 4))
