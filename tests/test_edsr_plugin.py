"""The adapter works as a term of the loss of EDSR-PyTorch, RCAN and HAN, by their call conventions."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from skeleton import Loss
from torch.nn import functional as F

from pcl_loss.edsr_plugin import PCL

BRANCH = """
elif loss_type == 'PCL':
    loss_function = import_module('pcl_loss.edsr_plugin').PCL(args)
"""


def options(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"rgb_range": 255, "n_colors": 3, "scale": [4], "lr": 1e-4, "loss": "1*L1+1*PCL"} | changed
    )


def images(white: float = 255.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 48, 48, generator=generator)
    sr = hr + 0.1 * torch.randn(hr.shape, generator=generator)
    return (sr * white).requires_grad_(), hr * white


def test_the_term_is_added_to_l1_and_reaches_the_sr_image() -> None:
    sr, hr = images()
    loss = Loss(options(), BRANCH)
    total = loss(sr, hr)
    total.backward()
    pcl = loss.terms["PCL"]
    torch.testing.assert_close(total.detach(), F.l1_loss(sr, hr).detach() + pcl.log["l_pcl"])
    with_pcl = sr.grad.clone()
    sr.grad = None
    F.l1_loss(sr, hr).backward()
    assert (with_pcl - sr.grad).abs().max() > 0


def test_without_the_branch_no_banner_is_printed_and_with_it_one(capsys: pytest.CaptureFixture[str]) -> None:
    Loss(options(), branch="")
    assert "pcl_loss" not in capsys.readouterr().out
    Loss(options(), BRANCH)
    assert capsys.readouterr().out.count("[pcl_loss]") == 1


def test_options_become_keywords() -> None:
    pcl = PCL(options(rgb_range=1, n_colors=1, lr=3e-4))
    assert pcl.pcl.data_range == 1.0
    assert pcl.embedding.num_in_ch == 1
    assert pcl._optimizer.param_groups[0]["lr"] == 3e-4


def test_the_codebases_own_save_and_load_keep_e_d_and_its_optimizer() -> None:
    sr, hr = images()
    whole, first = Loss(options(), BRANCH), Loss(options(), BRANCH)
    first.load_state_dict(whole.state_dict())
    whole(sr, hr), whole(sr, hr)

    first(sr, hr)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Loss(options(), BRANCH)
    second.load_state_dict(torch.load(file, weights_only=True), strict=True)
    second(sr, hr)
    for key, value in whole.terms["PCL"].embedding.state_dict().items():
        assert torch.equal(value, second.terms["PCL"].embedding.state_dict()[key]), key


def test_half_precision_keeps_e_d_in_float32() -> None:
    loss = Loss(options(), BRANCH).half()
    assert {p.dtype for p in loss.terms["PCL"].embedding.parameters()} == {torch.float32}
    sr, hr = images()
    half = sr.detach().half().requires_grad_()
    loss(half, hr.half()).backward()
    assert torch.isfinite(half.grad).all()


def test_the_discriminators_loss_is_a_float_for_the_log() -> None:
    loss = Loss(options(), BRANCH)
    loss(*images())
    pcl = loss.terms["PCL"]
    assert isinstance(pcl.loss, float)
    assert pcl.loss == pytest.approx(float(pcl.log["l_d"]))
