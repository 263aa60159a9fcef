"""One rectangle for every tool, the best one is that of a slow search, and panels stand in rows with their words."""

import itertools

import numpy as np

from pcl_loss.tools._pictures import Panel, Region, best_region, draw

TITLES = ["HR", "Bicubic", "L1", "L1 + PCL"]


def test_an_image_and_a_smaller_one_are_cut_at_the_same_pixels() -> None:
    image = np.arange(12 * 16 * 3).reshape(12, 16, 3)
    region = Region(4, 8, 4, 6)
    expected = np.array([[image[y, x] for x in range(8, 14)] for y in range(4, 8)])
    np.testing.assert_array_equal(region.cut(image), expected)
    np.testing.assert_array_equal(region.cut(image[::2, ::2], shrink=2), expected[::2, ::2])


def test_the_best_region_is_that_of_a_slow_search_and_the_first_of_equal_ones() -> None:
    detail = np.random.default_rng(1).random((9, 11))
    places = itertools.product(range(9 - 4 + 1), range(11 - 4 + 1))
    sums = {(y, x): sum(detail[y + dy, x + dx] for dy in range(4) for dx in range(4)) for y, x in places}
    assert best_region(detail, 4) == (*max(sums, key=lambda place: sums[place]), 4, 4)
    assert best_region(np.ones((6, 6), np.uint8), 4) == (0, 0, 4, 4)


def test_every_panel_stands_with_its_numbers_beneath_and_titles_where_they_change() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), dtype=np.uint8)
    panels = [Panel(images[i], (TITLES * 2)[i], f"3{i}.12 dB") for i in range(6)]
    figure, below = draw([panels[:4], panels[:4], panels[4:]], below=2.0)
    assert figure.get_size_inches()[0] * figure.dpi == 1000
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == [*TITLES, *[""] * 4, *TITLES[:2]]
    for ax, panel in zip(shown, panels[:4] + panels, strict=True):
        (image,) = ax.images
        assert image.get_interpolation() == "nearest"
        np.testing.assert_array_equal(image.get_array(), panel.image)
        assert ax.get_xlabel() == panel.caption
    assert len(figure.axes) == 12
    assert not below.axes
