"""The numbers are those computed by hand, and the picture shows what they are of."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pcl_loss.tools import _panels
from pcl_loss.tools._files import read_image, resize
from pcl_loss.tools._panels import Panel
from pcl_loss.tools.demo import data as demo_data
from pcl_loss.tools.demo import results as demo_results
from pcl_loss.tools.demo import runs as demo_runs
from pcl_loss.tools.demo.runs import LogLine
from pcl_loss.tools.report.measure import Score, by_image

CURVES = {"pos_sim": [0.5, 0.61, 0.72], "neg_sim": [0.5, 0.45, 0.4], "margin": [0.0, 0.16, 0.32]}
LOG = [
    LogLine(iteration, {key: values[number] for key, values in CURVES.items()})
    for number, iteration in enumerate((10, 20, 1000))
]


@pytest.fixture
def scores() -> list[Score]:
    """Three crops; L1 + PCL loses 0.1 and 0.3 dB and gains 0.1; NIQE is better twice."""
    made_up = {
        "Bicubic": [(28.0, 0.80, 9.0), (30.0, 0.85, 8.0), (35.0, 0.90, 7.0)],
        "L1": [(29.0, 0.82, 8.0), (31.5, 0.87, 7.0), (36.0, 0.93, 6.0)],
        "L1 + PCL": [(28.9, 0.82, 7.0), (31.2, 0.86, 6.5), (36.1, 0.91, 6.25)],
        demo_results.REFERENCE: [(float("inf"), 1.0, 3.0), (float("inf"), 1.0, 4.0), (float("inf"), 1.0, 5.0)],
    }
    return [
        Score(method, "photo", f"crop{i}", Path(f"{method}/crop{i}.png"), *row, None)
        for method, rows in made_up.items()
        for i, row in enumerate(rows)
    ]


def test_the_table_holds_mean_and_spread_computed_by_hand(scores: list[Score]) -> None:
    lines = demo_results.format_table(scores).splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    # bicubic: mean 31, deviations -3, -1, 4, sum of squares 26, over 2: 13
    assert cells["Bicubic"] == ["31.00 ± 3.61", "0.8500 ± 0.0500", "8.00 ± 1.00"]
    # L1: mean 32.1667, deviations -3.1667, -0.6667, 3.8333, sum of squares 25.1667
    assert cells["L1"] == ["32.17 ± 3.55", "0.8733 ± 0.0551", "7.00 ± 1.00"]
    psnr = [28.9, 31.2, 36.1]
    assert cells["L1 + PCL"][0] == f"{np.mean(psnr):.2f} ± {np.std(psnr, ddof=1):.2f}"
    # -0.1, -0.3, +0.1: mean -0.1, spread 0.2; NIQE -1, -0.5, +0.25: mean -0.41667, spread 0.62915
    assert cells["L1 + PCL minus L1, per crop"] == ["-0.100 ± 0.200", "-0.01000 ± 0.01000", "-0.417 ± 0.629"]
    assert cells[demo_results.REFERENCE] == ["-", "-", "4.00 ± 1.00"]


def test_the_verdict_counts_who_is_better_and_knows_that_low_niqe_is_good(scores: list[Score]) -> None:
    assert demo_results.verdict(scores) == (
        "L1 + PCL is better than L1 in PSNR on 1 of 3, SSIM on 0 of 3 and NIQE on 2 of 3 test crops."
    )


def test_the_results_are_on_disk_crop_by_crop(scores: list[Score], tmp_path: Path) -> None:
    text = demo_results.write_results(tmp_path, scores, demo_runs.DemoSettings())
    assert (tmp_path / "results.md").read_text() == text + "\n"
    assert demo_results.format_table(scores) in text
    assert "small demonstration" in text
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, score in zip(rows, scores, strict=True):
        assert (row["net"], row["set_name"], row["image"]) == (score.net, score.set_name, score.image)
        assert (float(row["psnr"]), float(row["ssim"]), float(row["niqe"])) == score[4:7]
    assert {r["lpips"] for r in rows} == {""}


def test_lpips_is_a_column_where_it_was_measured(scores: list[Score]) -> None:
    distances = {"Bicubic": 0.4, "L1": 0.3, "L1 + PCL": 0.25, demo_results.REFERENCE: 0.0}
    table = demo_results.format_table([score._replace(lpips=distances[score.net]) for score in scores])
    cells = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in table.splitlines()}
    assert cells[""] == "LPIPS (lower is better)"
    assert cells["L1"] == "0.3000 ± 0.0000"
    assert cells["L1 + PCL minus L1, per crop"] == "-0.05000 ± 0.00000"
    assert cells[demo_results.REFERENCE] == "-"
    assert "LPIPS" not in demo_results.format_table(scores)


def test_a_score_is_basicsrs_on_y_without_the_border(tmp_path: Path) -> None:
    demo_data.write_pairs(tmp_path / "data" / "test", demo_data.TEST_REGIONS)
    scores = by_image(demo_results.evaluate(tmp_path, []))
    assert len(scores) == 2 * len(demo_data.TEST_REGIONS)

    def luma(bgr: np.ndarray) -> np.ndarray:
        blue, green, red = (bgr[4:-4, 4:-4, channel].astype(np.float64) / 255 for channel in range(3))
        return 16 + 65.481 * red + 128.553 * green + 24.966 * blue

    for part in demo_data.TEST_REGIONS[:2]:
        hr = part.cut()
        image = resize(resize(hr, 1 / 4), 4)
        score = scores["Bicubic", part.photo, part.name]
        error = ((luma(image) - luma(hr)) ** 2).mean()
        assert score.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert 0 < score.ssim < 1
        # The metric's image must not be its own reference, and 2 x 2 blocks must be enough for a finite number.
        assert score.niqe is not None
        assert scores[demo_results.REFERENCE, part.photo, part.name].niqe not in (None, score.niqe)
        assert scores[demo_results.REFERENCE, part.photo, part.name].psnr == float("inf")


def test_the_picture_shows_the_same_window_of_hr_and_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_data.write_pairs(tmp_path / "data" / "test", demo_data.TEST_REGIONS)
    drawn: list[list[Panel]] = []
    real = _panels.draw
    monkeypatch.setattr(_panels, "draw", lambda rows, *args, **more: (drawn.extend(rows), real(rows, *args, **more))[1])
    demo_results.draw(tmp_path, demo_results.evaluate(tmp_path, []), LOG)
    assert cv2.imread(str(tmp_path / "comparison.png")).shape[1] == 1000
    photos = [row[0].caption.split("/")[0] for row in drawn]
    assert len(set(photos)) == len(photos) == 4
    for row in drawn:
        photo, name = row[0].caption.splitlines()[0].split("/")
        assert [panel.title for panel in row] == ["HR", "Bicubic"]
        assert all(panel.image.shape == (demo_results.WINDOW, demo_results.WINDOW, 3) for panel in row)
        hr, bicubic = (read_image(tmp_path / path / f"{name}.png") for path in ("data/test/HR", f"sr/Bicubic/{photo}"))
        places = [
            (y, x)
            for y in range(demo_data.CROP - demo_results.WINDOW + 1)
            for x in range(demo_data.CROP - demo_results.WINDOW + 1)
            if np.array_equal(hr[y : y + 72, x : x + 72, ::-1], row[0].image)
        ]
        assert len(places) == 1
        ((y, x),) = places
        np.testing.assert_array_equal(bicubic[y : y + 72, x : x + 72, ::-1], row[1].image)


def test_the_curves_have_their_values_labels_and_legend() -> None:
    figure = Figure()
    demo_results.draw_curves(figure, LOG)
    plots = figure.axes
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
    titles = ["HR", "Bicubic", "L1", "L1 + PCL"]
    note = "72 x 72 pixels each, where HR has the most that bicubic lacks"
    rng = np.random.default_rng(0)
    rows = [
        [
            Panel(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), title, f"astronaut/crop_{row}\n30.12 dB / 0.3123")
            for title in titles
        ]
        for row in range(3)
    ]
    drawn, below = _panels.draw(rows, note, below=2.9)
    demo_results.draw_curves(below, LOG)
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
    assert (-1, note) in {key[:2] for key in boxes}
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
    np.testing.assert_allclose(demo_results.running_mean(list(values)), slow)
