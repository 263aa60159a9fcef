"""`pcl-loss run` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts of the codebases named here. They are copied, never changed; nothing of theirs is in this
repository. What is not there is skipped. HAT and DAT need einops and timm.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream
import yaml
from upstream import copy_of, pcl_patch, python, tree

RUN = ("-m", "pcl_loss", "run")

pytestmark = upstream.MARKS


SWIN = {"upscale": 4, "in_chans": 3, "img_size": 16, "img_range": 1.0, "num_heads": [2], "resi_connection": "1conv"}
OVERLAP = {"window_size": 8, "compress_ratio": 3, "squeeze_factor": 4, "conv_scale": 0.01, "overlap_ratio": 0.5}
HAT = SWIN | OVERLAP | {"depths": [1], "embed_dim": 12, "mlp_ratio": 2, "upsampler": "pixelshuffle"}
COMPACT = {"type": "SRVGGNetCompact", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 1, "upscale": 4}


@dataclass(frozen=True)
class Plugin:
    """A codebase that trains by BasicSR's `train_pipeline`: its script, its model and a tiny network."""

    script: str
    model_type: str
    network_g: dict[str, Any]


PLUGINS = {
    "HAT": Plugin("hat/train.py", "HATModel", HAT | {"type": "HAT"}),
    "Real-ESRGAN": Plugin("realesrgan/train.py", "SRModel", COMPACT),
    "DAT": Plugin(
        "basicsr/train.py",
        "DATModel",
        SWIN | {"type": "DAT", "split_size": [4, 8], "depth": [2], "embed_dim": 32},
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_codebase_of_basicsr_trains_and_resumes_without_an_edit(
    name: str, tmp_path: Path, baseline: dict[str, Any]
) -> None:
    base, folder = PLUGINS[name], copy_of(name, tmp_path)
    if name != "Real-ESRGAN":
        pytest.importorskip("einops")
        pytest.importorskip("timm")
    before = tree(folder)
    options = baseline | {"network_g": base.network_g, "model_type": base.model_type}
    options["logger"]["use_tb_logger"] = False
    options["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "loss_weight": 1.0, "num_feat": 8}

    def train(iterations: int, *command: str) -> str:
        options["train"]["total_iter"] = iterations
        (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
        return python(folder, *command, "-opt", str(tmp_path / "options.yml"))

    output = train(4, *RUN, base.script)
    assert len(re.findall(r"l_percep: [\d.]+e", output)) == 4
    (where,) = re.findall(r"\[pcl_loss\] PCL is registered in (.*)", output)
    assert (Path(where) == folder / "basicsr") == base.script.startswith("basicsr")

    output = train(6, *RUN, base.script, "--auto_resume")
    assert "Loading PCLPerceptualLoss from" in output
    assert len(re.findall(r"l_percep: [\d.]+e", output)) == 2
    assert tree(folder) == before


@dataclass(frozen=True)
class OldFork:
    """A codebase of RCAN's kind, for PyTorch 0.4: the folder of its code, and its flags."""

    code: str
    flags: str


RANGE = "--n_train 3 --n_val 1 --offset_val 3 --ext sep_reset"
OLD_FORKS = {
    "RCAN": OldFork(
        "RCAN_TrainCode/code",
        f"--model RCAN --n_resgroups 2 --n_resblocks 1 --reduction 4 {RANGE}",
    ),
    "MSRN-PyTorch": OldFork("MSRN/Train", "--model MSRN --data_range 1-3/4-4 --ext img"),
}


@pytest.mark.parametrize("name", OLD_FORKS)
def test_an_old_fork_of_edsr_trains_resumes_and_reverts(name: str, tmp_path: Path, pairs: Path) -> None:
    base, folder = OLD_FORKS[name], copy_of(name, tmp_path)
    code = folder / base.code
    before = tree(folder)
    pcl_patch(code)

    def train(epochs: int, *where: str) -> str:
        flags = (
            "--cpu --n_GPUs 1 --n_threads 2 --scale 4 --n_feats 8 --patch_size 96 --batch_size 2 --test_every 2 "
            "--print_every 1 --rgb_range 255 --lr 1e-3 --decay_type step --lr_decay 2 --gamma 0.5 "
            f"--data_train DIV2K --data_test DIV2K --dir_data {pairs} {base.flags} --epochs {epochs}"
        )
        (code / "pcl.yml").write_text("num_feat: 8\n")
        output = python(code, *RUN, "main.py", *flags.split(), "--loss", "1*L1+1*PCL", *where)
        (code / "pcl.yml").unlink()
        return output

    def column(output: str, column: str) -> list[float]:
        return [float(value) for value in re.findall(rf"\[{column}: (-?[\d.]+|nan)\]", output)]

    output = train(2, "--save", "run")
    steps = len(column(output, "L1"))
    assert steps >= 4
    for name in ("PCL", "DIS"):
        assert len(column(output, name)) == steps
        assert all(0 < value < 100 for value in column(output, name))
    (loss,) = folder.glob("**/experiment/run/loss.pt")
    assert steps_of(torch.load(loss, weights_only=True)) == {steps}

    output = train(3, "--load", "run", "--resume", "-1")
    rates = re.findall(r"\[Epoch (\d)\]\s+Learning rate: ([\d.e-]+)", output)
    assert rates == [("3", "5.00e-4")]
    assert steps_of(torch.load(loss, weights_only=True)) == {steps * 3 // 2}

    pcl_patch(code, "--revert")
    assert tree(folder) == before


def steps_of(saved: dict[str, torch.Tensor]) -> set[int]:
    """E_D's steps, as its optimizer has counted them."""
    return {int(value) for key, value in saved.items() if key.endswith(".step")}
