"""The gradient of a step's losses at the SR output, and what is logged of the contrastive one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from .._distributed import average

# E_D moves L_CL's gradient by several per cent a step in its first iterations: a slower mean would lag behind it.
MOMENTUM = 0.4

STATS = ("l_cl", "pos_sim", "neg_sim", "margin")


def gradient_at(sr: Tensor, losses: Iterable[Tensor], scaler: torch.amp.GradScaler) -> Tensor:
    """The gradient of the sum of 0-dim losses, which may share a graph, at the SR images `(N, C, H, W)` that they were
    computed from. It passes the losses' networks at the scaler's scale, within fp16's range, and comes without it.
    """
    loss = reduce(torch.add, losses)
    (grad,) = torch.autograd.grad(scaler.scale(loss), sr)
    return grad / scaler.scale(loss.new_ones(()))


class ContrastiveTerm:
    """Weighs the gradient of the contrastive loss, and keeps what is logged of it.

    Args:
        balance: what sets the weight, in place of the loss's own `loss_weight`; None: the gradient stays as it is.
        device: of the log.
    """

    def __init__(self, balance: GradientBalance | None, device: torch.device) -> None:
        self.balance = balance
        names = ("l_pcl", *STATS, "grad_ratio") + (() if balance is None else ("pcl_weight",))
        self.log = {name: torch.zeros((), device=device) for name in names}
        """0-dim tensors of the last step that had the term, always under the same names."""
        self.grad_norm = torch.zeros((), device=device)
        """Of its gradient at the SR output, as the loss gave it, 0-dim."""

    def measure(self, stats: Mapping[str, Tensor]) -> None:
        """Take up the statistics of a step: `PCLLoss.stats`."""
        self.log |= {name: stats[name] for name in STATS}

    def weigh(self, loss: Tensor, grad: Tensor, grad_pix: Tensor) -> Tensor:
        """The gradient at the SR output as it is added to the others: of the contrastive loss of a step, 0-dim, beside
        that of the pixel loss, or of what stands in its place.
        """
        loss, norm, norm_pix = loss.detach(), grad.norm(), grad_pix.norm()
        self.grad_norm = norm
        if self.balance is not None:
            weight = self.balance(norm_pix, norm)
            loss, grad, norm = weight * loss, weight * grad, weight * norm
            self.log["pcl_weight"] = weight
        self.log |= {"l_pcl": loss, "grad_ratio": norm / norm_pix}
        return grad


class GradientBalance(nn.Module):
    """Weighs L_CL so that its gradient at the SR output has `ratio` times the norm of the pixel loss's.

    `weight = ratio * exp(mean of log(|dL_pix/dSR| / |dL_CL/dSR|))`, an exponential mean over the steps of momentum
    `max(0.4, 1 / number of updates)`: the first update counts alone. Under torch.distributed the mean goes over the
    ranks too, of which each must make the same calls.

    Args:
        ratio: above 0.
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
