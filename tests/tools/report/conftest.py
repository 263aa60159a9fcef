"""Sets of crops of free photographs, tiny nets, and witnesses of what is run and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from report_helpers import (
    part,
    write_experiment,
)

from pcl_loss.tools import _panels
from pcl_loss.tools.report import measure as report_measure


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sets Set5/HR and Set14/HR and the experiments `a` and `b`, without LPIPS's weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_weights"))
    monkeypatch.chdir(tmp_path)
    images = {
        "Set5/HR/cat": ("chelsea", 107, 203),
        "Set5/HR/cup": ("coffee", 48, 48),
        "Set14/HR/face": ("astronaut", 60, 64),
    }
    for name, (photo, *size) in images.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), part(photo, *size))
    write_experiment(tmp_path / "a", 1)
    write_experiment(tmp_path / "b", 2)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the LR images that any net is run on."""
    shapes = []
    upscale = report_measure.upscale

    def counted(module: Any, lr: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        shapes.append(lr.shape)
        return upscale(module, lr, *args, **kwargs)

    monkeypatch.setattr(report_measure, "upscale", counted)
    return shapes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of panels that are drawn."""
    seen = []
    draw = _panels.draw

    def record(rows: Any) -> tuple[Figure, Any]:
        seen.extend(rows)
        return draw(rows)

    monkeypatch.setattr(_panels, "draw", record)
    return seen
