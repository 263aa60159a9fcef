"""The verb `preview`, through its command line."""

import argparse
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import reference
import torch
import yaml
from helpers import tiny_discriminator
from torch import Tensor

from pcl_loss import PCLLoss
from pcl_loss.tools import preview
from pcl_loss.tools._checkpoints import load_discriminator
from pcl_loss.tools.preview import read_image


def array(images: Tensor) -> Any:
    return images.numpy()


def save(path: Path, images: Tensor) -> Path:
    rgb = (images[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


@pytest.fixture
def files(tmp_path: Path, hr: Tensor, sr: Tensor, lq: Tensor) -> dict[str, Path]:
    """GT, SR, LR, an E_D and a training YAML."""
    torch.save({"params": tiny_discriminator(dtype=torch.float32).state_dict()}, tmp_path / "net_d_5.pth")
    options = {"train": {"pcl_opt": {"type": "PCLLoss", "num_positives": 1, "num_negatives": 2, "loss_weight": 3.0}}}
    (tmp_path / "train.yml").write_text(yaml.safe_dump(options))
    (tmp_path / "l1.yml").write_text(yaml.safe_dump({"train": {"pixel_opt": {"type": "L1Loss"}}}))
    (tmp_path / "typo.yml").write_text(yaml.safe_dump({"train": {"pcl_opt": {"num_positive": 1}}}))
    (tmp_path / "text.png").write_text("no image")
    return {
        "image": save(tmp_path / "gt.png", hr),
        "sr": save(tmp_path / "sr.png", sr),
        "lq": save(tmp_path / "lq.png", lq),
        "small": save(tmp_path / "small.png", hr[..., :31, :]),
        "net_d": tmp_path / "net_d_5.pth",
        "out": tmp_path / "pictures" / "sheet.png",
        "folder": tmp_path,
    }


def command(files: dict[str, Path], *flags: str, image: str = "image") -> int:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    return preview.run(parser.parse_args(["--image", str(files[image]), "--out", str(files["out"]), *flags]))


def drawn_sheets(monkeypatch: pytest.MonkeyPatch) -> list[preview.Sheet]:
    sheets = []
    real = preview.draw
    monkeypatch.setattr(preview, "draw", lambda sheet, title: (sheets.append(sheet), real(sheet, title))[1])
    return sheets


def test_the_verb_draws_a_picture(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = drawn_sheets(monkeypatch)
    flags = [f"--{key}={files[key.replace('-', '_')]}" for key in ("sr", "lq", "net-d")]
    assert command(files, *flags, "--seed", "7") == 0
    picture = cv2.imread(str(files["out"]))
    assert picture.shape[1] == 1200
    assert picture.shape[0] > 1000
    (sheet,) = sheets
    assert [panel.kind for panel in sheet.negatives] == ["sr"] + 4 * ["blur"] + ["lq"]
    assert f"L_CL = {sheet.l_cl:.4f}" in capsys.readouterr().out

    hr, sr, lq = (read_image(files[key]) for key in ("image", "sr", "lq"))
    pcl, net = PCLLoss(negatives=("blur", "lq"), seed=7), load_discriminator(files["net_d"])
    pcl(sr, hr, net, lq)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-5)


def test_the_knobs_come_from_the_yaml_and_flags_go_before_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = drawn_sheets(monkeypatch)
    yml = f"--opt={files['folder'] / 'train.yml'}"
    command(files, yml)
    command(files, yml, "--num-positives", "3", "--sharpness", "2", "2.1", "--negatives", "blur", "batch")
    assert [(len(sheet.positives), len(sheet.negatives)) for sheet in sheets] == [(2, 2), (4, 2)]
    assert all(2 <= (panel.draw or 0) <= 2.1 for panel in sheets[1].positives[1:])


def test_a_crop_takes_the_same_part_of_gt_sr_and_lr(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = drawn_sheets(monkeypatch)
    command(files, f"--sr={files['sr']}", f"--lq={files['lq']}", "--crop", "8,12,32")
    (sheet,) = sheets
    gt, sr = (read_image(files[key])[0, :, 8:40, 12:44] for key in ("image", "sr"))
    assert torch.equal(sheet.positives[0].image, gt)
    assert torch.equal(sheet.negatives[0].image, sr)
    expected = reference.bicubic(array(read_image(files["lq"])[0, :, 2:10, 3:11].double()), (32, 32))
    np.testing.assert_allclose(array(sheet.negatives[-1].image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "flags", "message"),
    [
        ("folder", (), "there is no image"),
        ("image", ("--sr", "missing.png"), "there is no image missing.png"),
        ("image", ("--sr", "{folder}/text.png"), "no image that can be read"),
        ("small", (), "small.png is 31x48; at least 32x32 is needed"),
        ("image", ("--sr", "{lq}"), "lq.png is 12x12, but .*gt.png is 48x48"),
        ("image", ("--lq", "{small}"), "no whole multiple of .*small.png"),
        ("image", ("--net-d", "{net_d}"), "add --sr FILE"),
        ("image", ("--layer", "2"), "add --net-d FILE"),
        ("image", ("--crop", "0,0"), "TOP,LEFT,SIZE, three whole numbers, got '0,0'"),
        ("image", ("--crop", "0,0,20"), "SIZE must be at least 32"),
        ("image", ("--crop", "0,20,32"), "reaches beyond the image of 48x48"),
        ("image", ("--lq", "{lq}", "--crop", "2,0,32"), "take multiples of it, such as 0,0,32"),
        ("image", ("--lq", "{lq}", "--negatives", "blur"), "add 'lq' there, or drop --lq"),
        ("image", ("--seed", "-1"), "seed must be at least 0"),
        ("image", ("--opt", "{folder}/no.yml"), "no.yml cannot be read"),
        ("image", ("--opt", "{folder}/l1.yml"), r"no block train\.pcl_opt"),
        ("image", ("--opt", "{folder}/typo.yml"), r"train\.pcl_opt: .*num_positive"),
        ("image", ("--negatives", "blurr"), "unknown entries"),
    ],
)
def test_a_wrong_flag_names_itself_and_the_fix(
    image: str, flags: tuple[str, ...], message: str, files: dict[str, Path]
) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        command(files, *(flag.format(**files) for flag in flags), image=image)
    assert not files["out"].exists()
