"""Copies of real codebases to train and to patch: what the tests that want `PCL_UPSTREAM=DIR` share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import pcl_loss
from pcl_loss import cli

UPSTREAM = os.environ.get("PCL_UPSTREAM")
PACKAGE = Path(pcl_loss.__file__).parent.parent
MARKS = [
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


def python(cwd: Path, *arguments: str, first: Sequence[Path | str] = ()) -> str:
    """What a Python says that finds this package, and what the caller's finds; modules in `first` before both."""
    path = os.pathsep.join([*map(str, first), str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | ours,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images and their quarters, laid out as each of the codebases wants them."""
    import cv2
    import numpy as np
    from skimage import data

    folder = tmp_path_factory.mktemp("pairs")
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
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / file), image)
    return folder
