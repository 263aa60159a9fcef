"""Nets are found, run once and measured; what cannot be measured is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from report_helpers import (
    NETWORK,
    SET5,
    SET14,
    A,
    B,
    call,
    edsr,
    expected_psnr,
    part,
    psnr,
    rows_of,
    run_by_hand,
    table,
    write_experiment,
)

from pcl_loss.tools import report
from pcl_loss.tools.report import measure as report_measure


def test_missing_lpips_is_said_and_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(A, SET5)
    text = capsys.readouterr().out
    assert table(text, 2)["EDSR-S"][1] == "n/a"
    assert "LPIPS is n/a: AlexNet's weights are not at" in text
    assert "no_weights" in text


def test_missing_lpips_package_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = report_measure.importlib.util.find_spec
    monkeypatch.setattr(
        report_measure.importlib.util, "find_spec", lambda name: None if name == "lpips" else find_spec(name)
    )
    call(A, SET14)
    assert "LPIPS is n/a: the lpips package is not installed: pip install" in capsys.readouterr().out


def test_niqe_is_the_mean_of_the_images_that_are_large_enough(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from basicsr.metrics import calculate_niqe

    call(A, SET5, SET14)
    text = capsys.readouterr().out
    sr = cv2.imread(str(place / "report" / "results" / "EDSR-S" / "Set5" / "cat.png"))
    expected = calculate_niqe(sr, crop_border=4)
    assert np.isfinite(expected)
    assert table(text, 2)["EDSR-S"] == [f"{expected:.3f}", "n/a", "n/a", "n/a"]
    assert "NIQE of Set5 is the mean without cup" in text
    assert "NIQE of Set14 is n/a" in text


def test_a_second_report_runs_nothing_and_says_the_same(
    place: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    call(A, B, SET5)
    first = capsys.readouterr()
    assert "6 measured, 0 known" in first.err
    assert len(ran) == 4
    call(A, B, SET5)
    second = capsys.readouterr()
    assert "0 measured, 6 known" in second.err
    assert len(ran) == 4
    assert second.out == first.out


def test_only_what_has_changed_is_measured_again(
    place: Path, ran: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    call(A, B, SET5, SET14)
    before = table(capsys.readouterr().out, 1)
    write_experiment(place / "b", 5)
    (place / "a" / "models" / "net_g_latest.pth").touch()
    ran.clear()
    call(A, B, SET5, SET14)
    out, err = capsys.readouterr()
    assert "3 measured, 6 known" in err
    assert len(ran) == 3
    assert table(out, 1)["EDSR-S+PCL"] != before["EDSR-S+PCL"]
    assert table(out, 1)["EDSR-S"] == before["EDSR-S"]
    assert table(out, 1)["EDSR-S+PCL"][2] == f"{expected_psnr(place, 'Set14/HR/face.png', 5):.2f}"

    cv2.imwrite(str(place / "Set14" / "HR" / "face.png"), part("rocket", 60, 64))
    call(A, B, SET5, SET14)
    assert "3 measured, 6 known" in capsys.readouterr().err


def test_a_report_that_was_killed_goes_on_with_the_rest(
    place: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = report_measure.measure

    def killed(*args: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(report_measure, "measure", killed)
        assert call(A, B, SET5) == 130
    assert "goes on" in capsys.readouterr().err
    assert not (place / "report" / "report.md").exists()
    call(A, B, SET5)
    assert "3 measured, 3 known" in capsys.readouterr().err
    assert not list((place / "report").rglob(".tmp-*"))


def test_lpips_that_becomes_available_is_added_without_running_the_nets(
    place: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(A, SET14)
    ran.clear()
    monkeypatch.setattr(report_measure, "measure_lpips", lambda sr, hr: float(np.abs(sr.astype(float) - hr).mean()))
    monkeypatch.setattr(report, "lpips_missing", str)
    call(A, SET14)
    out, err = capsys.readouterr()
    assert not ran
    assert "2 measured" in err
    sr, hr = (
        cv2.imread(str(place / p)).astype(float) for p in ("report/results/EDSR-S/Set14/face.png", "Set14/HR/face.png")
    )
    assert table(out.rpartition("# Super")[2], 2)["EDSR-S"][1] == f"{np.abs(sr - hr).mean():.4f}"


def test_the_sr_images_of_basicsrs_own_test_are_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "visualization" / "Set5"
    folder.mkdir(parents=True)
    for image in ("cat", "cup"):
        hr = cv2.imread(str(place / "Set5" / "HR" / f"{image}.png"))
        cv2.imwrite(str(folder / f"{image}x4_test_EDSR.png"), hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4] ^ 1)
    call("--net=mine=visualization", SET5)
    hr = cv2.imread(str(place / "Set5" / "HR" / "cup.png"))
    row = next(r for r in rows_of(place / "report" / "images.csv") if (r["net"], r["image"]) == ("mine", "cup"))
    assert float(row["psnr"]) == pytest.approx(psnr(hr ^ 1, hr), abs=1e-3)
    (folder / "cupx4_test_EDSR.png").unlink()
    with pytest.raises(FileNotFoundError, match="no SR image of cup"):
        call("--net=mine=visualization", SET5)


def test_the_averaged_weights_are_taken_where_there_are_any(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_experiment(place / "a", 1, params_ema=edsr(7).state_dict())
    for flag, seed, key in (("auto", 7, "params_ema"), ("params", 1, "params")):
        call(A, SET14, f"--param-key={flag}")
        text = capsys.readouterr().out
        assert table(text, 1)["EDSR-S"][0] == f"{expected_psnr(place, 'Set14/HR/face.png', seed):.2f}"
        assert f"EDSR-S: `{key}` of `a/models/net_g_latest.pth`, architecture from `a/a.yml`" in text


def test_given_lr_images_are_used_and_hr_is_cropped_to_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr = cv2.imread(str(place / "Set14" / "HR" / "face.png"))
    cv2.imwrite(str(place / "Set14" / "HR" / "face.png"), cv2.copyMakeBorder(hr, 0, 3, 0, 1, cv2.BORDER_REFLECT))
    (place / "LR").mkdir()
    lr = cv2.resize(hr, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(place / "LR" / "facex4.png"), lr)
    call(A, "--set=Set14=Set14/HR:LR")
    sr = cv2.imread(str(place / "report" / "results" / "EDSR-S" / "Set14" / "face.png"))
    np.testing.assert_array_equal(sr, run_by_hand(edsr(1), lr))
    assert table(capsys.readouterr().out, 1)["EDSR-S"][0] == f"{psnr(sr, hr):.2f}"
    cv2.imwrite(str(place / "LR" / "facex4.png"), lr[:-1])
    with pytest.raises(
        ValueError, match=r"face\.png has 63x65 pixels and .*facex4\.png 14x16.*not 1/4 of it; check --scale 4"
    ):
        call(A, "--set=Set14=Set14/HR:LR")


def test_the_yaml_named_for_a_net_wins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own.yml").write_text(yaml.safe_dump({"network_g": NETWORK}))
    (place / "a" / "a.yml").write_text("network_g: {type: RCAN}")
    call(A, B, SET14, "--opt=EDSR-S=own.yml", "--opt=nowhere.yml")
    text = capsys.readouterr().out
    assert "net_g_latest.pth`, architecture from `own.yml`" in text
    assert "architecture from `b/b.yml`" in text
