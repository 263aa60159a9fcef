"""The patches and `pcl-loss patch` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts of the codebases named here; those of EDSR-PyTorch, RCAN, HAN and BasicSR at the commits named in
`patches/`. They are copied, never changed; nothing of theirs is in this repository. What is not there is skipped; DAT,
CAT, RGT and SRFormer need timm and einops.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream
import yaml
from upstream import copy_of, pcl_patch, python, tree

from pcl_loss import cli
from pcl_loss.tools import patch

TESTS = Path(__file__).parents[1]
PATCHES = TESTS.parent / "patches"

pytestmark = upstream.MARKS


@dataclass(frozen=True)
class Codebase:
    """How one of them is started on two cores, for so many epochs of two steps."""

    name: str
    code: str
    flags: str
    extra_epochs: int = 1
    """What --epochs must be above the number of epochs."""
    resume: str = "--resume -1"
    main: tuple[str, ...] = ("main.py",)


DIV2K = "--data_train DIV2K --data_test DIV2K"
FAMILY = {
    base.name: base
    for base in (
        Codebase(
            "EDSR-PyTorch", "src", f"--model EDSR --n_resblocks 2 --n_feats 8 {DIV2K} --data_range 1-3/4-4 --ext sep"
        ),
        Codebase(
            "HAN",
            "src",
            "--model HAN --n_resgroups 10 --n_resblocks 1 --n_feats 8 --reduction 4 "
            "--data_train DIV2K --data_test Set5 --data_range 1-3/4-4 --ext img",
        ),
        Codebase(
            "RCAN",
            "RCAN_TrainCode/code",
            f"--model RCAN --n_resgroups 2 --n_resblocks 1 --n_feats 8 --reduction 4 {DIV2K} "
            "--n_train 3 --n_val 1 --offset_val 3 --ext sep_reset",
            extra_epochs=0,
            main=("-m", "pcl_loss", "run", "main.py"),
        ),
    )
}


def git_apply(folder: Path, *flags: str) -> None:
    command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", *flags, str(PATCHES / f"{folder.name}.patch")]
    # In a copy without .git, git would look for one further up, and skip files that are not its own.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(command, cwd=folder, env=env, check=True)


class Trainer:
    """The codebase's own command, in a copy of it."""

    def __init__(self, base: Codebase, folder: Path, pairs: Path) -> None:
        self.base, self.folder, self.pairs = base, folder, pairs
        self.knobs(num_feat=8)
        # They crop and flip by Python's generator, which they leave unseeded.
        self.seeded = folder.parent / "seeded"
        self.seeded.mkdir()
        (self.seeded / "sitecustomize.py").write_text("import random\n\nrandom.seed(0)\n")

    def knobs(self, **knobs: Any) -> None:
        (self.folder / self.base.code / "pcl.yml").write_text(yaml.safe_dump(knobs))

    def __call__(self, loss: str, epochs: int, *where: str) -> str:
        shared = (
            "--cpu --n_GPUs 1 --n_threads 0 --scale 4 --patch_size 96 --batch_size 2 --test_every 2 --print_every 1 "
            f"--rgb_range 255 --lr 1e-3 --dir_data {self.pairs}"
        )
        flags = f"{shared} {self.base.flags} --epochs {epochs + self.base.extra_epochs}".split()
        return python(
            self.folder / self.base.code, *self.base.main, *flags, "--loss", loss, *where, first=[self.seeded]
        )

    def saved(self, name: str, file: str) -> dict[str, Any]:
        (path,) = (self.folder / self.base.code / ".." / "experiment" / name).resolve().glob(f"**/{file}")
        return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(params=FAMILY)
def trainer(request: pytest.FixtureRequest, tmp_path: Path, pairs: Path) -> Iterator[Trainer]:
    base = FAMILY[request.param]
    folder = copy_of(base.name, tmp_path)
    before = tree(folder)
    yield Trainer(base, folder, pairs)
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


def column(output: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"\[{name}: (-?[\d.]+|nan)\]", output)]


@pytest.mark.parametrize("name", [*FAMILY, "BasicSR"])
def test_the_patch_is_what_the_command_writes_and_both_revert(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    assert (PATCHES / f"{name}.patch").read_bytes().endswith(b"\n\n" + patch.diff(patch.plan(folder)))
    git_apply(folder)
    patched = tree(folder)
    assert patched != before
    git_apply(folder, "-R")
    assert tree(folder) == before
    for _ in range(2):
        pcl_patch(folder)
        assert tree(folder) == patched
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["A2N", "SAN", "MSRN", "NLSN", "SMSR"])
def test_a_fork_gets_the_lines_of_its_family_and_reverts(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    pcl_patch(folder, "--lr-negative")
    after = tree(folder)
    ours = [line for text in after.values() for line in text.splitlines() if line.endswith(b"  # pcl_loss")]
    assert len(ours) == 6
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


def test_without_the_patch_no_banner_is_printed(trainer: Trainer) -> None:
    assert "[pcl_loss] contrastive loss" not in trainer("1*L1+1*PCL", 1, "--save", "unpatched")


def test_with_the_patch_it_trains_saves_and_resumes(trainer: Trainer) -> None:
    git_apply(trainer.folder)
    output = trainer("1*L1+1*PCL", 2, "--save", "with")
    assert output.count("[pcl_loss] contrastive loss") == 1
    steps = len(column(output, "L1"))
    for values in (column(output, "PCL"), column(output, "DIS")):
        assert len(values) == steps >= 4
        assert all(0 < value < 100 for value in values)

    # Weight 0 draws the same random numbers, so that nothing but PCL's gradient can make a difference.
    for name in ("without", "again"):
        trainer("1*L1+0*PCL", 2, "--save", name)
    with_pcl, without, again = (trainer.saved(name, "model_latest.pt") for name in ("with", "without", "again"))
    assert all(torch.equal(again[key], without[key]) for key in without)
    assert any(not torch.equal(with_pcl[key], without[key]) for key in without)

    assert optimizer_steps(trainer.saved("with", "loss.pt")) == {steps}
    output = trainer("1*L1+1*PCL", 3, "--load", "with", *trainer.base.resume.split())
    assert "[Epoch 3]" in output
    assert "[Epoch 2]" not in output
    assert optimizer_steps(trainer.saved("with", "loss.pt")) == {steps * 3 // 2}


def optimizer_steps(saved: dict[str, Any]) -> set[int]:
    (state,) = (value for value in saved.values() if isinstance(value, dict) and "optimizer" in value)
    return {int(entry["step"]) for entry in state["optimizer"]["state"].values()}


def test_lr_is_handed_over_where_it_is_asked_for(trainer: Trainer) -> None:
    trainer.knobs(num_feat=8, negatives=["lq"])
    pcl_patch(trainer.folder)
    trainer("1*L1+1*PCL", 1, "--save", "made")
    pcl_patch(trainer.folder, "--lr-negative")
    output = trainer("1*L1+1*PCL", 1, "--save", "handed")
    assert all(value > 0 for value in column(output, "PCL"))
    made, handed = (trainer.saved(name, "model_latest.pt") for name in ("made", "handed"))
    assert any(not torch.equal(made[key], handed[key]) for key in made)


def test_half_precision_trains(trainer: Trainer) -> None:
    git_apply(trainer.folder)
    # With the default epsilon their own Adam makes the SR network NaN in its first step, with L1 alone too; and the
    # energies of HAN's attention are beyond float16.
    half = ["--model", "EDSR", "--precision", "half", "--epsilon", "1e-3"]
    output = trainer("1*L1+1*PCL", 1, "--save", "half", *half)
    assert all(0 < value < 100 for name in ("PCL", "DIS") for value in column(output, name))
    dtypes = {
        key: value.dtype for key, value in trainer.saved("half", "loss.pt").items() if key.endswith("conv.weight")
    }
    assert set(dtypes.values()) == {torch.float32}


SWIN = {"upscale": 4, "in_chans": 3, "img_size": 16, "img_range": 1.0, "embed_dim": 32, "num_heads": [2]}
ONE_CONV = {"mlp_ratio": 2, "resi_connection": "1conv"}


@dataclass(frozen=True)
class Derived:
    """A codebase with a `basicsr/` of its own: its model and a tiny network."""

    model_type: str
    network_g: dict[str, Any]
    runs_alone: bool = True
    """Whether its own code runs on current libraries."""


DERIVED = {
    "BasicSR": Derived(
        "SwinIRModel",
        {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4},
        runs_alone=False,
    ),
    "DAT": Derived("DATModel", SWIN | ONE_CONV | {"type": "DAT", "split_size": [4, 8], "depth": [2]}),
    "CAT": Derived(
        "CATModel",
        SWIN
        | ONE_CONV
        | {"type": "CAT", "split_size_0": [4], "split_size_1": [0], "depth": [2], "block_name": "CATB_axial"}
        | {"upsampler": "pixelshuffle"},
    ),
    "RGT": Derived("RGTModel", SWIN | ONE_CONV | {"type": "RGT", "split_size": [4, 8], "depth": [2], "c_ratio": 0.5}),
    "SRFormer": Derived(
        "SwinIRModel",
        SWIN | ONE_CONV | {"type": "SRFormer", "window_size": 8, "depths": [2], "upsampler": "pixelshuffledirect"},
        runs_alone=False,
    ),
    "SAFMN": Derived("SRModel", {"type": "SAFMN", "dim": 8, "n_blocks": 1, "upscaling_factor": 4}, runs_alone=False),
}
DERIVED["DAT"].network_g.pop("mlp_ratio")


@pytest.mark.parametrize("name", DERIVED)
def test_a_codebase_with_basicsr_trains_as_before_and_with_pcl_resumes_and_reverts(
    name: str, tmp_path: Path, pairs: Path, baseline: dict[str, Any]
) -> None:
    base, folder = DERIVED[name], copy_of(name, tmp_path)
    if name not in ("BasicSR", "SAFMN"):
        pytest.importorskip("timm")
        pytest.importorskip("einops")
    version = folder / "basicsr" / "version.py"
    if not version.exists():
        subprocess.run([sys.executable, "setup.py", "--version"], cwd=folder, check=True)
    before = tree(folder)
    options = baseline | {"network_g": base.network_g}
    options["logger"]["use_tb_logger"] = False
    held_out, val = options["datasets"].pop("val"), options.pop("val")

    def train(name: str, changed: dict[str, Any], *command: str, model_type: str = "SRModel", iters: int = 4) -> str:
        train_options = options["train"] | changed | {"total_iter": iters}
        yml = options | {"name": name, "model_type": model_type, "train": train_options}
        if model_type == "PCLModel":
            yml["network_d"] = {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 8}
        (tmp_path / "options.yml").write_text(yaml.safe_dump(yml))
        return python(folder, *command, "-opt", str(tmp_path / "options.yml"), first=[folder])

    def trained(name: str) -> dict[str, Any]:
        file = folder / "experiments" / name / "models" / "net_g_latest.pth"
        return torch.load(file, weights_only=True)["params"]

    if base.runs_alone:
        train("alone", {}, "basicsr/train.py")
    pcl_patch(folder)
    output = train("l1", {}, "basicsr/train.py")
    assert output.count("[pcl_loss] ") == (name != "BasicSR")
    if base.runs_alone:
        assert all(torch.equal(value, trained("l1")[key]) for key, value in trained("alone").items())

    with_pcl = {"pcl_opt": {"type": "PCLLoss"}}
    output = train("with", with_pcl, "basicsr/train.py", model_type="PCLModel")
    assert len(re.findall(r"l_pcl: [\d.]+e", output)) == 4
    assert any(not torch.equal(value, trained("with")[key]) for key, value in trained("l1").items())
    # Its own load_resume_state wants a GPU.
    command = ("basicsr/train.py",) if torch.cuda.is_available() else ("-m", "pcl_loss.train")
    output = train("with", with_pcl, *command, "--auto_resume", model_type="PCLModel", iters=6)
    assert "Resuming training from epoch" in output
    assert len(re.findall(r"l_pcl: [\d.]+e", output)) == 2

    slot = {"perceptual_opt": {"type": "PCLPerceptualLoss", "loss_weight": 1.0, "num_feat": 8}}
    output = train("slot", slot, "basicsr/train.py", model_type=base.model_type)
    assert len(re.findall(r"l_percep: [\d.]+e", output)) == 4
    output = train("slot", slot, *command, "--auto_resume", model_type=base.model_type, iters=6)
    assert "Loading PCLPerceptualLoss from" in output

    keep = {key: options[key] for key in ("scale", "num_gpu", "manual_seed", "network_g")}
    paths = {"pretrain_network_g": str(folder / "experiments/with/models/net_g_latest.pth"), "strict_load_g": True}
    test = keep | {"name": "test", "datasets": {"test_1": held_out}, "path": paths, "val": val | {"suffix": None}}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test | {"model_type": "PCLModel"}))
    assert "psnr: " in python(folder, "basicsr/test.py", "-opt", str(tmp_path / "test.yml"), first=[folder])

    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("HAT", 0, "pcl-loss run hat/train.py"),
        ("Real-ESRGAN", 0, "pcl-loss run realesrgan/train.py"),
        ("X-Restormer", 0, "pcl-loss run xrestormer/train.py"),
        ("ESC", 0, "pcl-loss run esc/train.py"),
        ("LDL", 0, "pcl-loss run realesrgan/train.py"),
        ("Restormer", 1, '"Restormer, NAFNet and other copies of an old BasicSR"'),
        ("NAFNet", 1, '"Restormer, NAFNet and other copies of an old BasicSR"'),
        ("KAIR", 1, '"KAIR"'),
        ("DRN", 1, '"DRN"'),
        ("PAMSR", 1, "a list of SR images"),
    ],
)
def test_a_codebase_that_is_not_patched_is_told_what_works(
    name: str, status: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    assert cli.main(["patch", str(folder)]) == status
    captured = capsys.readouterr()
    assert says in captured.out + captured.err
    assert tree(folder) == before
