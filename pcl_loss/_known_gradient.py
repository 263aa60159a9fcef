"""Equations 8 to 10 against samples that receive no gradient: what `PCLLoss` computes with.

The value is `functional.contrastive_loss`'s. Its gradient with respect to the anchor is formed on the way, as long as
the samples' maps are at hand, so that they need not be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._tensors import at_least_float32
from .functional import NORM_EPS, info_nce_terms, unit_norm_scale


def frozen_contrastive_loss(
    anchor: Sequence[Tensor], samples: Iterable[Sequence[Tensor]], num_positives: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """`L_il` of equation 8 for every image and layer; only the anchor can receive a gradient.

    The gradient with respect to an anchor map `f` is closed: with `g_k = dL_il / ds_k` and normalised maps `^`,
    `dL_il / d^f = sum_k g_k ^x_k / (H W)`, of which the part orthogonal to `^f`, divided by the norm of `f`, reaches
    `f` at every pixel.

    Args:
        anchor: L maps `(N, C_l, H_l, W_l)`, any floating dtype; the arithmetic is in float32 or wider.
        samples: in pieces, the positives first; of every piece L maps `(k, N, C_l, H_l, W_l)`, K in all. A piece that
            is made when it is asked for is compared while it is in the cache.
        num_positives: K_P.
        temperature: tau, above 0.

    Returns:
        The losses `(N, L)`, and the similarities `(N, L, K)` without a gradient.

    Raises:
        RuntimeError: in the backward pass, if a gradient of the gradient is asked for.
    """
    return _FrozenContrastiveLoss.apply(samples, num_positives, temperature, *anchor)


class _FrozenContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, samples: Iterable[Sequence[Tensor]], num_positives: int, temperature: float, *anchor: Tensor
    ) -> tuple[Tensor, Tensor]:
        scales = [unit_norm_scale(at_least_float32(f)) for f in anchor]
        layers = [_Layer(f * scale) for f, scale in zip(anchor, scales, strict=True)]
        for piece in samples:
            for layer, maps in zip(layers, piece, strict=True):
                layer.compare(maps)
        sims = torch.stack([torch.cat(layer.sims) for layer in layers]).permute(2, 0, 1)
        losses, *grads = info_nce_terms(sims[..., :num_positives], sims[..., num_positives:], temperature)
        if any(ctx.needs_input_grad):
            weights = torch.cat(grads, -1).permute(1, 2, 0)
            directions = [layer.weighted_sum(w) for layer, w in zip(layers, weights, strict=True)]
            ctx.save_for_backward(*anchor, *scales, *directions)
        ctx.mark_non_differentiable(sims)
        return losses, sims

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the contrastive loss has no second derivative: its gradient is formed without a graph; leave "
                "create_graph=True away, or use functional.contrastive_loss on the embedding's maps"
            )
        saved = ctx.saved_tensors
        num_layers = len(saved) // 3
        anchor, scales, directions = saved[:num_layers], saved[num_layers : 2 * num_layers], saved[2 * num_layers :]
        grads = []
        for layer, (f, scale, direction) in enumerate(zip(anchor, scales, directions, strict=True)):
            # Below the smallest norm a map is divided by a constant: nothing is projected out.
            inverse_square = torch.where(scale < 1 / NORM_EPS, scale.square(), 0.0)
            along = (direction * f).sum(1, keepdim=True) * inverse_square
            grad = torch.addcmul(direction, f.to(direction.dtype), along, value=-1)
            grads.append(grad.mul_(scale * grad_losses[:, layer, None, None, None]).to(f.dtype))
        return None, None, None, *grads


class _Layer:
    """The normalised anchor of a layer `(N, C, H, W)`, and what it is compared with."""

    def __init__(self, anchor: Tensor) -> None:
        self.anchor = anchor
        self.samples: list[Tensor] = []  # (N, C, H, W)
        self.scales: list[Tensor] = []  # of a piece, (k, N, 1, H, W)
        self.sims: list[Tensor] = []  # of a piece, (k, N)

    def compare(self, maps: Tensor) -> None:
        """Take up samples `(k, N, C, H, W)`."""
        scale = unit_norm_scale(at_least_float32(maps))
        # One by one: the product with the anchor is as large as the sample.
        products = torch.stack([(sample * self.anchor).sum(1, keepdim=True) for sample in maps])
        self.sims.append((products * scale).mean((2, 3, 4)))
        self.samples.extend(maps)
        self.scales.append(scale)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """`sum_k weights[k] ^x_k / (H W)` over the samples, normalised; weights `(K, N)`."""
        pixels = self.anchor.shape[-2] * self.anchor.shape[-1]
        factors = torch.cat(self.scales) * (weights / pixels)[..., None, None, None]
        total = torch.zeros_like(self.anchor)
        for sample, factor in zip(self.samples, factors, strict=True):
            total.addcmul_(sample.to(total.dtype), factor)
        return total
