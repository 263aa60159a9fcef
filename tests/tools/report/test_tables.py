"""The tables hold what is computed by hand, and the paper's rows beside it."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
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
    rows_of,
    table,
)


def test_the_tables_hold_what_is_computed_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(A, B, SET5, SET14) == 0
    text = capsys.readouterr().out
    assert text == (place / "report" / "report.md").read_text()
    cells = table(text, 1)
    assert cells["Method"] == ["Set5 PSNR ↑", "Set5 SSIM ↑", "Set14 PSNR ↑", "Set14 SSIM ↑"]
    means = {}
    for name, seed in (("Bicubic", None), ("EDSR-S", 1), ("EDSR-S+PCL", 2)):
        means[name] = statistics.fmean(expected_psnr(place, f"Set5/HR/{image}.png", seed) for image in ("cat", "cup"))
        assert cells[name][0] == f"{means[name]:.2f}"
        assert cells[name][2] == f"{expected_psnr(place, 'Set14/HR/face.png', seed):.2f}"
    gain = means["EDSR-S+PCL"] - means["EDSR-S"]
    assert cells["gain of EDSR-S+PCL"][0] == f"{gain:+.3f}"

    numbers = rows_of(place / "report" / "report.csv")
    (row,) = [
        r for r in numbers if (r["source"], r["kind"], r["set_name"], r["metric"]) == ("ours", "gain", "Set5", "psnr")
    ]
    assert float(row["value"]) == pytest.approx(gain, abs=1e-3)
    assert row["images"] == "2"
    images = rows_of(place / "report" / "images.csv")
    assert len(images) == 3 * 3
    (row,) = [r for r in images if (r["net"], r["image"]) == ("EDSR-S", "face")]
    assert float(row["psnr"]) == pytest.approx(expected_psnr(place, "Set14/HR/face.png", 1), abs=1e-3)
    assert (row["niqe"], row["lpips"]) == ("", "")


def test_the_papers_rows_stand_beside_ours_at_scale_4(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(A, B, SET5, "--set=mine=Set14/HR")
    text = capsys.readouterr().out
    cells = table(text, 1)
    order = list(cells)
    assert cells["*EDSR-S, paper*"] == ["32.09", "0.8938", "", ""]
    assert order.index("*EDSR-S, paper*") == order.index("EDSR-S") + 1
    assert cells["*gain of EDSR-S+PCL, paper*"][:2] == ["+0.08", "+0.0010"]
    assert table(text, 2)["*EDSR-S+PCL, paper*"] == ["7.043", "0.2139", "", ""]
    assert "*Bicubic, paper*" not in table(text, 2)
    assert "lists Set14 before Set5" in text


def test_misprints_of_the_paper_are_marked_and_recomputed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = {"EDSR-L": "a", "EDSR-L_PCL": "b", "HAN": "a", "han+pcl": "b", "VDSR": "a", "RCAN": "a", "RCAN+PCL": "b"}
    flags = [f"--net={name}={folder}/models/net_g_latest.pth" for name, folder in nets.items()]
    call(*flags, "--set=Set5=Set14/HR", "--set=BSD100=Set14/HR", "--set=Manga109=Set14/HR")
    text = capsys.readouterr().out
    cells = table(text, 1)
    for cell, number, printed in (
        (cells["*gain of EDSR-L_PCL, paper*"][0], "+0.04", "gain of 0.06"),
        (cells["*VDSR, paper*"][3], "0.0726", "very likely 0.726"),
        (cells["*gain of RCAN+PCL, paper*"][5], "+0.0015", "gain of 0.0005"),
    ):
        value, _, mark = cell.partition("[^")
        assert value == number
        assert any(line.startswith(f"[^{mark}:") and printed in line for line in text.splitlines())
    assert "[^" not in cells["*gain of han+pcl, paper*"][0]
    assert "HAN's LPIPS gets worse" in text
    assert "gain of HAN" not in text, "a row has the name that the user gave"


def test_no_row_of_the_paper_at_another_scale(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "x2.yml").write_text(yaml.safe_dump({"network_g": NETWORK | {"upscale": 2}}))
    torch.save(edsr(3, upscale=2).state_dict(), place / "bare.pth")
    call("--net=EDSR-S=bare.pth", "--opt=x2.yml", SET14, "--scale=2")
    text = capsys.readouterr().out
    assert "paper*" not in text
    assert list(table(text, 1))[2:] == ["Bicubic", "EDSR-S"]
    assert "architecture from `x2.yml`" in text
