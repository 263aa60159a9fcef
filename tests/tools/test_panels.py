"""Panels stand in rows with their words, and only what tells something is written."""

import numpy as np

from pcl_loss.tools import _panels
from pcl_loss.tools._panels import Panel

TITLES = ["HR", "Bicubic", "L1", "L1 + PCL"]


def rows(count: int) -> list[list[Panel]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(count * 4)]
    return [
        [Panel(images[4 * row + column], TITLES[column], f"3{row}.12 dB / 0.3{row}34") for column in range(4)]
        for row in range(count)
    ]


def test_every_row_shows_every_panel_with_its_numbers_beneath() -> None:
    figure, _ = _panels.draw(rows(2))
    assert figure.get_size_inches()[0] * figure.dpi == 1000
    for ax, panel in zip(figure.axes, [panel for row in rows(2) for panel in row], strict=True):
        (image,) = ax.images
        assert image.get_interpolation() == "nearest"
        np.testing.assert_array_equal(image.get_array(), panel.image)
    assert [ax.get_title() for ax in figure.axes] == TITLES + [""] * 4
    assert [ax.get_xlabel() for ax in figure.axes] == ["30.12 dB / 0.3034"] * 4 + ["31.12 dB / 0.3134"] * 4


def test_titles_that_change_stand_again_and_a_short_row_leaves_room() -> None:
    first, second = rows(2)
    figure, below = _panels.draw([first, second[:1]], below=2.0)
    assert [ax.get_title() for ax in figure.axes] == [*TITLES, "HR", "", "", ""]
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False] * 3
    assert not below.axes
