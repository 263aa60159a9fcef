"""The patches and `pcl-loss patch` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts of the codebases named here; those of EDSR-PyTorch, RCAN, HAN and BasicSR at the commits named in
`patches/`. They are copied, never changed; nothing of theirs is in this repository. What is not there is skipped.
CATANet, CRAFT-SR and ESC need timm, einops and what else they import.
"""

import os
import re
import subprocess
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


# Its folder of code, its command, what its --epochs are above the number of epochs, and its flags for two cores.
DIV2K = "--data_train DIV2K --data_test DIV2K"
FAMILY = {
    "EDSR-PyTorch": ("src", "main.py", 1, f"--model EDSR --n_resblocks 2 {DIV2K} --data_range 1-3/4-4 --ext sep"),
    "HAN": (
        "src",
        "main.py",
        1,
        "--model HAN --n_resgroups 10 --n_resblocks 1 --reduction 4 "
        "--data_train DIV2K --data_test Set5 --data_range 1-3/4-4 --ext img",
    ),
    "RCAN": (
        "RCAN_TrainCode/code",
        "-m pcl_loss run main.py",
        0,
        f"--model RCAN --n_resgroups 2 --n_resblocks 1 --reduction 4 {DIV2K} "
        "--n_train 3 --n_val 1 --offset_val 3 --ext sep_reset",
    ),
}


def git_apply(folder: Path, *flags: str) -> None:
    command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", *flags, str(PATCHES / f"{folder.name}.patch")]
    # In a copy without .git, git would look for one further up, and skip files that are not its own.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(command, cwd=folder, env=env, check=True)


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


@pytest.mark.parametrize("name", ["A2N", "SAN", "NLSN"])
def test_a_fork_gets_the_lines_of_its_family_and_reverts(name: str, tmp_path: Path) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    pcl_patch(folder, "--lr-negative")
    after = tree(folder)
    ours = [line for text in after.values() for line in text.splitlines() if line.endswith(b"  # pcl_loss")]
    assert len(ours) == 6
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize("name", FAMILY)
def test_with_the_patch_it_trains_saves_resumes_and_reverts(name: str, tmp_path: Path, pairs: Path) -> None:
    code, main, extra_epochs, own = FAMILY[name]
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    pcl_patch(folder, "--lr-negative")
    (folder / code / "pcl.yml").write_text("num_feat: 8\nnegatives: [lq]\n")

    def train(epochs: int, *where: str) -> str:
        flags = (
            "--cpu --n_GPUs 1 --n_threads 0 --scale 4 --n_feats 8 --patch_size 96 --batch_size 2 --test_every 2 "
            f"--print_every 1 --rgb_range 255 --dir_data {pairs} {own} --epochs {epochs + extra_epochs}"
        )
        return python(folder / code, *main.split(), *flags.split(), "--loss", "1*L1+1*PCL", *where)

    def discriminator_steps() -> set[int]:
        (path,) = (folder / code / "../experiment").resolve().glob("run/**/loss.pt")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {int(value) for key, value in saved.items() if key.endswith("num_batches_tracked")}

    output = train(2, "--save", "run")
    assert output.count("[pcl_loss] contrastive loss") == 1
    steps = len(column(output, "L1"))
    for values in (column(output, "PCL"), column(output, "DIS")):
        assert len(values) == steps >= 4
        assert all(0 < value < 100 for value in values)
    assert discriminator_steps() == {steps}
    output = train(3, "--load", "run", "--resume", "-1")
    assert "[Epoch 3]" in output
    assert "[Epoch 2]" not in output
    assert discriminator_steps() == {steps * 3 // 2}
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


# The option file of a codebase with a `basicsr/`, and what makes its network tiny.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
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


def tiny(file: Path, network_g: dict[str, Any], pairs: Path, iters: int) -> dict[str, Any]:
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
    options["train"] |= {"total_iter": iters, "warmup_iter": -1, "perceptual_opt": SLOT}
    options["val"]["val_freq"] = 4
    options["logger"] |= {
        "print_freq": 1,
        "save_checkpoint_freq": 4,
        "use_tb_logger": False,
        "wandb": {"project": None},
    }
    return options | {"num_gpu": 0, "name": "pcl"}


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
    yml = tmp_path / "options.yml"

    def train(iters: int, *command: str) -> str:
        yml.write_text(yaml.safe_dump(tiny(file, OWN[name][1], pairs, iters)))
        return python(folder, *command, first=[folder])

    logged = r"percep: [\d.]+e"
    assert len(re.findall(logged, train(4, *(run if named else (script,)), "-opt", str(yml)))) == 4
    output = train(6, *run, "-opt", str(yml), "--auto_resume")
    assert "Resuming training from epoch" in output
    assert len(re.findall(logged, output)) == 2
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("HAT", 0, "pcl-loss run hat/train.py"),
        ("LDL", 0, "pcl-loss run realesrgan/train.py"),
        ("Restormer", 1, "no codebase that can be patched"),
        ("KAIR", 1, "no codebase that can be patched"),
        ("DRN", 1, "no codebase that can be patched"),
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
