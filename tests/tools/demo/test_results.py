"""The numbers are those computed by hand, and the picture shows what they are of."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import piq
import pytest
import torch
from matplotlib.figure import Figure

from pcl_loss.tools import _pictures
from pcl_loss.tools._images import resize, write_image
from pcl_loss.tools._pictures import Panel
from pcl_loss.tools.demo import results
from pcl_loss.tools.demo.data import TEST_REGIONS, write_pairs
from pcl_loss.tools.demo.runs import STRENGTHS
from pcl_loss.tools.report.measure import Pair, Score

STRONGEST = list(STRENGTHS)[-1]


@pytest.fixture
def scores(tmp_path: Path) -> list[Score]:
    """Three crops; the strongest loses 0.1 and 0.3 dB and gains 0.1; its MDSI is better twice."""
    l1 = [(29.0, 0.82, 0.08), (31.5, 0.87, 0.07), (36.0, 0.93, 0.06)]
    made_up = {
        "Bicubic": [(28.0, 0.80, 0.09), (30.0, 0.85, 0.08), (35.0, 0.90, 0.07)],
        **dict.fromkeys(("L1", *STRENGTHS), l1),
        STRONGEST: [(28.9, 0.82, 0.07), (31.2, 0.86, 0.065), (36.1, 0.91, 0.0625)],
    }
    rng = np.random.default_rng(1)
    scores = []
    for method, rows in made_up.items():
        for i, (psnr, ssim, mdsi) in enumerate(rows):
            pair = Pair("test", f"photo{i}_010_112", tmp_path / f"{i}.png", None)
            sr = tmp_path / method / f"{i}.png"
            for path in (pair.hr, sr):
                write_image(path, rng.integers(0, 256, (60, 60, 3), dtype=np.uint8))
            scores.append(
                Score(method, pair, sr, {"psnr": psnr, "ssim": ssim, "lpips": None, "mdsi": mdsi, "haarpsi": 1})
            )
    return scores


def with_lpips(scores: list[Score]) -> list[Score]:
    return [score._replace(values=score.values | {"lpips": 0.3 if score.net == "L1" else 0.25}) for score in scores]


def cells_of(table: str) -> dict[str, list[str]]:
    """The cells of each row of a Markdown table, by the first of them."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in rows}


def test_the_table_holds_means_and_on_how_many_crops_a_method_is_better(scores: list[Score]) -> None:
    cells = cells_of(results.format_table(scores))
    assert cells["Bicubic"] == ["31.000", "0.8500", "0.0800", "1.0000"]
    assert cells["L1"] == ["32.167", "0.8733", "0.0700", "1.0000"]
    assert cells[STRONGEST] == ["32.067 (1 of 3)", "0.8633 (0 of 3)", "0.0658 (2 of 3)", "1.0000 (0 of 3)"]
    cells = cells_of(results.format_table(with_lpips(scores)))
    assert cells[""][2] == "LPIPS, lower is better"
    assert cells[STRONGEST][2] == "0.2500 (3 of 3)"


def test_the_results_are_on_disk_crop_by_crop(scores: list[Score], tmp_path: Path) -> None:
    results.write_results(tmp_path, scores, 7, 3, "nobody knows why")
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert results.format_table(scores) in text
    assert "LPIPS is missing: nobody knows why" in text
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, score in zip(rows, scores, strict=True):
        assert (row["net"], row["image"], row["lpips"]) == (score.net, score.pair.name, "")
        assert all(float(row[name]) == score.values[name] for name in ("psnr", "ssim", "mdsi"))


def test_structure_is_measured_of_the_images_that_lie_there(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data" / "test", TEST_REGIONS[:2])
    scores = results.evaluate(tmp_path, {}, with_lpips=False)
    assert [score.pair.name for score in scores] == ["astronaut_010_112", "astronaut_060_312"]
    for score in scores:
        hr = cv2.imread(str(score.pair.hr))
        images = (resize(resize(hr, 1 / 4), 4), hr)
        sr_rgb, hr_rgb = (torch.from_numpy(i[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for i in images)
        assert score.values["mdsi"] == pytest.approx(float(piq.mdsi(sr_rgb, hr_rgb)))
        assert score.values["haarpsi"] == pytest.approx(float(piq.haarpsi(sr_rgb, hr_rgb)))


def test_the_picture_shows_the_crops_with_most_fine_detail(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    side, scores = results.WINDOW, []
    for crop, top, left, contrast in (("a", 0, 0, 2), ("b", 40, 7, 90), ("c", 10, 20, 20), ("d", 3, 4, 50)):
        image = np.full((90, 80, 3), 100, np.uint8)
        image[top : top + side, left : left + side] += rng.integers(0, contrast, (side, side, 1), dtype=np.uint8)
        write_image(tmp_path / f"{crop}.png", image)
        scores += [Score(method, Pair("test", crop, tmp_path / f"{crop}.png", None), tmp_path, {}) for method in "xy"]
    expected = [("b", (40, 7, side, side)), ("d", (3, 4, side, side)), ("c", (10, 20, side, side))]
    assert results.most_detailed(scores) == expected


def test_the_picture_has_the_same_window_of_every_method(
    scores: list[Score], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    real = _pictures.draw

    def draw(rows: list[list[Panel]], *args: Any, **more: Any) -> Any:
        made = real(rows, *args, **more)
        drawn.extend(rows)
        return made

    monkeypatch.setattr(_pictures, "draw", draw)
    results.draw(tmp_path, with_lpips(scores))
    assert cv2.imread(str(tmp_path / "comparison.png")).shape[1] == 1000
    assert len({row[0].caption for row in drawn}) == len(drawn) == 3
    for row in drawn:
        assert [panel.title for panel in row] == ["HR", *results.SHOWN]
        number = row[0].caption.removeprefix("photo")[0]
        places = []
        for panel in row:
            file = tmp_path / ("." if panel.title == "HR" else panel.title) / f"{number}.png"
            windows = np.lib.stride_tricks.sliding_window_view(cv2.imread(str(file))[..., ::-1], panel.image.shape)
            places.append(np.argwhere((windows == panel.image).all((-3, -2, -1))).tolist())
        assert len(places[0]) == 1
        assert places == places[:1] * len(places)


def test_the_curves_hold_the_means_and_name_every_method(scores: list[Score]) -> None:
    for measured, labels in ((scores, ["MDSI", "HaarPSI"]), (with_lpips(scores), ["LPIPS", "MDSI", "HaarPSI"])):
        figure = Figure()
        results.draw_curves(figure, measured)
        assert [ax.get_ylabel().split(",")[0] for ax in figure.axes] == labels
        ax = figure.axes[-2]
        assert ax.get_xlabel().startswith("PSNR")
        (line,) = ax.lines
        l1, strongest = ((29.0 + 31.5 + 36.0) / 3, 0.07), ((28.9 + 31.2 + 36.1) / 3, 0.1975 / 3)
        np.testing.assert_allclose(line.get_xydata(), [*[l1] * len(STRENGTHS), strongest])
        assert [text.get_text() for text in ax.texts] == ["L1", *STRENGTHS]
