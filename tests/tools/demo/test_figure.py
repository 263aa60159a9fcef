from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pcl_loss.tools.demo import figure as viz

TITLES = ["HR itself", "bicubic", "L1", "L1 + PCL"]
NOTE = "72 x 72 pixels each, the most detailed of HR; numbers: of the whole 200 x 200 test crop"
CURVES = {"pos_sim": [0.5, 0.61, 0.72], "neg_sim": [0.5, 0.45, 0.4], "margin": [0.0, 0.16, 0.32]}


def figure(num_rows: int = 3) -> Figure:
    rng = np.random.default_rng(0)
    rows = [
        [
            viz.Panel(
                rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), title, f"PSNR 3{row}.12  SSIM 0.9{row}34\nNIQE 10.5"
            )
            for title in TITLES
        ]
        for row in range(num_rows)
    ]
    return viz.comparison_figure(rows, [10, 20, 1000], CURVES, NOTE)


def test_every_row_shows_every_panel_with_its_numbers_beneath() -> None:
    axes = figure(num_rows=2).axes
    assert len(axes) == 2 * 4 + 2
    panels = axes[:8]
    assert all(len(ax.images) == 1 and ax.images[0].get_interpolation() == "nearest" for ax in panels)
    assert [ax.get_title() for ax in panels] == TITLES + [""] * 4
    assert [ax.get_xlabel().splitlines()[0] for ax in panels] == ["PSNR 30.12  SSIM 0.9034"] * 4 + [
        "PSNR 31.12  SSIM 0.9134"
    ] * 4


def test_the_curves_have_their_values_labels_and_legend() -> None:
    plots = figure().axes[-2:]
    lines = [line for ax in plots for line in ax.lines]
    assert len(lines) == 2 * len(CURVES)
    for values, raw, smooth in zip(CURVES.values(), lines[::2], lines[1::2], strict=True):
        assert raw.get_color() == smooth.get_color()
        for line in (raw, smooth):
            np.testing.assert_array_equal(line.get_xdata(), [10, 20, 1000])
            np.testing.assert_allclose(line.get_ydata(), values)
    for ax, keys in zip(plots, (["pos_sim", "neg_sim"], ["margin"]), strict=True):
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert [text.get_text() for text in ax.get_legend().get_texts()] == keys


def test_no_text_overlaps_another_or_leaves_the_picture() -> None:
    drawn = figure()
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    boxes = {}
    for number, ax in enumerate(drawn.axes):
        # Ticks outside the axes have labels too, which are not drawn.
        ticks = [
            text for text in ax.get_xticklabels() if ax.get_xlim()[0] <= text.get_position()[0] <= ax.get_xlim()[1]
        ]
        ticks += [
            text for text in ax.get_yticklabels() if ax.get_ylim()[0] <= text.get_position()[1] <= ax.get_ylim()[1]
        ]
        legend = ax.get_legend().get_texts() if ax.get_legend() else []
        for text in [ax.title, ax.xaxis.label, ax.yaxis.label, *legend, *ticks]:
            if text.get_text():
                boxes[number, text.get_text(), id(text)] = text.get_window_extent(canvas.get_renderer())
    for part in drawn.subfigs:
        for text in part.texts:
            boxes[-1, text.get_text(), id(text)] = text.get_window_extent(canvas.get_renderer())
    assert (-1, NOTE) in {key[:2] for key in boxes}
    assert len(boxes) > 20
    for name, box in boxes.items():
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= drawn.bbox.x1, name
        assert box.y1 <= drawn.bbox.y1, name
    for (one, one_box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not one_box.overlaps(other_box), (one, other)


def test_the_running_mean_is_that_of_a_slow_loop() -> None:
    values = np.random.default_rng(2).random(45)
    slow = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(45)]
    np.testing.assert_allclose(viz.running_mean(list(values)), slow)


@pytest.mark.parametrize("rows", [[], [[]], [["a", "b"], ["a"]]])
def test_rows_that_make_no_grid_are_refused(rows: list[list[str]]) -> None:
    panel = viz.Panel(np.zeros((4, 4, 3), np.uint8), "", "")
    with pytest.raises(ValueError, match="rows must hold"):
        viz.comparison_figure([[panel for _ in row] for row in rows], [10, 20, 1000], CURVES)


def test_a_missing_or_short_curve_is_refused() -> None:
    panel = viz.Panel(np.zeros((4, 4, 3), np.uint8), "", "")
    for curves in ({k: v for k, v in CURVES.items() if k != "margin"}, CURVES | {"margin": [0.1]}):
        with pytest.raises(ValueError, match=r"curves\['margin'\] must have one value for each of the 3 iterations"):
            viz.comparison_figure([[panel]], [10, 20, 1000], curves)


def test_the_most_detailed_window_is_that_of_a_slow_search() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    gray = np.pad(image.mean(axis=2), 1, mode="edge")
    laplacian = np.zeros((9, 11))
    for y, x in itertools.product(range(9), range(11)):
        around = gray[y, x + 1] + gray[y + 2, x + 1] + gray[y + 1, x] + gray[y + 1, x + 2]
        laplacian[y, x] = abs(around - 4 * gray[y + 1, x + 1])
    windows = {(y, x): laplacian[y : y + 4, x : x + 4].mean() for y in range(6) for x in range(8)}
    best = max(windows, key=lambda place: windows[place])
    detail, top, left = viz.most_detailed_window(image, 4)
    assert (top, left) == best
    assert detail == pytest.approx(windows[best])


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a window of 10 x 10 does not fit"):
        viz.most_detailed_window(np.zeros((9, 11, 3), np.uint8), 10)
