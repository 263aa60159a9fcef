"""Two sets of crops of free photographs, two experiments of a tiny net, and the verb `report`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import yaml

from pcl_loss import basicsr_plugin  # noqa: F401
from pcl_loss.tools import _panels, report
from pcl_loss.tools.report import measure

# isort: split
from basicsr.archs import build_network

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Writes what BasicSR leaves of a training; returns the checkpoint."""

    def write(name: str, seed: int, network: dict[str, Any] | None = None, **more: Any) -> Path:
        path = tmp_path / name / "models" / "net_g_latest.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        block = network or NETWORK
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build_network(dict(block))
        torch.save({"params": net.state_dict()} | more, path)
        options = {"name": name, "scale": 4, "network_g": block, "network_d": {"type": "NoSuchNet"}}
        (tmp_path / name / f"{name}.yml").write_text(yaml.safe_dump(options))
        return path

    return write


@pytest.fixture
def place(tmp_path: Path, experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sets Set5/HR and Set14/HR and the experiments `a` and `b`, without LPIPS's weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.chdir(tmp_path)
    images = {
        "Set5/HR/cat": ("chelsea", 107, 203),
        "Set5/HR/cup": ("coffee", 48, 48),
        "Set14/HR/face": ("astronaut", 60, 64),
    }
    for name, (photo, height, width) in images.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = getattr(skimage.data, photo)()[60 : 60 + height, 120 : 120 + width, ::-1]
        cv2.imwrite(str(path), np.ascontiguousarray(part))
    experiment("a", 1)
    experiment("b", 2)
    return tmp_path


@pytest.fixture
def call() -> Callable[..., int]:
    """The verb with these flags."""

    def run(*flags: str) -> int:
        parser = argparse.ArgumentParser()
        report.add_arguments(parser)
        return report.run(parser.parse_args([*flags, "--device=cpu"]))

    return run


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the LR images that any net is run on, but for the black one that it is tried on."""
    shapes = []
    upscale = measure.upscale

    def counted(module: Any, lr: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        if lr.any():
            shapes.append(lr.shape)
        return upscale(module, lr, *args, **kwargs)

    monkeypatch.setattr(measure, "upscale", counted)
    return shapes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of panels that are drawn."""
    seen = []
    draw = _panels.draw

    def record(rows: Any) -> Any:
        seen.extend(rows)
        return draw(rows)

    monkeypatch.setattr(_panels, "draw", record)
    return seen
