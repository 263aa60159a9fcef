"""One rectangle for every tool, and the best one is that of a slow search."""

import itertools

import numpy as np
import torch

from pcl_loss.tools._regions import Region, best_region


def test_an_array_and_a_tensor_are_cut_at_the_same_pixels() -> None:
    image = np.arange(12 * 16 * 3).reshape(12, 16, 3)
    region = Region(4, 8, 4, 6)
    expected = np.array([[image[y, x] for x in range(8, 14)] for y in range(4, 8)])
    np.testing.assert_array_equal(region.cut(image), expected)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(region.cut(tensor)[0].permute(1, 2, 0).numpy(), expected)
    np.testing.assert_array_equal(region.cut(image[::2, ::2], shrink=2), expected[::2, ::2])


def test_the_best_region_is_that_of_a_slow_search_and_the_first_of_equal_ones() -> None:
    detail = np.random.default_rng(1).random((9, 11))
    places = itertools.product(range(9 - 4 + 1), range(11 - 4 + 1))
    sums = {(y, x): sum(detail[y + dy, x + dx] for dy in range(4) for dx in range(4)) for y, x in places}
    assert best_region(detail, 4) == (*max(sums, key=lambda place: sums[place]), 4, 4)
    assert best_region(np.ones((6, 6), np.uint8), 4) == (0, 0, 4, 4)
