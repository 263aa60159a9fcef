from __future__ import annotations

import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import setuptools

import pcl_loss

PUBLIC = {
    "ContrastiveDiscriminatorLoss",
    "Embedding",
    "FixedEmbedding",
    "PCLCriterion",
    "PCLLoss",
    "PCLPerceptualLoss",
    "VGGEmbedding",
    "WaveletDiscriminator",
    "functional",
    "haar_dwt",
}


def test_no_public_name_has_disappeared() -> None:
    assert set(pcl_loss.__all__) >= PUBLIC
    assert all(hasattr(pcl_loss, name) for name in PUBLIC)


def test_every_data_file_of_the_package_is_installed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(Path(__file__).parents[1])
    runpy.run_path("setup.py", run_name="__main__")
    installed = {
        path
        for package, patterns in given["package_data"].items()
        for pattern in patterns
        for path in Path(*package.split(".")).glob(pattern)
    }
    data = {path for path in Path("pcl_loss").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data
    assert data <= installed


def test_import_needs_torch_alone_and_the_loss_no_library_of_an_extra() -> None:
    # What torch itself loads on this machine does not count.
    code = """
        import sys
        import torch
        before = set(sys.modules)
        import pcl_loss
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
        sys.modules |= dict.fromkeys(("basicsr", "cv2", "matplotlib", "lpips", "torchvision", "skimage"))
        sr, hr, lq = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
        pcl_loss.PCLCriterion(num_feat=2, negatives=("blur", "lq", "batch"))(sr, hr, lq).backward()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    heavy = {"basicsr", "cv2", "kornia", "lpips", "matplotlib", "numpy", "scipy", "skimage", "torchvision"}
    assert "pcl_loss" in out.split()
    assert not heavy & set(out.split())
