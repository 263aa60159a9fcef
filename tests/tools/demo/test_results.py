"""The numbers are those computed by hand, and the picture shows what they are of."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pcl_loss.tools import _panels
from pcl_loss.tools._files import resize, write_image
from pcl_loss.tools._panels import Panel
from pcl_loss.tools._regions import Region
from pcl_loss.tools.demo import data as demo_data
from pcl_loss.tools.demo import results as demo_results
from pcl_loss.tools.demo import runs as demo_runs
from pcl_loss.tools.demo.results import CropScore

STRONGEST = list(demo_runs.LIGHT)[-1]


@pytest.fixture
def scores() -> list[CropScore]:
    """Three crops; the strongest light loses 0.1 and 0.3 dB and gains 0.1; its GMSD is better twice."""
    l1 = [(29.0, 0.82, 0.08), (31.5, 0.87, 0.07), (36.0, 0.93, 0.06)]
    made_up = {
        "Bicubic": [(28.0, 0.80, 0.09), (30.0, 0.85, 0.08), (35.0, 0.90, 0.07)],
        **dict.fromkeys(("L1", *demo_runs.LIGHT, demo_runs.PAPER), l1),
        STRONGEST: [(28.9, 0.82, 0.07), (31.2, 0.86, 0.065), (36.1, 0.91, 0.0625)],
    }
    return [
        CropScore(method, f"crop{i}", Path("sr.png"), Path("hr.png"), psnr, ssim, None, gmsd)
        for method, rows in made_up.items()
        for i, (psnr, ssim, gmsd) in enumerate(rows)
    ]


def cells_of(table: str) -> dict[str, list[str]]:
    """The cells of each row of a Markdown table, by the first of them."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {first: others for first, *others in rows}


def test_the_table_holds_means_and_differences_computed_by_hand(scores: list[CropScore]) -> None:
    cells = cells_of(demo_results.format_table(scores))
    assert cells["Bicubic"] == ["31.00", "0.8500", "0.0800"]
    assert cells["L1"] == ["32.17", "0.8733", "0.0700"]
    # -0.1, -0.3, +0.1: mean -0.1, spread 0.2; GMSD -.01, -.005, +.0025: mean -.0041667, spread .0062915
    assert cells[f"{STRONGEST} minus L1"] == [
        "-0.100 ± 0.200 (1 of 3)",
        "-0.01000 ± 0.01000 (0 of 3)",
        "-0.00417 ± 0.00629 (2 of 3)",
    ]
    assert "Bicubic minus L1" not in cells
    assert "L1 minus L1" not in cells


def test_the_results_are_on_disk_crop_by_crop(scores: list[CropScore], tmp_path: Path) -> None:
    text = demo_results.write_results(tmp_path, scores, demo_runs.DemoSettings())
    assert (tmp_path / "results.md").read_text() == text + "\n"
    assert demo_results.format_table(scores) in text
    assert "small demonstration" in text
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, score in zip(rows, scores, strict=True):
        assert (row["method"], row["crop"], row["lpips"]) == (score.method, score.crop, "")
        assert tuple(float(row[name]) for name in ("psnr", "ssim", "gmsd")) == (score.psnr, score.ssim, score.gmsd)


def test_lpips_is_a_column_where_it_was_measured_and_else_there_is_a_way_to_it(
    scores: list[CropScore], tmp_path: Path
) -> None:
    settings = demo_runs.DemoSettings()
    assert "pip install lpips" in demo_results.write_results(tmp_path, scores, settings)
    scores = [score._replace(lpips=0.3 if score.method == "L1" else 0.25) for score in scores]
    assert "pip install lpips" not in demo_results.write_results(tmp_path, scores, settings)
    cells = cells_of(demo_results.format_table(scores))
    assert cells[""][2] == "LPIPS, lower is better"
    assert cells["L1"][2] == "0.3000"
    assert cells[f"{STRONGEST} minus L1"][2] == "-0.05000 ± 0.00000 (3 of 3)"


def test_gmsd_is_that_of_a_slow_loop() -> None:
    """Xue et al.: Y halved by 2 x 2 means, Prewitt gradients with zeros beyond the border, c = 170, the deviation."""
    rng = np.random.default_rng(4)
    # Grey, so that Y is the image; 8 pixels inside the border of 4.
    sr, hr = (np.repeat(rng.integers(0, 256, (16, 20, 1), dtype=np.uint8), 3, axis=2) for _ in range(2))

    def magnitude(image: np.ndarray, y: int, x: int) -> float:
        inner = image[4:-4, 4:-4, 0].astype(float)
        half = np.zeros((6, 8))
        for row, column in itertools.product(range(4), range(6)):
            half[row + 1, column + 1] = inner[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean()
        around = half[y : y + 3, x : x + 3]
        return float(np.hypot(around[:, 2].sum() - around[:, 0].sum(), around[2].sum() - around[0].sum()) / 3)

    similarities = []
    for y, x in itertools.product(range(4), range(6)):
        a, b = magnitude(sr, y, x), magnitude(hr, y, x)
        similarities.append((2 * a * b + 170) / (a * a + b * b + 170))
    assert demo_results.gmsd(sr, hr) == pytest.approx(np.std(similarities), rel=1e-9)
    assert demo_results.gmsd(hr, hr) == 0


def test_a_score_is_basicsrs_on_y_without_the_border(tmp_path: Path) -> None:
    demo_data.write_pairs(tmp_path / "data" / "test", demo_data.TEST_REGIONS)
    scores = {score.crop: score for score in demo_results.evaluate(tmp_path, [])}
    assert len(scores) == len(demo_data.TEST_REGIONS)

    def luma(bgr: np.ndarray) -> np.ndarray:
        blue, green, red = (bgr[4:-4, 4:-4, channel].astype(np.float64) / 255 for channel in range(3))
        return 16 + 65.481 * red + 128.553 * green + 24.966 * blue

    for part in demo_data.TEST_REGIONS[:2]:
        hr = part.cut()
        image = resize(resize(hr, 1 / 4), 4)
        score = scores[part.name]
        error = ((luma(image) - luma(hr)) ** 2).mean()
        assert score.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        assert 0 < score.ssim < 1
        assert score.gmsd == pytest.approx(demo_results.gmsd(image, hr))


def test_the_picture_shows_where_the_strongest_and_l1_differ_most() -> None:
    rng = np.random.default_rng(0)
    crops = ("cat_1", "cat_2", "dog_1")
    images = {("L1", crop): rng.integers(0, 100, (90, 80, 3), dtype=np.uint8) for crop in crops}
    images |= {(STRONGEST, crop): images["L1", crop].copy() for crop in crops}
    images[STRONGEST, "cat_1"][:50, :50] += 1
    images[STRONGEST, "cat_2"][40:88, 7:55] += 9  # stronger than in the other crop of the cat
    images[STRONGEST, "dog_1"][10:58, 20:68] += 1
    assert demo_results.most_changed(images) == [
        ("cat_2", Region(40, 7, demo_results.WINDOW, demo_results.WINDOW)),
        ("dog_1", Region(10, 20, demo_results.WINDOW, demo_results.WINDOW)),
    ]


def made_up_images(scores: list[CropScore], folder: Path) -> list[CropScore]:
    """The scores with an image for each."""
    rng = np.random.default_rng(1)
    made = []
    for score in scores:
        paths = {"hr": folder / f"{score.crop}.png", "sr": folder / score.method / f"{score.crop}.png"}
        for path in paths.values():
            write_image(path, rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
        made.append(score._replace(crop=f"photo{score.crop}_010_112", **paths))
    return made


def test_the_picture_has_the_same_window_of_hr_and_every_strength_and_no_text_overlaps(
    scores: list[CropScore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    real = _panels.draw

    def draw(rows: list[list[Panel]], *args: Any, **more: Any) -> Any:
        made = real(rows, *args, **more)
        drawn.extend([rows, made[0]])
        return made

    monkeypatch.setattr(_panels, "draw", draw)
    scores = made_up_images(scores, tmp_path)
    demo_results.draw(tmp_path, scores)
    assert cv2.imread(str(tmp_path / "comparison.png")).shape[1] == 1000
    rows, figure = drawn
    assert len(rows) == 3
    for crop, row in zip(sorted({score.crop for score in scores}), rows, strict=True):
        assert [panel.title for panel in row] == ["HR", "L1", *demo_runs.LIGHT]
        places = []
        for panel in row:
            method = "L1" if panel.title == "HR" else panel.title
            (score,) = (score for score in scores if (score.method, score.crop) == (method, crop))
            image = cv2.imread(str(score.hr if panel.title == "HR" else score.sr))[..., ::-1]
            windows = np.lib.stride_tricks.sliding_window_view(image, panel.image.shape)
            places.append(np.argwhere((windows == panel.image).all((-3, -2, -1))).tolist())
            if panel.title != "HR":
                assert panel.caption == f"{score.psnr:.2f} dB\nGMSD {score.gmsd:.4f}"
        assert len(places[0]) == 1
        assert places == places[:1] * len(places)
    check_texts(figure)


def check_texts(figure: Figure) -> None:
    """No text of a figure overlaps another, or leaves it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = []
    for ax in figure.axes:
        # Ticks outside the axes have labels too, which are not drawn.
        ticks = [t for t in ax.get_xticklabels() if ax.get_xlim()[0] <= t.get_position()[0] <= ax.get_xlim()[1]]
        ticks += [t for t in ax.get_yticklabels() if ax.get_ylim()[0] <= t.get_position()[1] <= ax.get_ylim()[1]]
        boxes += [text for text in [ax.title, ax.xaxis.label, ax.yaxis.label, *ticks] if text.get_text().strip()]
    texts = boxes + [text for part in figure.subfigs for text in part.texts]
    assert len(texts) > 20
    extents = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
    for name, box in extents:
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, one_box), (other, other_box) in itertools.combinations(extents, 2):
        assert not one_box.overlaps(other_box), (one, other)


def test_the_curves_hold_the_means_and_name_every_method(scores: list[CropScore]) -> None:
    for lpips, labels in ((None, ["GMSD"]), (0.3, ["LPIPS", "GMSD"])):
        figure = Figure()
        demo_results.draw_curves(figure, [score._replace(lpips=lpips) for score in scores])
        assert [ax.get_ylabel().split(",")[0] for ax in figure.axes] == labels
        ax = figure.axes[-1]
        assert ax.get_xlabel().startswith("PSNR")
        light, paper = ax.lines
        l1, strongest = ((29.0 + 31.5 + 36.0) / 3, 0.07), ((28.9 + 31.2 + 36.1) / 3, 0.1975 / 3)
        np.testing.assert_allclose(light.get_xydata(), [l1, l1, l1, strongest])
        np.testing.assert_allclose(paper.get_xydata(), [l1])
        assert [text.get_text() for text in ax.texts] == ["L1", *demo_runs.LIGHT, demo_runs.PAPER]
