"""The verb `preview`, through its command line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
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


def test_the_knobs_come_from_the_yaml(sheets: list[preview.Sheet]) -> None:
    command("--opt train.yml")
    assert sheets[0].kinds == ["gt", "sharpen", "blur", "blur"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sr lq.png", "lq.png is no SR image of gt.png, which is 48x48"),
        ("--lq small.png", "no whole multiple of small.png"),
        ("--net-d net_d.pth", "add --sr FILE"),
        ("--opt l1.yml", "no block train.pcl_opt"),
        ("--opt typo.yml", "num_positive"),
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
