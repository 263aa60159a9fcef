"""The patches and `pcl-loss patch` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts of the codebases named here; those of EDSR-PyTorch, RCAN, HAN and BasicSR at the commits named in
`patches/`. They are copied, never changed; nothing of theirs is in this repository. What is not there is skipped.
CATANet, CRAFT-SR and ESC need timm, einops and what else they import.
"""

import os
import re
import subprocess
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

    assert discriminator_steps(trainer.saved("with", "loss.pt")) == {steps}
    output = trainer("1*L1+1*PCL", 3, "--load", "with", *trainer.base.resume.split())
    assert "[Epoch 3]" in output
    assert "[Epoch 2]" not in output
    assert discriminator_steps(trainer.saved("with", "loss.pt")) == {steps * 3 // 2}


def discriminator_steps(saved: dict[str, Any]) -> set[int]:
    return {int(value) for key, value in saved.items() if key.endswith("num_batches_tracked")}


def test_lr_is_handed_over_where_it_is_asked_for(trainer: Trainer) -> None:
    trainer.knobs(num_feat=8, negatives=["lq"])
    pcl_patch(trainer.folder)
    trainer("1*L1+1*PCL", 1, "--save", "made")
    pcl_patch(trainer.folder, "--lr-negative")
    output = trainer("1*L1+1*PCL", 1, "--save", "handed")
    assert all(value > 0 for value in column(output, "PCL"))
    made, handed = (trainer.saved(name, "model_latest.pt") for name in ("made", "handed"))
    assert any(not torch.equal(made[key], handed[key]) for key in made)


# The option file of a codebase with a `basicsr/`, and what makes its network tiny.
OWN = {
    "SMFANet": ("SMFANet_DIV2K_100w_x4SR.yml", {"dim": 12, "n_blocks": 1}),
    "CATANet": ("train_CATANet_x2_scratch.yml", {}),
    "ShuffleMixer": ("ShuffleMixer/train_base_DF2K_x4.yml", {"n_feats": 16, "n_blocks": 1}),
    "X-Restormer": (
        "001_xrestormer_s_sr.yml",
        {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "spatial_dim_head": 4},
    ),
    "LDL": ("LDL/train_Synthetic_LDL.yml", {"num_feat": 8, "num_block": 1}),
    "ESC": (
        "ESC_light_X4.yaml",
        # Its own type of attention needs a GPU.
        {
            "attn_type": "Naive",
            "dim": 16,
            "pdim": 8,
            "n_blocks": 1,
            "conv_blocks": 1,
            "window_size": 16,
            "num_heads": 2,
        },
    ),
    "CRAFT-SR": (
        "CRAFT/train_CRAFT_SRx4_scratch.yml",
        {"depths": [1], "embed_dim": 12, "num_heads": [2], "img_size": 32},
    ),
}
SLOT = {"type": "PCLPerceptualLoss", "loss_weight": 1.0, "num_feat": 8}


def tiny(file: Path, network_g: dict[str, Any], pairs: Path, slot: dict[str, Any] | None, iters: int) -> dict[str, Any]:
    """The options of a codebase's own file for a short run on a CPU, with a loss in the perceptual loss's slot."""
    options: dict[str, Any] = yaml.safe_load(file.read_text())
    sets = options["datasets"]
    for extra in [name for name in sets if name.startswith("val")][1:]:
        del sets[extra]
    for dataset in sets.values():
        dataset |= {"dataroot_gt": str(pairs / "DIV2K/DIV2K_train_HR"), "io_backend": {"type": "disk"}}
        dataset["dataroot_lq"] = str(pairs / f"DIV2K/DIV2K_train_LR_bicubic/X{options['scale']}")
        dataset["filename_tmpl"] = f"{{}}x{options['scale']}"
    sets["train"] |= {"gt_size": 32 * options["scale"], "batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
    sets["train"] |= {"dataset_enlarge_ratio": 4, "prefetch_mode": None}
    options["network_g"] |= network_g
    options["path"]["pretrain_network_g"] = None
    options["train"] |= {"total_iter": iters, "warmup_iter": -1, "perceptual_opt": slot}
    options["val"]["val_freq"] = 4
    options["logger"] |= {
        "print_freq": 1,
        "save_checkpoint_freq": 4,
        "use_tb_logger": False,
        "wandb": {"project": None},
    }
    return options | {"num_gpu": 0, "name": "pcl" if slot else "l1"}


@pytest.mark.parametrize("name", OWN)
def test_a_codebase_with_basicsr_trains_its_own_option_file_by_the_road_that_is_named(
    name: str, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(name, tmp_path)
    if (folder / "basicsr").is_dir():
        (folder / "basicsr/version.py").touch()  # which a fresh clone may lack
    before = tree(folder)
    pcl_patch(folder)
    named = re.search(r"pcl-loss run (\S+) -opt", capsys.readouterr().out)
    script = named[1] if named else "basicsr/train.py"
    run = ("-m", "pcl_loss", "run", script)
    (file,) = folder.glob(f"options/train/{OWN[name][0]}")

    def train(slot: dict[str, Any] | None, *command: str, iters: int = 4, flags: tuple[str, ...] = ()) -> str:
        yml = tmp_path / "options.yml"
        yml.write_text(yaml.safe_dump(tiny(file, OWN[name][1], pairs, slot, iters)))
        return python(folder, *command, "-opt", str(yml), *flags, first=[folder])

    def trained(name: str) -> dict[str, Any]:
        return torch.load(folder / f"experiments/{name}/models/net_g_latest.pth", weights_only=True)["params"]

    logged = r"percep: [\d.]+e"
    assert not re.search(logged, train(None, *(run if named else (script,))))
    assert len(re.findall(logged, train(SLOT, *(run if named else (script,))))) == 4
    assert any(not torch.equal(value, trained("pcl")[key]) for key, value in trained("l1").items())
    output = train(SLOT, *run, iters=6, flags=("--auto_resume",))
    assert "Resuming training from epoch" in output
    assert len(re.findall(logged, output)) == 2
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
