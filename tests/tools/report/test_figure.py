"""The figure shows the same part of every image, chosen without looking at the nets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from report_helpers import (
    SET5,
    SET14,
    A,
    B,
    call,
    expected_psnr,
    write_experiment,
)

from pcl_loss.tools.report import figure as report_figure


def test_the_figure_has_a_row_of_four_panels_for_each_set(place: Path, drawn: list[Any]) -> None:
    call(A, B, SET5, SET14, "--crop=Set5/cat:20,30,40", "--crop=Set14/face:0,0,24")
    assert [[panel.title for panel in row] for row in drawn] == [["HR", "Bicubic", "EDSR-S", "EDSR-S+PCL"]] * 2
    hr = cv2.imread(str(place / "Set5" / "HR" / "cat.png"))
    np.testing.assert_array_equal(drawn[0][0].image, hr[20:60, 30:70, ::-1])
    sr = cv2.imread(str(place / "report" / "results" / "EDSR-S+PCL" / "Set14" / "face.png"))
    np.testing.assert_array_equal(drawn[1][3].image, sr[:24, :24, ::-1])
    assert drawn[1][3].caption == f"{expected_psnr(place, 'Set14/HR/face.png', 2):.2f} dB / n/a"
    assert "Set14/face" in drawn[1][0].caption
    picture = cv2.imread(str(place / "report" / "figure.png"))
    assert picture.shape[1] == 1000


def test_crops_are_chosen_without_looking_at_the_nets(place: Path, drawn: list[Any]) -> None:
    call(A, B, SET5)
    write_experiment(place / "b", 9)
    call(A, B, SET5, "--out=second")
    np.testing.assert_array_equal(drawn[0][0].image, drawn[1][0].image)


def test_without_a_pair_all_nets_are_shown(place: Path, drawn: list[Any]) -> None:
    call(A, "--net=other=b/models/net_g_latest.pth", SET14)
    assert [panel.title for panel in drawn[0]] == ["HR", "Bicubic", "EDSR-S", "other"]


def test_the_window_is_where_bicubic_is_furthest_from_hr() -> None:
    hr = np.zeros((30, 40, 3), np.uint8)
    bicubic = hr.copy()
    bicubic[11:15, 22:26] = 200
    bicubic[2, 2] = 255
    assert report_figure.most_lost(hr, bicubic, 4) == (11, 22, 4, 4)
