"""PCL in the perceptual slot of models that know nothing of it, E_D in their checkpoints included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pcl_loss import PCLCriterion, PCLPerceptualLoss

Options = dict[str, Any]


@pytest.fixture
def stock(baseline: Options) -> Options:
    """The L1 baseline, its model class unchanged, with PCL as its perceptual loss."""
    baseline["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 4, "loss_weight": 1.0}
    return baseline


def test_a_resume_of_plain_basicsrs_files_says_that_e_d_starts_anew(
    stock: Options, run_pipeline: Callable[..., str], tmp_path: Path
) -> None:
    run_pipeline(stock)
    (tmp_path / "experiments/tiny/models/pcl_4.pth").unlink()
    path = tmp_path / "experiments/tiny/training_states/4.state"
    state = torch.load(path, weights_only=True)
    del state["pcl_loss"]
    torch.save(state, path)
    stock["train"]["total_iter"] = 5
    assert "the PCLPerceptualLoss starts anew" in run_pipeline(stock, "--auto_resume")


def test_the_lr_negative_is_made_of_the_ground_truth() -> None:
    torch.manual_seed(0)
    perceptual = PCLPerceptualLoss(scale=2, num_feat=2, negatives=["lq"])
    criterion = PCLCriterion(num_feat=2, negatives=["lq"])
    criterion.load_state_dict(perceptual.state_dict())
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sr = (gt * 0.9).requires_grad_()
    loss, style = perceptual(sr, gt)
    assert style is None
    # Keys' bicubic, stretched over 2 pixels: taps at distances 0.25, 0.75, 1.25, 1.75 of its arguments.
    x = torch.tensor([1.75, 1.25, 0.75, 0.25, 0.25, 0.75, 1.25, 1.75])
    kernel = torch.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) / 2
    padded = F.pad(gt, (3, 3, 3, 3), mode="replicate")
    weight = torch.outer(kernel, kernel).expand(3, 1, 8, 8)
    lq = F.conv2d(padded, weight, stride=2, groups=3)
    inner = slice(4, -4)  # at the border the two treat the missing pixels differently
    made = F.interpolate(gt, (16, 16), mode="bicubic", antialias=True)
    torch.testing.assert_close(made[..., inner, inner], lq[..., inner, inner])
    torch.testing.assert_close(loss, criterion(sr, gt, made))
