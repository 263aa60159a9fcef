"""The gradient of a step's losses at the SR output, and what balances the contrastive one with the pixel loss's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor, nn

from .._distributed import average

# E_D moves L_CL's gradient by several per cent a step in its first iterations: a slower mean would lag behind it.
MOMENTUM = 0.4


def gradient_at(sr: Tensor, losses: Iterable[Tensor], scaler: torch.amp.GradScaler) -> Tensor:
    """The gradient of the sum of 0-dim losses, which may share a graph, at the SR images `(N, C, H, W)` that they were
    computed from. It passes the losses' networks at the scaler's scale, within fp16's range, and comes without it.
    """
    loss = reduce(torch.add, losses)
    (grad,) = torch.autograd.grad(scaler.scale(loss), sr)
    return grad / scaler.scale(loss.new_ones(()))


class GradientBalance(nn.Module):
    """Weighs L_CL so that its gradient at the SR output has `ratio` times the norm of the pixel loss's.

    `weight = ratio * exp(mean of log(|dL_pix/dSR| / |dL_CL/dSR|))`, an exponential mean over the steps of momentum
    `max(0.4, 1 / number of updates)`: the first update counts alone. Under torch.distributed the mean goes over the
    ranks too, of which each must make the same calls.
    """

    log_ratio: Tensor
    num_updates: Tensor

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("log_ratio", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, pix_norm: Tensor, cl_norm: Tensor) -> Tensor:
        """Take up the norms of a step, 0-dim, and return the weight of its L_CL, 0-dim; nothing waits for a GPU. A step
        whose ratio is 0 or not finite leaves the mean alone.
        """
        log_ratio = (pix_norm.float() / cl_norm.float()).log()
        average([log_ratio])
        is_finite = log_ratio.isfinite()
        self.num_updates += is_finite
        momentum = self.num_updates.clamp_min(1).float().reciprocal().clamp_min(MOMENTUM)
        self.log_ratio.copy_(torch.where(is_finite, self.log_ratio.lerp(log_ratio, momentum), self.log_ratio))
        return self.ratio * self.log_ratio.exp()
