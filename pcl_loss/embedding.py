"""What `PCLLoss` asks of an embedding network."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Embedding(Protocol):
    """Any object that turns images into feature maps."""

    def embed(self, x: Tensor, num_layers: int) -> list[Tensor]:
        """The first `num_layers` maps `(N, C_l, H_l, W_l)` of images `(N, C, H, W)` in [0, 1], shallowest first.

        Only `x` may receive a gradient, and a later training step of the network must not invalidate a pending
        backward.
        """
        ...
