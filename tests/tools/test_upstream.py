"""The patches, `pcl-loss patch` and `pcl-loss run` on the real codebases: `PCL_UPSTREAM=DIR make test-all`.

DIR holds checkouts of the codebases named here; those of EDSR-PyTorch, RCAN, HAN and BasicSR at the commits named in
`patches/`. They are copied, never changed; nothing of theirs is in this repository. What is not there is skipped.
CATANet, CRAFT-SR, ESC and HAT need timm, einops and what else they import.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pcl_loss import cli
from pcl_loss.tools import patch

ROOT = Path(__file__).parents[2]
UPSTREAM = os.environ.get("PCL_UPSTREAM")
RUN = ("-m", "pcl_loss", "run")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UPSTREAM, reason="set PCL_UPSTREAM=DIR, a folder with checkouts of the codebases"),
]


def copy_of(name: str, to: Path) -> Path:
    source = Path(UPSTREAM or "") / name
    if not source.is_dir():
        pytest.skip(f"there is no {source}")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "experiment*", "*.pt", "*.pth")
    return Path(shutil.copytree(source, to / name, ignore=ignored))


def tree(folder: Path) -> dict[str, bytes]:
    """The files as they are, but for what a training leaves behind and the knobs that a test writes."""
    left = {"experiment", "experiments", "results", "__pycache__", "pcl.yml"}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not left & set(path.relative_to(folder).parts)
    }


def pcl_patch(folder: Path, *flags: str) -> None:
    assert cli.main(["patch", str(folder), *flags]) == 0


def python(cwd: Path, *arguments: str, first: Sequence[Path] = ()) -> str:
    """What a Python says that finds this package, and what the caller's finds; modules in `first` before both."""
    path = os.pathsep.join([*map(str, first), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, text=True, stdout=-1, stderr=-2, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four images and their quarters, laid out as each of the codebases wants them."""
    import cv2
    import numpy as np
    from skimage import data

    for number, name in enumerate(("astronaut", "coffee", "chelsea", "rocket"), 1):
        hr = np.ascontiguousarray(getattr(data, name)()[20:148, 100:228, ::-1])
        half, lr = (cv2.resize(hr, (size, size), interpolation=cv2.INTER_AREA) for size in (64, 32))
        files = {
            f"DIV2K/DIV2K_train_HR/{number:04}.png": hr,
            f"DIV2K/DIV2K_train_LR_bicubic/X2/{number:04}x2.png": half,
            f"DIV2K/DIV2K_train_LR_bicubic/X4/{number:04}x4.png": lr,
            f"TrainHR/{number:04}_HR.png": hr,
            f"TrainLR/X4/{number:04}_LR.png": lr,
            "Set5/HR/0001_HR.png": hr,
            "Set5/LR/X4/0001_LR.png": lr,
        }
        for file, image in files.items():
            (tmp_path / "pairs" / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "pairs" / file), image)
    return tmp_path / "pairs"


# Its folder of code, its command, what its --epochs are above the number of epochs, and its flags for two cores.
DIV2K = "--data_train DIV2K --data_test DIV2K"
# Codebases of PyTorch 0.4, whose schedule must go on where it was.
OLD = f"{DIV2K} --n_threads 2 --lr 1e-3 --decay_type step --lr_decay 2 --gamma 0.5"
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
        "--model RCAN --n_resgroups 2 --n_resblocks 1 --reduction 4 "
        f"--n_train 3 --n_val 1 --offset_val 3 --ext sep_reset {OLD}",
    ),
    "MSRN": ("MSRN/Train", "-m pcl_loss run main.py", 0, f"--model MSRN --data_range 1-3/4-4 --ext img {OLD}"),
}


def column(output: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"\[{name}: (-?[\d.]+|nan)\]", output)]


@pytest.mark.parametrize("name", ["EDSR-PyTorch", "HAN", "RCAN", "BasicSR"])
def test_the_patch_is_what_the_command_writes_and_both_revert(name: str, tmp_path: Path) -> None:
    folder, file = copy_of(name, tmp_path), ROOT / f"patches/{name}.patch"
    # In a copy without .git, git would look for one further up, and skip files that are not its own.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    git_apply = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", str(file)]
    before = tree(folder)
    assert file.read_bytes().endswith(b"\n\n" + patch.diff(patch.plan(folder)))
    subprocess.run(git_apply, cwd=folder, env=env, check=True)
    patched = tree(folder)
    assert patched != before
    subprocess.run([*git_apply, "-R"], cwd=folder, env=env, check=True)
    assert tree(folder) == before
    for _ in range(2):
        pcl_patch(folder)
        assert tree(folder) == patched
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
        (path,) = folder.glob("**/experiment/run/**/loss.pt")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {int(value) for key, value in saved.items() if key.endswith(("num_batches_tracked", ".step"))}

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
    assert (OLD in own) == ("Learning rate: 5.00e-4" in output)
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


# The option file of a codebase that trains by BasicSR's pipeline, and what makes its network tiny.
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
        {"attn_type": "Naive", "dim": 16, "pdim": 8, "n_blocks": 1, "conv_blocks": 1, "num_heads": 2},
    ),
    "CRAFT-SR": (
        "CRAFT/train_CRAFT_SRx4_scratch.yml",
        {"depths": [1], "embed_dim": 12, "num_heads": [2], "img_size": 32},
    ),
    "HAT": (
        "train_HAT_SRx4_finetune_from_ImageNet_pretrain.yml",
        {"depths": [1], "embed_dim": 12, "num_heads": [2], "img_size": 32, "window_size": 8, "squeeze_factor": 4},
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
        # CRAFT-SR adds the scale itself.
        dataset["filename_tmpl"] = "{}" if "CRAFT" in file.parts else f"{{}}x{options['scale']}"
        dataset.pop("meta_info_file", None)
    sets["train"] |= {"gt_size": 32 * options["scale"], "batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
    sets["train"] |= {"dataset_enlarge_ratio": 4, "prefetch_mode": None}
    options["network_g"] |= network_g
    options["path"]["pretrain_network_g"] = None
    options["train"] |= {"total_iter": iters, "warmup_iter": -1, "perceptual_opt": SLOT}
    options["val"]["val_freq"] = 4
    options["logger"] = {"print_freq": 1, "save_checkpoint_freq": 4, "use_tb_logger": False}
    return options | {"num_gpu": 0, "name": "pcl"}


@pytest.mark.parametrize("name", OWN)
def test_a_codebase_of_basicsr_trains_its_own_option_file_by_the_road_that_is_named(
    name: str, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(name, tmp_path)
    has_basicsr = (folder / "basicsr").is_dir()
    if has_basicsr:
        (folder / "basicsr/version.py").touch()  # which a fresh clone may lack
    before = tree(folder)
    pcl_patch(folder)
    named = re.search(r"pcl-loss run (\S+) -opt", capsys.readouterr().out)
    script = named[1] if named else "basicsr/train.py"
    (file,) = folder.glob(f"options/train/{OWN[name][0]}")
    yml = tmp_path / "options.yml"

    def train(iters: int, *command: str) -> str:
        yml.write_text(yaml.safe_dump(tiny(file, OWN[name][1], pairs, iters)))
        return python(folder, *command, "-opt", str(yml), first=[folder])

    logged = r"percep: [\d.]+e"
    assert len(re.findall(logged, train(4, *(RUN if named else ()), script))) == 4
    output = train(6, *RUN, script, "--auto_resume")
    (where,) = re.findall(r"\[pcl_loss\] PCL is registered in ([^;\n]*)", output)
    assert (Path(where) == folder / "basicsr") == has_basicsr
    assert "Resuming training from epoch" in output
    assert "Loading PCLPerceptualLoss from" in output
    assert len(re.findall(logged, output)) == 2
    pcl_patch(folder, "--revert")
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Restormer", "no codebase that can be patched"),
        ("DRN", "no codebase that can be patched"),
        ("PAMSR", "a list of SR images"),
    ],
)
def test_a_codebase_that_cannot_be_patched_is_left_alone(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(name, tmp_path)
    before = tree(folder)
    assert cli.main(["patch", str(folder)]) == 1
    assert says in capsys.readouterr().err
    assert tree(folder) == before
