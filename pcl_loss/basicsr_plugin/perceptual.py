"""Keeps the E_D of a `PCLPerceptualLoss` with BasicSR's checkpoints, in models that know nothing of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info

from .._durable import load
from ..criterion import PCLPerceptualLoss
from . import durable


def keep_with_checkpoints() -> None:
    """Let every BasicSR model save its `PCLPerceptualLoss` as `models/pcl_ITER.pth`, next to its networks, and take it
    up when it resumes. Models without one are left as they are; calling it twice is harmless.
    """
    if getattr(BaseModel, "keeps_pcl", False):
        return
    BaseModel.keeps_pcl = True
    save_training_state, resume_training = BaseModel.save_training_state, BaseModel.resume_training

    @functools.wraps(save_training_state)
    def save(self: Any, epoch: int, current_iter: int) -> None:
        # Before the state: a run that is killed in between resumes from the state before.
        criterion = _criterion(self)
        if criterion is not None and get_dist_info()[0] == 0:
            durable.save(criterion.state_dict(), _path(self, "latest" if current_iter == -1 else current_iter))
        save_training_state(self, epoch, current_iter)

    @functools.wraps(resume_training)
    def resume(self: Any, resume_state: dict[str, Any]) -> None:
        resume_training(self, resume_state)
        criterion = _criterion(self)
        if criterion is None:
            return
        path = _path(self, resume_state["iter"])
        if path.is_file():
            criterion.load_state_dict(load(path))
            get_root_logger().info(f"Loading PCLPerceptualLoss from {path}.")
        else:
            get_root_logger().warning(f"There is no {path}: the discriminator of PCLPerceptualLoss starts anew.")

    BaseModel.save_training_state, BaseModel.resume_training = save, resume


def _criterion(model: Any) -> PCLPerceptualLoss | None:
    criterion = getattr(model, "cri_perceptual", None)
    return criterion if isinstance(criterion, PCLPerceptualLoss) else None


def _path(model: Any, iteration: int | str) -> Path:
    return Path(model.opt["path"]["models"], f"pcl_{iteration}.pth")
