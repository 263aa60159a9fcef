"""The patches and `pcl-loss patch` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts named EDSR-PyTorch, RCAN, HAN and BasicSR, at the commits named in `patches/`. They are copied,
never changed; nothing of theirs is in this repository.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from skimage import data

import pcl_loss
from pcl_loss.tools import patch

UPSTREAM = os.environ.get("PCL_UPSTREAM")
PACKAGE = Path(pcl_loss.__file__).parent.parent
TESTS = Path(__file__).parents[1]
PATCHES = TESTS.parent / "patches"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not UPSTREAM, reason="set PCL_UPSTREAM=DIR, a folder with checkouts of EDSR-PyTorch, RCAN, HAN and BasicSR"
    ),
]


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
            main=(str(TESTS / "rcan_launcher.py"),),
        ),
    )
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images and their quarters, laid out as each of the codebases wants them."""
    import cv2

    folder = tmp_path_factory.mktemp("pairs")
    for number, name in enumerate(("astronaut", "coffee", "chelsea", "rocket"), 1):
        hr = np.ascontiguousarray(getattr(data, name)()[20:148, 100:228, ::-1])
        lr = cv2.resize(hr, (32, 32), interpolation=cv2.INTER_AREA)
        files = {
            f"DIV2K/DIV2K_train_HR/{number:04}.png": hr,
            f"DIV2K/DIV2K_train_LR_bicubic/X4/{number:04}x4.png": lr,
            f"TrainHR/{number:04}_HR.png": hr,
            f"TrainLR/X4/{number:04}_LR.png": lr,
            "Set5/HR/0001_HR.png": hr,
            "Set5/LR/X4/0001_LR.png": lr,
        }
        for file, image in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / file), image)
    return folder


def copy_of(name: str, to: Path) -> Path:
    source = Path(UPSTREAM or "") / name
    if not source.is_dir():
        pytest.skip(f"there is no {source}")
    return Path(shutil.copytree(source, to / name, ignore=shutil.ignore_patterns(".git", "__pycache__", "experiment*")))


def tree(folder: Path) -> dict[str, bytes]:
    """The files as they are, but for what a training leaves behind."""
    left = {"experiment", "experiments", "results", "__pycache__"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not left & set(path.relative_to(folder).parts) and path.name != "pcl.yml"
    }


def git_apply(folder: Path, *flags: str) -> None:
    command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", *flags, str(PATCHES / f"{folder.name}.patch")]
    # In a copy without .git, git would look for one further up, and skip files that are not its own.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(command, cwd=folder, env=env, check=True)


def pcl_patch(folder: Path, *flags: str) -> None:
    parser = argparse.ArgumentParser()
    patch.add_arguments(parser)
    assert patch.run(parser.parse_args([str(folder), *flags])) == 0


def python(cwd: Path, *arguments: str, **env: str) -> str:
    env = os.environ | {"PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


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
        path = os.pathsep.join([str(self.seeded), str(PACKAGE)])
        return python(self.folder / self.base.code, *self.base.main, *flags, "--loss", loss, *where, PYTHONPATH=path)

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
def test_the_patch_and_the_command_give_the_same_tree_and_both_revert(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    git_apply(folder)
    patched = tree(folder)
    assert patched != before
    git_apply(folder, "-R")
    assert tree(folder) == before

    pcl_patch(folder)
    assert tree(folder) == patched
    pcl_patch(folder)
    assert tree(folder) == patched
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize("name", [*FAMILY, "BasicSR"])
def test_the_patch_in_the_repository_is_what_the_command_would_write(name: str, tmp_path: Path) -> None:
    written = patch.diff(patch.plan(copy_of(name, tmp_path)))
    assert (PATCHES / f"{name}.patch").read_bytes().endswith(b"\n\n" + written)


def test_without_the_patch_no_banner_is_printed(trainer: Trainer) -> None:
    assert "[pcl_loss]" not in trainer("1*L1+1*PCL", 1, "--save", "unpatched")


def test_with_the_patch_it_trains_saves_and_resumes(trainer: Trainer) -> None:
    git_apply(trainer.folder)
    output = trainer("1*L1+1*PCL", 2, "--save", "with")
    assert output.count("[pcl_loss] ") == 1
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


def test_basicsr_trains_with_its_own_command(tmp_path: Path, pairs: Path, baseline: dict[str, Any]) -> None:
    folder = copy_of("BasicSR", tmp_path)
    version = folder / "basicsr" / "version.py"
    if not version.exists():  # its setup.py writes it
        version.write_text("__version__ = '1.4.2'\n__gitsha__ = 'unknown'\nversion_info = (1, 4, 2)\n")
    before = tree(folder)
    git_apply(folder)
    options = baseline | {
        "model_type": "PCLModel",
        "network_d": {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 8},
    }
    held_out, val = options["datasets"].pop("val"), options.pop("val")
    options["logger"]["use_tb_logger"] = False

    def train(weight: float, name: str, iterations: int, *command: str) -> str:
        options["train"] |= {"pcl_opt": {"type": "PCLLoss", "loss_weight": weight}, "total_iter": iterations}
        (tmp_path / "options.yml").write_text(yaml.safe_dump(options | {"name": name}))
        return python(
            folder, *command, "-opt", str(tmp_path / "options.yml"), PYTHONPATH=f"{folder}{os.pathsep}{PACKAGE}"
        )

    output = train(1.0, "with", 4, "basicsr/train.py")
    assert len(re.findall(r"l_pcl: [\d.]+e", output)) == 4
    train(0.0, "without", 4, "basicsr/train.py")
    with_pcl, without = (
        torch.load(folder / "experiments" / name / "models" / "net_g_latest.pth", weights_only=True)["params"]
        for name in ("with", "without")
    )
    assert any(not torch.equal(with_pcl[key], without[key]) for key in without)

    # Its own load_resume_state wants a GPU.
    command = ("basicsr/train.py",) if torch.cuda.is_available() else ("-m", "pcl_loss.train")
    output = train(1.0, "with", 6, *command, "--auto_resume")
    assert "Resuming training from epoch" in output
    assert len(re.findall(r"l_pcl: [\d.]+e", output)) == 2

    keep = {key: options[key] for key in ("model_type", "scale", "num_gpu", "manual_seed", "network_g")}
    path = {"pretrain_network_g": str(folder / "experiments/with/models/net_g_latest.pth"), "strict_load_g": True}
    test = keep | {"name": "test", "datasets": {"test_1": held_out}, "path": path, "val": val | {"suffix": None}}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    flags = ("-opt", str(tmp_path / "test.yml"))
    assert "psnr: " in python(folder, "basicsr/test.py", *flags, PYTHONPATH=f"{folder}{os.pathsep}{PACKAGE}")

    pcl_patch(folder, "--revert")
    assert tree(folder) == before
