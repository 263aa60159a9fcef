"""Keeps the E_D of a `PCLPerceptualLoss` with BasicSR's checkpoints, in models that know nothing of it."""

from __future__ import annotations

from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from .. import _durable
from ..criterion import PCLPerceptualLoss
from . import durable


def keep_with_checkpoints() -> None:
    """Let every BasicSR model save its `PCLPerceptualLoss` as `models/pcl_ITER.pth`, next to its networks, and take it
    up when it resumes. Models without one are left as they are; calling it twice is harmless.
    """
    _durable.keep_with_checkpoints(
        BaseModel, _criterion, lambda model: model.opt["path"]["models"], get_root_logger, durable.save
    )


def _criterion(model: Any) -> PCLPerceptualLoss | None:
    criterion = getattr(model, "cri_perceptual", None)
    return criterion if isinstance(criterion, PCLPerceptualLoss) else None
