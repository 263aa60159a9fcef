"""The adapter for traiNNer-redux, whose `traiNNer/losses/` imports every `*_loss.py` in it: `pcl-loss patch` adds one,
which registers `PCLLoss`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ._checks import MIN_SIZE, check_positive
from ._files import keep_with_checkpoints
from .criterion import PCLPerceptualLoss

LOGGED = ("l_cl", "pos_sim", "neg_sim", "margin", "l_d")


class PCLLoss(PCLPerceptualLoss):
    """`PCLCriterion` as traiNNer-redux builds and calls a loss: unlike `pcl_loss.PCLLoss`, it owns E_D, and its value
    is without the weight, by which the trainer multiplies. Its registry takes the name of the class: `type: pclloss`.

    E_D is saved as `models/pcl_ITER.pth` and resumed with the networks, and the log gets `LOGGED` with a prefix `pcl_`.
    `loss_weight`, alpha, must be above 0; other keywords are those of `PCLPerceptualLoss`.
    """

    def __init__(self, loss_weight: float, **keywords: Any) -> None:
        # For a negative weight, traiNNer-redux hands over upsampled LR as the target, which PCL would then aim at.
        weight = check_positive("loss_weight", loss_weight)
        super().__init__(loss_weight=1.0, **keywords)
        self.loss_weight = weight
        # Its own tests want 0 where SR is HR, and one value for an image and for that image twice.
        self.pcl.is_relative = True
        base_model = import_module("traiNNer.models.base_model").BaseModel
        _log_statistics(base_model)
        get_root_logger = import_module("traiNNer.utils").get_root_logger
        keep_with_checkpoints(base_model, _find, lambda model: model.opt.path.models, get_root_logger)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of images `(N, C, H, W)` in `[0, 1]`, less that of `target` itself, without weight, 0-dim."""
        pad = [max(0, MIN_SIZE - output.shape[-1]), max(0, MIN_SIZE - output.shape[-2])]
        output, target = (F.pad(images, (0, pad[0], 0, pad[1]), "replicate") for images in (output, target))
        # Autograd takes no tensor that inference mode has made.
        return super().forward(output, target.clone() if target.is_inference() else target)[0]


def _find(model: Any) -> dict[str, PCLLoss]:
    """The model's loss as `pcl`, if it has one."""
    return {"pcl": x for x in getattr(model, "losses", {}).values() if isinstance(x, PCLLoss)}  # noqa: B035


def _log_statistics(base_model: Any) -> None:
    """Let the models log the statistics of their loss: a dict that it returned would be added up as losses."""
    if getattr(base_model, "keeps_pcl", False):
        return
    get_current_log = base_model.get_current_log

    def log(self: Any) -> dict[str, Any]:
        statistics = [(name, loss.log[name]) for loss in _find(self).values() for name in LOGGED if name in loss.log]
        return get_current_log(self) | {f"pcl_{name}": value for name, value in statistics}

    base_model.get_current_log = log
