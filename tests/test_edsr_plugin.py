"""The adapter works as a term of the loss of EDSR-PyTorch, RCAN and HAN, by their call conventions."""

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


@pytest.mark.parametrize(("option", "keyword"), [("rgb_range", "data_range"), ("n_colors", "num_in_ch"), ("lr", "lr")])
def test_an_option_that_the_codebase_lacks_is_named_and_may_be_said_by_hand(option: str, keyword: str) -> None:
    args = options()
    value = getattr(args, option)
    delattr(args, option)
    with pytest.raises(ValueError, match=rf"no {option}; build PCL\(args, {keyword}="):
        PCL(args)
    PCL(args, **{keyword: value})


def test_the_scale_is_needed_for_lr_negatives_alone() -> None:
    args = options()
    del args.scale
    PCL(args)(*images())
    with pytest.raises(ValueError, match=r"--scale is not one whole factor: \[\]"):
        PCL(args, negatives=["lq"])(*images())


def write_knobs(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "pcl.yml").write_text(text)


def test_knobs_beside_the_command_are_taken_and_named_in_the_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_knobs(
        tmp_path, monkeypatch, "temperature: 0.5\nnegatives: [blur, batch]\nnum_feat: 4\nnorm: none\nlr: 2.0e-4\n"
    )
    pcl = PCL(options())
    assert pcl.pcl.temperature == 0.5
    assert pcl.pcl.samples.negatives == ("blur", "batch")
    assert pcl.pcl.data_range == 255.0
    assert pcl.lr == 2e-4
    assert capsys.readouterr().out == (
        "[pcl_loss] contrastive loss and its discriminator are built, for images in 0-255; "
        "pcl.yml sets temperature, negatives, num_feat, norm, lr\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature: 1\n", r"unknown key 'temprature' in pcl.yml; allowed are: num_feat, .*temperature"),
        ("embedding: 1\n", "unknown key 'embedding'"),
        ("data_range: 1\n", "unknown key 'data_range'"),
        ("lr: 1e-4\n", "lr must be a number, got '1e-4'.*takes 1.0e-4, not 1e-4"),
        ("- temperature\n", "must hold lines `key: value`, got list"),
        ("temperature: [\n", "pcl.yml is not YAML"),
        ("\x93\n", "pcl.yml is not YAML"),
        ("temperature: 0\n", "temperature must be above 0, got 0 .*pcl.yml has .*temperature"),
        ("num_layers: 99\n", "num_layers|99"),
    ],
)
def test_a_wrong_knob_file_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    write_knobs(tmp_path, monkeypatch, "")
    (tmp_path / "pcl.yml").write_bytes(text.encode("latin-1"))
    with pytest.raises((TypeError, ValueError), match=message):
        PCL(options())(*images())


def test_lr_that_is_not_handed_over_is_made_of_hr() -> None:
    sr, hr = images()
    torch.manual_seed(0)
    made, given = PCL(options(), negatives=["lq"]), PCL(options(), negatives=["lq"])
    given.load_state_dict(made.state_dict())
    lq = F.interpolate(hr, (12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(made(sr, hr), given(sr, hr, lq), rtol=0, atol=0)


def test_lr_that_is_handed_over_counts_once() -> None:
    sr, hr = images()
    made, handed = PCL(options(), negatives=["lq"]), PCL(options(), negatives=["lq"])
    handed.load_state_dict(made.state_dict())
    loss = nn.Module()
    loss.wrapped = nn.DataParallel(nn.ModuleList([nn.L1Loss(), handed]))
    set_lr(loss, torch.zeros(2, 3, 12, 12))
    assert handed(sr, hr) != made(sr, hr)
    handed.load_state_dict(made.state_dict())
    torch.testing.assert_close(made(sr, hr), handed(sr, hr), rtol=0, atol=0)
