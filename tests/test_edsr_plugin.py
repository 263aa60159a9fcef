"""The adapter works as a term of the loss of EDSR-PyTorch, RCAN and HAN, by their call conventions."""

import copy
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from skeleton import Loss
from torch import nn
from torch.nn import functional as F

from pcl_loss.edsr_plugin import PCL, set_lr

BRANCH = """
elif loss_type.upper() == 'PCL':
    loss_function = import_module('pcl_loss.edsr_plugin').PCL(args)
"""


def options(**changed: Any) -> SimpleNamespace:
    usual = {"rgb_range": 255, "n_colors": 3, "scale": [4], "lr": 1e-4, "loss": "1*L1+1*PCL"}
    return SimpleNamespace(**usual | changed)


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


@pytest.mark.parametrize("wrap", [lambda loss: loss, nn.DataParallel])
def test_the_codebases_own_save_and_load_keep_e_d_and_its_optimizer(wrap: Any) -> None:
    sr, hr = images()
    first, second = Loss(options(), BRANCH), Loss(options(), BRANCH)
    first(sr, hr)
    assert first.terms["PCL"].loss == pytest.approx(float(first.terms["PCL"].log["l_d"]))  # a float, for the DIS column
    assert second.terms["PCL"].loss == 0.0
    file = io.BytesIO()
    torch.save(wrap(first).state_dict(), file)
    file.seek(0)
    wrap(second).load_state_dict(torch.load(file, weights_only=True), strict=True)
    first(sr, hr), second(sr, hr)
    for (key, value), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_options_become_keywords_and_the_range_is_looked_at() -> None:
    pcl = PCL(options(rgb_range=1, n_colors=1, lr=3e-4))
    assert (pcl.pcl.data_range, pcl.embedding.num_in_ch, pcl.lr) == (1.0, 1, 3e-4)
    with pytest.raises(ValueError, match=r"--rgb_range is 1, but .* HR is .*train with --rgb_range 255"):
        PCL(options(rgb_range=1))(*images())


def test_a_run_without_pcl_is_not_loaded_and_the_way_on_is_named() -> None:
    without = Loss(options(loss="1*L1"), BRANCH)
    with pytest.raises(ValueError, match=r"trained without PCL.*--pre_train"):
        Loss(options(), BRANCH).load_state_dict(without.state_dict())


def test_an_option_that_the_codebase_lacks_is_named_and_may_be_said_by_hand() -> None:
    args = options()
    del args.rgb_range
    with pytest.raises(ValueError, match=r"no rgb_range; build PCL\(args, data_range="):
        PCL(args)
    PCL(args, data_range=255)


def test_knobs_beside_the_command_are_taken_and_named_in_the_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pcl.yml").write_text("temperature: 0.5\nnegatives: [blur, batch]\nnum_feat: 4\nlr: 2.0e-4\n")
    pcl = PCL(options())
    assert (pcl.pcl.temperature, pcl.pcl.samples.negatives, pcl.lr) == (0.5, ("blur", "batch"), 2e-4)
    assert capsys.readouterr().out == (
        "[pcl_loss] contrastive loss and its discriminator are built, for images in 0-255; "
        "pcl.yml sets temperature, negatives, num_feat, lr\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature: 1", r"unknown key 'temprature' in pcl.yml; allowed are: num_feat, .*temperature"),
        ("data_range: 1", "unknown key 'data_range'"),
        ("lr: 1e-4", "lr must be a number, got '1e-4'.*takes 1.0e-4, not 1e-4"),
        ("- temperature", "must hold lines `key: value`, got list"),
    ],
)
def test_a_wrong_knob_file_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pcl.yml").write_text(text)
    with pytest.raises((TypeError, ValueError), match=message):
        PCL(options())


def test_lr_is_made_of_hr_where_it_is_not_handed_over_and_counts_once_where_it_is() -> None:
    sr, hr = images()
    made, given, handed = (PCL(options(), negatives=["lq"]) for _ in range(3))
    state = copy.deepcopy(made.state_dict())
    loss = nn.Module()
    loss.wrapped = nn.DataParallel(nn.ModuleList([nn.L1Loss(), handed]))
    set_lr(loss, torch.zeros(2, 3, 12, 12))
    values = []
    lq = F.interpolate(hr, (12, 12), mode="bicubic", antialias=True)
    for call in (made, lambda *x: given(*x, lq), handed, handed):
        for pcl in (made, given, handed):
            pcl.load_state_dict(state)
        values.append(call(sr, hr).item())
    assert values[0] == values[1] == values[3] != values[2]
    with pytest.raises(ValueError, match=r"--scale is not one whole factor: \[2, 3\]"):
        PCL(options(scale=[2, 3]), negatives=["lq"])(sr, hr)
