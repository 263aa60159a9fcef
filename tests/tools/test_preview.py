"""The verb `preview`, through its command line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import reference
import torch
import yaml
from helpers import tiny_discriminator
from test_preview import HR, LQ, SR
from torch import Tensor

from pcl_loss import PCLLoss, cli, preview
from pcl_loss.tools._checkpoints import load_discriminator
from pcl_loss.tools.preview import read_image


def save(path: Path, images: Tensor) -> None:
    rgb = (images[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With GT, SR, LR, E_D and training YAMLs."""
    monkeypatch.chdir(tmp_path)
    for name, images in {"gt": HR, "sr": SR, "lq": LQ, "small": HR[..., :31, :]}.items():
        save(tmp_path / f"{name}.png", images)
    torch.save({"params": tiny_discriminator(dtype=torch.float32).state_dict()}, "net_d.pth")
    pcl_opt = {"type": "PCLLoss", "num_positives": 1, "num_negatives": 2, "loss_weight": 3.0}
    Path("train.yml").write_text(yaml.safe_dump({"train": {"pcl_opt": pcl_opt}}))
    Path("l1.yml").write_text(yaml.safe_dump({"train": {"pixel_opt": {"type": "L1Loss"}}}))
    Path("typo.yml").write_text(yaml.safe_dump({"train": {"pcl_opt": {"type": "PCLLoss", "num_positive": 1}}}))
    Path("text.png").write_text("no image")
    return tmp_path


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[preview.Sheet]:
    """Those that are drawn."""
    drawn: list[preview.Sheet] = []
    real = preview.draw
    monkeypatch.setattr(preview, "draw", lambda sheet, title: (drawn.append(sheet), real(sheet, title))[1])
    return drawn


def command(flags: str) -> int:
    return cli.main(["preview", "--image", "gt.png", "--out", "new/sheet.png", *flags.split()])


def test_the_verb_draws_a_picture(capsys: pytest.CaptureFixture[str], sheets: list[preview.Sheet]) -> None:
    assert command("--sr sr.png --lq lq.png --net-d net_d.pth --seed 7") == 0
    assert cv2.imread("new/sheet.png").shape[1] == 1200
    (sheet,) = sheets
    assert sheet.kinds[5:] == ["sr", *4 * ["blur"], "lq"]
    assert f"L_CL = {sheet.l_cl:.4f}" in capsys.readouterr().out
    hr, sr, lq = (read_image(Path(f"{name}.png")) for name in ("gt", "sr", "lq"))
    pcl = PCLLoss(negatives=("blur", "lq"), seed=7)
    pcl(sr, hr, load_discriminator("net_d.pth"), lq)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-5)


def test_the_knobs_come_from_the_yaml_and_flags_go_before_it(sheets: list[preview.Sheet]) -> None:
    command("--opt train.yml")
    command("--opt train.yml --num-positives 3 --sharpness 2 2.1 --negatives blur batch")
    assert [sheet.kinds.count("sharpen") for sheet in sheets] == [1, 3]
    assert all(2 <= (number or 0) <= 2.1 for number in sheets[1].draws[1:4])


def test_a_crop_takes_the_same_part_of_gt_sr_and_lr(sheets: list[preview.Sheet]) -> None:
    command("--sr sr.png --lq lq.png --crop 8,12,32")
    (sheet,) = sheets
    gt, sr = (read_image(Path(name))[0, :, 8:40, 12:44] for name in ("gt.png", "sr.png"))
    assert torch.equal(sheet.images[0], gt)
    assert torch.equal(sheet.images[sheet.kinds.index("sr")], sr)
    expected = reference.bicubic(read_image(Path("lq.png"))[0, :, 2:10, 3:11].double().numpy(), (32, 32))
    np.testing.assert_allclose(sheet.images[-1].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--image none.png", "there is no image"),
        ("--sr text.png", "no image that can be read"),
        ("--image small.png", "31x48, but at least 32x32"),
        ("--sr lq.png", "lq.png is no SR image of gt.png, which is 48x48"),
        ("--lq small.png", "no whole multiple of small.png"),
        ("--net-d net_d.pth", "add --sr FILE"),
        ("--crop 0,0", "TOP,LEFT,SIZE, three whole numbers, got '0,0'"),
        ("--crop 0,0,20", "SIZE at least 32"),
        ("--crop 0,20,32", "reaches beyond the image of 48x48"),
        ("--lq lq.png --crop 2,0,32", "take multiples of the scale, 4"),
        ("--seed -1", "seed must be at least 0"),
        ("--opt no.yml", "no.yml cannot be read"),
        ("--opt l1.yml", "no block train.pcl_opt"),
        ("--opt typo.yml", "num_positive"),
        ("--negatives blurr", "negatives must be some of"),
        ("--out .", "--out . names no picture; give a file such as sheet.png"),
        ("--out sheet", "give a file such as sheet/sheet.png"),
    ],
)
def test_a_wrong_flag_names_itself_and_the_fix(
    flags: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert command(flags) == 1
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before
