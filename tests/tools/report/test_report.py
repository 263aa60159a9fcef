"""The verb `report`, through its command line, on crops of free photographs and tiny nets."""

from __future__ import annotations

import argparse
import csv
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
from matplotlib.figure import Figure

from pcl_loss import basicsr_plugin  # noqa: F401
from pcl_loss.tools import report
from pcl_loss.tools.report import figure as report_figure
from pcl_loss.tools.report import measure as report_measure

# isort: split
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.matlab_functions import imresize

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}


def part(name: str, height: int, width: int) -> np.ndarray:
    """A part of a free photograph, BGR."""
    return np.ascontiguousarray(getattr(skimage.data, name)()[60 : 60 + height, 120 : 120 + width, ::-1])


def edsr(seed: int, **options: Any) -> EDSR:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EDSR(**{key: value for key, value in (NETWORK | options).items() if key != "type"}).eval()


def write_experiment(folder: Path, seed: int, yml: bool = True, **more: Any) -> Path:
    """What BasicSR leaves of a training; returns the checkpoint."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    path = folder / "models" / "net_g_latest.pth"
    torch.save({"params": edsr(seed).state_dict()} | more, path)
    if yml:
        options = {"name": folder.name, "scale": 4, "network_g": NETWORK, "network_d": {"type": "NoSuchNet"}}
        (folder / f"{folder.name}.yml").write_text(yaml.safe_dump(options))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sets Set5/HR and Set14/HR and the experiments `a` and `b`, without LPIPS's weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.chdir(tmp_path)
    images = {
        "Set5/HR/cat": ("chelsea", 107, 203),
        "Set5/HR/cup": ("coffee", 48, 48),
        "Set14/HR/face": ("astronaut", 60, 64),
    }
    for name, (photo, *size) in images.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), part(photo, *size))
    write_experiment(tmp_path / "a", 1)
    write_experiment(tmp_path / "b", 2)
    return tmp_path


A, B = "--net=EDSR-S=a/models/net_g_latest.pth", "--net=EDSR-S+PCL=b/models/net_g_latest.pth"
SET5, SET14 = "--set=Set5=Set5/HR", "--set=Set14=Set14/HR"


def call(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([*flags, "--device=cpu"]))


def table(text: str, number: int) -> dict[str, list[str]]:
    """The cells of a Markdown table by the first of each row."""
    part = text.split("\n## ")[number]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def luma(bgr: np.ndarray) -> np.ndarray:
    blue, green, red = (bgr[4:-4, 4:-4, channel].astype(np.float64) / 255 for channel in range(3))
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((luma(sr) - luma(hr)) ** 2).mean()))


def run_by_hand(net: EDSR, lr: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(lr[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
        return (net(x)[0].clamp(0, 1) * 255).round().byte().numpy().transpose(1, 2, 0)[..., ::-1]


def expected_psnr(place: Path, path: str, seed: int | None) -> float:
    hr = cv2.imread(str(place / path))
    hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    lr = (imresize(hr.astype(np.float32) / 255, 1 / 4).clip(0, 1) * 255).round().astype(np.uint8)
    if seed is None:
        sr = (imresize(lr.astype(np.float32) / 255, 4).clip(0, 1) * 255).round()
    else:
        sr = run_by_hand(edsr(seed), lr)
    return psnr(sr, hr)


# --- tables ---


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


# --- metrics that cannot be had ---


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


# --- reading instead of running ---


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the LR images that any net is run on."""
    shapes = []
    upscale = report_measure.upscale

    def counted(module: Any, lr: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        shapes.append(lr.shape)
        return upscale(module, lr, *args, **kwargs)

    monkeypatch.setattr(report_measure, "upscale", counted)
    return shapes


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


# --- nets and sets ---


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


@pytest.mark.parametrize("window", [8, 7])
def test_window_nets_get_their_multiple_and_the_image_keeps_its_size(window: int) -> None:
    seen = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[-2:]))
        return torch.nn.functional.interpolate(x, scale_factor=4)

    lr = part("coffee", 20, 17)
    sr = report_measure.upscale(net, lr, 4, "cpu", window=window)
    assert all(side % window == 0 for side in seen[0])
    np.testing.assert_array_equal(sr, lr.repeat(4, axis=0).repeat(4, axis=1))


# --- errors ---


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--net=X=gone.pth", SET5], FileNotFoundError, r"checkpoint of X, gone\.pth, does not exist"),
        (["--net=X=lone.pth", SET5], FileNotFoundError, r"architecture of X is unknown.*--opt X=FILE\.yml"),
        (["--net=X=lone.pth", SET5, "--opt=X=no_g.yml"], ValueError, r"no_g\.yml has no network_g"),
        (["--net=X=lone.pth", SET5, "--opt=wide.yml"], ValueError, r"lone\.pth does not fit .*wide\.yml; name its own"),
        (["--net=X=lone.pth", SET5, "--opt=odd.yml"], ValueError, r"odd\.yml: BasicSR knows no network_g of type Odd"),
        (["--net=X=lone.pth", SET5, "--opt=Y=a/a.yml"], FileNotFoundError, "Y=a/a.yml"),
        (["--net=X=text.pth", SET5, "--opt=a/a.yml"], ValueError, r"text\.pth is no checkpoint"),
        ([A, SET5, "--param-key=params_ema"], ValueError, "has no params_ema, only params; take auto"),
        ([A, SET5, "--scale=2"], ValueError, r"a\.yml, which describes EDSR-S, has scale: 4; .* --scale 2"),
        ([A, A, SET5], ValueError, "--net names EDSR-S twice"),
        ([A, "--net=edsr-s=b", SET5], ValueError, "name edsr-s is taken by EDSR-S"),
        (["--net=bicubic=b", SET5], ValueError, "name bicubic is taken by Bicubic"),
        (["--net=../x=b", SET5], ValueError, "cannot be a folder's"),
        ([A, SET5, SET5], ValueError, "--set names Set5 twice"),
        ([A, "--set=Set5"], ValueError, "expected --set NAME=HRDIR"),
        ([A, "--set=S=nowhere"], FileNotFoundError, "HR folder of the set S, nowhere, does not exist"),
        ([A, "--set=S=empty"], FileNotFoundError, "HR folder of the set S, empty, holds no image"),
        ([A, "--set=S=Set5/HR:Set14/HR"], FileNotFoundError, r"no LR image for Set5/HR/cat\.png"),
        ([A, SET5, "--crop=Set5/cat"], ValueError, "expected SET/IMAGE:TOP,LEFT,SIZE"),
        ([A, SET5, "--crop=Set5/dog:0,0,9"], ValueError, "no image Set5/dog to crop; there are Set5/cat, Set5/cup"),
        ([A, SET5, "--crop=Set5/cup:0,20,32"], ValueError, "leaves the image, which has 48x48"),
        ([A, SET5, "--out=lone.pth"], ValueError, r"lone\.pth is a file"),
        ([A, SET5, "--opt=a/a.yml", "--opt=b/b.yml"], ValueError, "2 times without the name"),
    ],
)
def test_a_mistake_is_named_with_its_fix(place: Path, flags: list[str], error: type[Exception], message: str) -> None:
    (place / "empty").mkdir()
    (place / "text.pth").write_text("no checkpoint")
    torch.save(edsr(1).state_dict(), place / "lone.pth")
    blocks = {"no_g": {}, "wide": {"network_g": NETWORK | {"num_feat": 8}}, "odd": {"network_g": {"type": "Odd"}}}
    for name, block in blocks.items():
        (place / f"{name}.yml").write_text(yaml.safe_dump(block))
    with pytest.raises(error, match=message):
        call(*flags)
    assert not (place / "report").exists()


def test_an_unusable_device_is_named(place: Path) -> None:
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        report.make_report({"X": "a"}, {"Set5": "Set5/HR"}, "report", device="abacus")


# --- figure ---


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of panels that are drawn."""
    seen = []
    draw = report_figure.draw

    def record(rows: Any) -> Figure:
        seen.extend(rows)
        return draw(rows)

    monkeypatch.setattr(report_figure, "draw", record)
    return seen


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
    assert report_figure.most_lost_window(hr, bicubic, 4) == (11, 22)


def test_without_matplotlib_there_are_tables_and_a_word(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = report.importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call(A, SET14) == 0
    assert "There is no figure" in capsys.readouterr().out
    assert not (place / "report" / "figure.png").exists()
