"""BasicSR's perceptual loss with PCL beside it, for models that have one slot for both."""

from __future__ import annotations

from typing import Any

import torch
from basicsr.losses import build_loss
from torch import Tensor, nn

from .._checks import check_positive
from .speed import GradientBalance


class PerceptualLossWithPCL(nn.Module):
    """BasicSR's `PerceptualLoss`, whose keywords it takes, plus a `PCLPerceptualLoss`, of which `pcl` is the block.

    The gradient of VGG's loss is often a thousand times that of L1, for which `loss_weight` is meant: in its place, PCL
    is weighed so that its gradient at the SR images has `grad_ratio` times the norm of the other's.
    """

    def __init__(self, pcl: dict[str, Any], grad_ratio: float = 0.3, **keywords: Any) -> None:
        super().__init__()
        self.perceptual = build_loss({"type": "PerceptualLoss", **keywords})
        self.pcl = build_loss(pcl)
        self.balance = GradientBalance(check_positive("grad_ratio", grad_ratio))

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:
        """The sum of all losses of `x`, style too, 0-dim, and None; images `(N, C, H, W)` in [0, 1]."""
        sr = x.detach().requires_grad_(x.requires_grad and torch.is_grad_enabled())
        perceptual = torch.stack([loss for loss in self.perceptual(sr, gt) if loss is not None]).sum()
        pcl, _ = self.pcl(sr, gt)
        if not sr.requires_grad:  # for a log: there is nothing to weigh by
            return perceptual + pcl, None
        grads = [torch.autograd.grad(loss, sr)[0] for loss in (perceptual, pcl)]
        weight = self.balance(*(grad.norm() for grad in grads))
        # A value with the gradient that is known already: VGG is passed backwards once.
        surrogate = (x * (grads[0] + weight * grads[1])).sum()
        return (perceptual + weight * pcl).detach() + surrogate - surrogate.detach(), None
