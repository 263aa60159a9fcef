"""A network's training step of which a batch that is not finite leaves no trace, and E_D's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import at_least_float32
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


class DiscriminatorStep:
    """E_D's step on one batch (eq 7); nothing waits for a GPU.

    Build it before the forward pass, which may change buffers of `net`, call `loss`, hand the gradients to `settle`,
    and then call `apply`. With `sync` a batch that is not finite on one rank is left out on all. `log` has detached
    0-dim tensors: `l_d`, `out_d_real` and `out_d_fake`.
    """

    log: dict[str, Tensor]

    def __init__(self, net: nn.Module, sync: bool = True) -> None:
        self.sync = sync
        self._buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]

    def loss(
        self, net_d: Callable[[Tensor], Tensor], hr: Tensor, sr: Tensor, data_range: float, cri_cld: Callable[..., Any]
    ) -> Tensor:
        """`cri_cld` of the logits that `net_d` gives real and super-resolved images `(N, C, H, W)`, 0-dim."""
        images = torch.cat([at_least_float32(hr), at_least_float32(sr)]) / data_range
        # One forward over both, so that batch norm treats them alike.
        real, fake = net_d(images).chunk(2)
        l_d: Tensor = cri_cld(real, fake)
        self.log = {"l_d": l_d.detach(), "out_d_real": real.detach().mean(), "out_d_fake": fake.detach().mean()}
        return l_d

    @torch.no_grad()
    def settle(self, grads: Sequence[Tensor]) -> Tensor:
        """1 if a gradient is not finite, on any rank, else 0: 0-dim. If it is 1, the buffers are as they were; else
        they become the mean of those of the ranks.
        """
        bad = not_finite(grads)
        if self.sync:
            average([buffer for buffer, _ in self._buffers if buffer.is_floating_point()])
            average([bad])
        bad = bad.ceil()
        put_back(self._buffers, bad)
        return bad

    @staticmethod
    def apply(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
        """The optimizer's step, or nothing if `skip`, 0-dim; for that, all but a fused one wait for the device."""
        if skips_on_device(optimizer):
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # what a GradScaler hands over
            try:
                optimizer.step()
            finally:
                del optimizer.found_inf  # type: ignore[attr-defined]
        elif not skip.item():
            optimizer.step()
