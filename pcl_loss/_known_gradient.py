"""Equations 8 to 10 against samples that receive no gradient: what `PCLLoss` computes with.

The value is `functional.contrastive_loss`'s. The gradient of every map of the anchor is finished while the samples'
maps exist, so that nothing of them waits for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._tensors import at_least_float32
from .functional import NORM_EPS, info_nce_terms, unit_norm_scale


def known_contrastive_loss(
    anchor: Sequence[Tensor], samples: Sequence[Sequence[Tensor]], num_positives: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """`L_il` of equation 8 for every image and layer; only the anchor can receive a gradient.

    Args:
        anchor: L maps `(N, C_l, H_l, W_l)`, any floating dtype; the arithmetic is in float32 or wider.
        samples: of every layer, tensors `(k, N, C_l, H_l, W_l)` with K samples in all, the positives first.
        num_positives: K_P.
        temperature: tau, above 0.

    Returns:
        The losses `(N, L)`, and the similarities `(N, L, K)` without a gradient.

    Raises:
        RuntimeError: in a backward pass with `create_graph=True`.
    """
    needs_gradient = torch.is_grad_enabled() and any(f.requires_grad for f in anchor)
    with torch.no_grad(), torch.autocast(anchor[0].device.type, enabled=False):
        layers = [
            _layer(f, chunks, num_positives, temperature, needs_gradient)
            for f, chunks in zip(anchor, samples, strict=True)
        ]
        all_losses, all_sims, gradients = zip(*layers, strict=True)
        losses, sims = torch.stack(all_losses, 1), torch.stack(all_sims, 1)
    if needs_gradient:
        losses = _KnownGradient.apply(losses, gradients, *anchor)
    return losses, sims


class _KnownGradient(torch.autograd.Function):
    """Gives values `(N, L)` the gradients `(N, C_l, H_l, W_l)` of column l with respect to input l."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [x.dtype for x in inputs]
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Silently, a gradient of this gradient would be 0.
            raise RuntimeError(
                "the contrastive loss has no second derivative: its gradient is formed without a graph; leave "
                "create_graph=True away, or use functional.contrastive_loss on the embedding's maps"
            )
        columns = zip(ctx.saved_tensors, grad_values.unbind(1), ctx.dtypes, strict=True)
        return None, None, *((grad * weight[:, None, None, None]).to(dtype) for grad, weight, dtype in columns)


def _layer(
    anchor: Tensor, samples: Sequence[Tensor], num_positives: int, temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer's losses `(N,)`, similarities `(N, K)`, and gradients `(N, C, H, W)` with respect to the anchor.

    With `g_k = dL_i / ds_k` and normalised maps `^`, `dL_i / d^f = sum_k g_k ^x_k / (H W)`. Its part orthogonal to
    `^f`, divided by the norm of `f`, is what reaches `f` at every pixel.
    """
    scale = unit_norm_scale(at_least_float32(anchor))
    unit_anchor = anchor * scale
    scales = torch.cat([unit_norm_scale(at_least_float32(maps)) for maps in samples])
    each_sample = [sample for maps in samples for sample in maps]
    # One by one: the product with the anchor is as large as the sample.
    products = torch.stack([(sample * unit_anchor).sum(1, keepdim=True) for sample in each_sample])
    sims = (products * scales).mean((2, 3, 4)).T
    losses, *slopes = info_nce_terms(sims[:, :num_positives], sims[:, num_positives:], temperature)
    if not needs_gradient:
        return losses, sims, None
    pixels = anchor.shape[-2] * anchor.shape[-1]
    factors = scales * (torch.cat(slopes, 1).T / pixels)[..., None, None, None]
    gradient = torch.zeros_like(unit_anchor)
    for sample, factor in zip(each_sample, factors, strict=True):
        gradient.addcmul_(sample.to(gradient.dtype), factor)
    # Below the smallest norm a map is divided by a constant: nothing is projected out.
    inverse_square = torch.where(scale < 1 / NORM_EPS, scale.square(), 0.0)
    along = (gradient * anchor).sum(1, keepdim=True) * inverse_square
    return losses, sims, gradient.addcmul_(anchor.to(gradient.dtype), along, value=-1).mul_(scale)
