"""The verb `report`, through its command line: what it measures, what it says, and what it refuses first."""

from __future__ import annotations

import csv
import io
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import yaml

from pcl_loss.cli import main
from pcl_loss.tools import _pictures, report

# isort: split
from basicsr.archs import build_network
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.matlab_functions import imresize

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}
A, B = "--net=EDSR-S=a/models/net_g_latest.pth", "--net=EDSR-S+PCL=b"
SET5, SET14 = "--set=Set5=Set5/HR", "--set=Set14=Set14/HR"


def experiment(name: str, seed: int) -> None:
    """What BasicSR leaves of a training."""
    Path(name, "models").mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_network(dict(NETWORK))
    torch.save({"params": net.state_dict()}, f"{name}/models/net_g_latest.pth")
    options = {"name": name, "scale": 4, "network_g": NETWORK, "network_d": {"type": "NoSuchNet"}}
    Path(name, f"{name}.yml").write_text(yaml.safe_dump(options))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sets Set5/HR and Set14/HR and the experiments `a` and `b`, without LPIPS's weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.chdir(tmp_path)
    for name, photo, height, width in (
        ("Set5/HR/cat.png", "chelsea", 107, 203),
        ("Set5/HR/cup.png", "coffee", 48, 48),
        ("Set14/HR/face.png", "astronaut", 60, 64),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        part = getattr(skimage.data, photo)()[60 : 60 + height, 120 : 120 + width, ::-1]
        cv2.imwrite(name, np.ascontiguousarray(part))
    experiment("a", 1)
    experiment("b", 2)
    return tmp_path


def call(*flags: str) -> int:
    return main(["report", *flags, "--device=cpu"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of panels that are drawn."""
    seen = []
    draw = _pictures.draw

    def record(rows: Any) -> Any:
        seen.extend(rows)
        return draw(rows)

    monkeypatch.setattr(_pictures, "draw", record)
    return seen


def table(text: str, number: int) -> dict[str, list[str]]:
    """The cells of a Markdown table by the first of each row."""
    part = text.split("\n## ")[number]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    """Of Y, without 4 pixels of the border."""
    red, green, blue = (np.moveaxis((sr.astype(np.float64) - hr)[4:-4, 4:-4, ::-1], 2, 0) / 255)[:3]
    return float(10 * np.log10(255**2 / ((65.481 * red + 128.553 * green + 24.966 * blue) ** 2).mean()))


def run_by_hand(checkpoint: Path, lr: np.ndarray) -> np.ndarray:
    net = EDSR(3, 3, num_feat=4, num_block=1, upscale=4)
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["params"])
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(lr[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
        return (net(x)[0].clamp(0, 1) * 255).round().byte().numpy().transpose(1, 2, 0)[..., ::-1]


def psnr_by_hand(hr_file: str, folder: str | None) -> float:
    """Of bicubic, or of the network in an experiment's folder."""
    hr = cv2.imread(hr_file)
    hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    lr = (imresize(hr.astype(np.float32) / 255, 1 / 4).clip(0, 1) * 255).round().astype(np.uint8)
    if folder is None:
        return psnr((imresize(lr.astype(np.float32) / 255, 4).clip(0, 1) * 255).round(), hr)
    return psnr(run_by_hand(Path(folder, "models/net_g_latest.pth"), lr), hr)


def test_the_tables_hold_what_is_computed_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(A, B, SET5, SET14) == 0
    text = capsys.readouterr().out
    assert text == (place / "report" / "report.md").read_text(encoding="utf-8")
    cells = table(text, 1)
    assert cells["Method"] == ["Set5 PSNR ↑", "Set5 SSIM ↑", "Set14 PSNR ↑", "Set14 SSIM ↑"]
    means = {}
    for name, folder in (("Bicubic", None), ("EDSR-S", "a"), ("EDSR-S+PCL", "b")):
        means[name] = statistics.fmean(psnr_by_hand(f"Set5/HR/{image}.png", folder) for image in ("cat", "cup"))
        assert cells[name][0] == f"{means[name]:.2f}"
        assert cells[name][2] == f"{psnr_by_hand('Set14/HR/face.png', folder):.2f}"
    gain = means["EDSR-S+PCL"] - means["EDSR-S"]
    assert cells["gain of EDSR-S+PCL"][0] == f"{gain:+.3f}"
    images = {(row["net"], row["image"]): row for row in rows_of(place / "report" / "images.csv")}
    assert len(images) == 3 * 3
    face = images["EDSR-S", "face"]
    assert float(face["psnr"]) == pytest.approx(psnr_by_hand("Set14/HR/face.png", "a"), abs=1e-3)
    assert (face["niqe"], face["lpips"]) == ("", "")


def test_a_pipe_of_another_encoding_takes_the_table(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert call(A, SET14) == 0
    pipe.flush()
    assert pipe.buffer.getvalue().count(b"| EDSR-S ") == 2


def test_niqe_and_lpips_that_cannot_be_had_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from basicsr.metrics import calculate_niqe

    call(A, SET5, SET14)
    text = capsys.readouterr().out
    (sr,) = (place / "report" / "results" / "EDSR-S").glob("Set5-*/cat.png")
    expected = calculate_niqe(cv2.imread(str(sr)), crop_border=4)
    assert np.isfinite(expected)
    assert table(text, 2)["EDSR-S"] == [f"{expected:.3f}", "n/a", "n/a", "n/a"]
    assert "NIQE is without Set5/cup, Set14/face: " in text
    assert "LPIPS is n/a: " in text


def test_lpips_is_measured_where_it_can_be(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def difference(sr: np.ndarray, hr: np.ndarray, crop_border: int, net: str) -> float:
        assert (crop_border, net) == (0, "alex")
        return float(np.abs(sr.astype(float) - hr).mean())

    monkeypatch.setattr("pcl_loss.basicsr_plugin.lpips_metric.calculate_lpips", difference)
    monkeypatch.setattr(report, "fetch_backbone", lambda net: None)
    monkeypatch.setattr(report, "backbone_file", lambda net: Path(__file__))
    call(A, SET14, "--lpips", "always")
    (file,) = (place / "report" / "results" / "EDSR-S").glob("*/face.png")
    sr, hr = (cv2.imread(str(path)).astype(float) for path in (file, place / "Set14" / "HR" / "face.png"))
    assert table(capsys.readouterr().out, 2)["EDSR-S"][1] == f"{np.abs(sr - hr).mean():.4f}"


def test_the_sr_images_of_basicsrs_own_test_are_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "visualization" / "Set5"
    folder.mkdir(parents=True)
    for image in ("cat", "cup"):
        hr = cv2.imread(f"Set5/HR/{image}.png")
        cv2.imwrite(str(folder / f"{image}x4_test_EDSR.png"), hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4] ^ 1)
    call("--net=mine=visualization", SET5)
    hr = cv2.imread("Set5/HR/cup.png")
    row = next(r for r in rows_of(place / "report" / "images.csv") if (r["net"], r["image"]) == ("mine", "cup"))
    assert float(row["psnr"]) == pytest.approx(psnr(hr ^ 1, hr), abs=1e-3)
    (folder / "cupx4_test_EDSR.png").unlink()
    assert call("--net=mine=visualization", SET5) == 1
    assert "must have one SR image cup*.png, has 0" in capsys.readouterr().err


def test_a_net_runs_again_only_on_a_set_where_something_has_changed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite("Set5/HR/cat.png", cv2.imread("Set5/HR/cup.png"))

    def sr_images() -> dict[Path, int]:
        assert call(A, B, SET5, SET14) == 0
        return {path: path.stat().st_mtime_ns for path in Path("report/results").glob("EDSR*/*/*.png")}

    first = sr_images()
    text = capsys.readouterr().out
    assert len(first) == 2 * 3
    assert sr_images() == first
    assert capsys.readouterr().out == text
    experiment("b", 5)
    second = sr_images()
    assert (len(second.keys() - first), first.items() <= second.items()) == (3, True)
    expected = psnr_by_hand("Set14/HR/face.png", "b")
    assert table(capsys.readouterr().out, 1)["EDSR-S+PCL"][2] == f"{expected:.2f}"
    cv2.imwrite("Set14/HR/face.png", cv2.imread("Set14/HR/face.png")[:, ::-1])
    third = sr_images()
    assert (len(third.keys() - second), second.items() <= third.items()) == (2, True)


def test_given_lr_images_are_used_and_hr_is_cropped_to_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hr = cv2.imread("Set14/HR/face.png")
    cv2.imwrite("Set14/HR/face.png", cv2.copyMakeBorder(hr, 0, 3, 0, 1, cv2.BORDER_REFLECT))
    (place / "LR").mkdir()
    lr = cv2.resize(hr, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    cv2.imwrite("LR/facex4.png", lr)
    call(A, "--set=Set14=Set14/HR:LR")
    expected = psnr(run_by_hand(Path("a/models/net_g_latest.pth"), lr), hr)
    assert table(capsys.readouterr().out, 1)["EDSR-S"][0] == f"{expected:.2f}"
    cv2.imwrite("LR/facex4.png", lr[:-1])
    assert call(A, "--set=Set14=Set14/HR:LR") == 1
    assert "facex4.png 14x16, not 1/4 of it; check --scale 4" in capsys.readouterr().err


def test_the_figure_has_the_part_of_every_image_where_bicubic_is_furthest_from_hr(
    place: Path, drawn: list[Any]
) -> None:
    hr = np.zeros((96, 128, 3), np.uint8)
    hr[20:40:2, 60:80] = 255  # lost by every LR image, and within every window of 64 that has most of what is lost
    cv2.imwrite("Set14/HR/face.png", hr)
    call(A, B, SET14)
    call(A, "--net=other=b", SET14)
    pair, no_pair = drawn
    assert [panel.title for panel in pair] == ["HR", "Bicubic", "EDSR-S", "EDSR-S+PCL"]
    assert [panel.title for panel in no_pair] == ["HR", "Bicubic", "EDSR-S", "other"]
    assert pair[0].image.shape == (64, 64, 3)
    assert (pair[0].image == 255).sum() == (hr == 255).sum()
    top, left, _ = np.argwhere(hr)[0] - np.argwhere(pair[0].image)[0]
    (sr,) = (place / "report" / "results" / "EDSR-S+PCL").glob("Set14-*/face.png")
    np.testing.assert_array_equal(pair[3].image, cv2.imread(str(sr))[top : top + 64, left : left + 64, ::-1])
    expected = psnr_by_hand("Set14/HR/face.png", "b")
    assert pair[3].caption == f"{expected:.2f} dB / n/a"
    assert cv2.imread("report/figure.png").shape[1] == 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--net=X=lone.pth", SET5], r"architecture of X is unknown.*--opt X=FILE\.yml"),
        (["--net=X=lone.pth", SET5, "--opt=X=no_g.yml"], r"no_g\.yml has no network_g"),
        (["--net=X=lone.pth", SET5, "--opt=wide.yml"], r"lone\.pth does not fit .*wide\.yml; name its own"),
        (["--net=X=lone.pth", SET5, "--opt=odd.yml"], r"odd\.yml: BasicSR knows no network_g of type Odd"),
        ([A, SET5, "--scale=2"], r"EDSR-S does not upscale RGB images by 2: .*96, 96.*48, 48"),
        ([A, A, SET5], "--net EDSR-S=.*: expected --net NAME=PATH, each with a name of its own"),
        (["--net=Bicubic=b", SET5], "the name 'Bicubic' cannot be used"),
        ([A, "--set=S=empty"], "HR folder of the set S, empty, holds no image"),
        ([A, "--set=S=Set5/HR:Set14/HR"], r"no LR image for Set5/HR/cat\.png"),
    ],
)
def test_a_mistake_is_named_before_anything_is_measured(
    place: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "empty").mkdir()
    torch.save(torch.load("a/models/net_g_latest.pth", weights_only=True)["params"], "lone.pth")
    blocks = {"no_g": {}, "wide": {"network_g": NETWORK | {"num_feat": 8}}, "odd": {"network_g": {"type": "Odd"}}}
    for name, block in blocks.items():
        (place / f"{name}.yml").write_text(yaml.safe_dump(block))
    assert call(*flags) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "report").exists()
