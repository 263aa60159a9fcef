"""A network's step of which a batch that is not finite leaves no trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ._distributed import average


@torch.no_grad()
def not_finite(tensors: Sequence[Tensor]) -> Tensor:
    """1 if an element of one of the tensors, which are on one device, is not finite, else 0: 0-dim, float32."""
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))])
    return (~norms.isfinite().all()).float()


@torch.no_grad()
def put_back(kept: Iterable[tuple[Tensor, Tensor]], skip: Tensor) -> None:
    """Give tensors the values that they are kept with if `skip`, 0-dim, is 1."""
    for tensor, before in kept:
        tensor.copy_(torch.where(skip > 0, before, tensor))


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer looks at `found_inf` on its device, as a fused one does."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


class GuardedStep:
    """The step of a network on one batch. Nothing waits for a GPU.

    A loop builds it before the forward pass, hands the gradients to `settle`, and then calls `apply`.

    Args:
        net: whose buffers (batch norm's statistics) the forward pass may change.
        sync: a batch that is not finite on one rank of torch.distributed is left out on all.
    """

    def __init__(self, net: nn.Module, sync: bool = True) -> None:
        self.sync = sync
        self._buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]

    @torch.no_grad()
    def settle(self, grads: Sequence[Tensor]) -> Tensor:
        """1 if a gradient is not finite, on any rank, else 0: 0-dim. If it is 1, the buffers are as they were."""
        bad = not_finite(grads)
        if self.sync:
            average([bad])
        bad = bad.ceil()
        put_back(self._buffers, bad)
        return bad

    @staticmethod
    def apply(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
        """The optimizer's step, which moves neither weights nor moments nor its counter if `skip`, 0-dim.

        A fused optimizer looks at `skip` on the device; any other waits for the device to say what it is.
        """
        if not skips_on_device(optimizer):
            if not skip.item():
                optimizer.step()
            return
        # What a GradScaler hands over.
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
