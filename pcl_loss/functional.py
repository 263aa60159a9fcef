"""Equations 7 to 10 of the paper as pure functions: no state, no randomness, no I/O."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_positive
from ._tensors import at_least_float32

NORM_EPS = 1e-12


def unit_norm_scale(maps: Tensor) -> Tensor:
    """The factor `1 / max(norm, 1e-12)` of every pixel, and 0 where all channels are 0.

    Args:
        maps: `(..., C, H, W)`, float32 or wider.

    Returns:
        `(..., 1, H, W)`. Its gradient is finite everywhere, and 0 at an all-zero pixel.
    """
    norm = torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    return torch.where(norm > 0, norm.clamp_min(NORM_EPS).reciprocal(), 0.0)


def similarity(anchor: Tensor, samples: Tensor) -> Tensor:
    """Mean over the pixels of the channel cosine between an anchor map and its samples (eq 9).

    Computed as one batched matrix product of the normalised, flattened maps, in float32 or wider.

    Args:
        anchor: `(N, C, H, W)`.
        samples: `(K, N, C, H, W)`.

    Returns:
        `(N, K)`, in [-1, 1].
    """
    with torch.autocast(anchor.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(anchor.dtype, samples.dtype), torch.float32)
        anchor, samples = anchor.to(dtype), samples.to(dtype)
        anchor = anchor * unit_norm_scale(anchor)
        samples = samples * unit_norm_scale(samples)
        pixels = anchor.shape[-2] * anchor.shape[-1]
        products = torch.bmm(samples.flatten(2).transpose(0, 1), anchor.flatten(1).unsqueeze(2))
        return products.squeeze(2) / pixels


def info_nce(pos_sim: Tensor, neg_sim: Tensor, temperature: float) -> Tensor:
    """Equation 8 from its similarities, averaged over the images.

    Args:
        pos_sim: `(N, K_P)`.
        neg_sim: `(N, K_N)`, `K_N >= 0`.
        temperature: tau, above 0.

    Returns:
        0-dim: the mean over images and positives of
        `-log(exp(p / tau) / (exp(p / tau) + sum_k exp(n_k / tau)))`.
    """
    return _softplus(_info_nce_logits(pos_sim, neg_sim, temperature)).mean()


def info_nce_terms(pos_sim: Tensor, neg_sim: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 8 from its similarities, averaged over the positives alone, and its derivatives.

    With `z_p` the log of the ratio of all negatives to positive `p`: `dL / dp = -sigmoid(z_p) / (K_P tau)`, and
    `dL / dn_k = softmax_k(n / tau) sum_p sigmoid(z_p) / (K_P tau)`.

    Args:
        pos_sim: `(..., K_P)`.
        neg_sim: `(..., K_N)`, `K_N >= 0`.
        temperature: tau, above 0.

    Returns:
        The losses `(...)`, and their derivatives `(..., K_P)` and `(..., K_N)`.
    """
    logits = _info_nce_logits(pos_sim, neg_sim, temperature)
    towards = logits.sigmoid() / (pos_sim.shape[-1] * temperature)
    away = (neg_sim / temperature).softmax(-1) * towards.sum(-1, keepdim=True)
    return _softplus(logits).mean(-1), -towards, away


def contrastive_loss(
    anchor: Sequence[Tensor],
    positives: Sequence[Tensor],
    negatives: Sequence[Tensor],
    temperature: float = 1.0,
) -> Tensor:
    """The contrastive loss L_CL of the paper, equations 8 to 10, and nothing else.

    `L_CL = 1 / (N L) sum_i sum_l L_il`, `L_il` being the mean over the positives `p` of
    `-log(exp(s(f, p) / tau) / (exp(s(f, p) / tau) + sum_k exp(s(f, n_k) / tau)))`, and `s` the mean over the pixels
    of the cosine between the channel vectors of two maps. A map is normalised as `f / max(norm, 1e-12)`; a pixel
    whose channels are all 0 has similarity 0 and receives a zero gradient.

    Args:
        anchor: L maps `(N, C_l, H_l, W_l)`, any floating dtype; the arithmetic is in float32 or wider.
        positives: L maps `(K_P, N, C_l, H_l, W_l)`, `K_P >= 1`.
        negatives: L maps `(K_N, N, C_l, H_l, W_l)`, `K_N >= 0`; without negatives the value is 0.
        temperature: tau, above 0.

    Returns:
        0-dim, differentiable with respect to every map. Equal similarities give `log(1 + K_N)`.

    Raises:
        ValueError: the lists differ in length or are empty, a shape does not fit, `K_P` is 0, or the temperature
            is not above 0.
    """
    temperature = check_positive("temperature", temperature)
    if not len(anchor) == len(positives) == len(negatives):
        raise ValueError(
            f"anchor, positives and negatives must have one map per layer, got "
            f"{len(anchor)}, {len(positives)} and {len(negatives)} layers"
        )
    if not anchor:
        raise ValueError("anchor, positives and negatives are empty; give at least one layer")
    losses = []
    for layer, (f, p, n) in enumerate(zip(anchor, positives, negatives, strict=True)):
        _check_layer(layer, f, p, n)
        losses.append(info_nce(similarity(f, p), similarity(f, n), temperature))
    return torch.stack(losses).mean()


def contrastive_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The contrastive discriminator loss of equation 7, as a loss to minimise.

    `mean_r [-log(exp(r) / (exp(r) + sum_f exp(f)))] + mean_f [-log(exp(-f) / (exp(-f) + sum_r exp(-r)))]`: each real
    against all fakes, and the mirror image.

    Args:
        real_logits: any shape, at least one element; flattened.
        fake_logits: the same; their number may differ.

    Returns:
        0-dim, float32 or wider. Equal logits give `log(1 + N_fake) + log(1 + N_real)`.

    Raises:
        ValueError: either side is empty.
    """
    if real_logits.numel() == 0 or fake_logits.numel() == 0:
        raise ValueError(
            f"real_logits and fake_logits need at least one logit each, got {real_logits.numel()} and "
            f"{fake_logits.numel()}"
        )
    with torch.autocast(real_logits.device.type, enabled=False):
        real, fake = at_least_float32(real_logits).flatten(), at_least_float32(fake_logits).flatten()
        real_loss = _softplus(torch.logsumexp(fake, 0) - real).mean()
        fake_loss = _softplus(torch.logsumexp(-real, 0) + fake).mean()
        return real_loss + fake_loss


def _info_nce_logits(pos_sim: Tensor, neg_sim: Tensor, temperature: float) -> Tensor:
    return torch.logsumexp(neg_sim / temperature, dim=-1, keepdim=True) - pos_sim / temperature


def _softplus(x: Tensor) -> Tensor:
    # Beyond torch's own threshold of 20 its linear branch is off by 2e-9, which float64 shows.
    return F.softplus(x, threshold=40)


def _check_layer(layer: int, anchor: Tensor, positives: Tensor, negatives: Tensor) -> None:
    if anchor.dim() != 4:
        raise ValueError(f"anchor[{layer}] has shape {tuple(anchor.shape)}; expected (N, C, H, W)")
    for name, samples in (("positives", positives), ("negatives", negatives)):
        if samples.dim() != 5 or samples.shape[1:] != anchor.shape:
            raise ValueError(
                f"{name}[{layer}] has shape {tuple(samples.shape)}; expected (K, {', '.join(map(str, anchor.shape))}) "
                "to fit the anchor"
            )
    if positives.shape[0] == 0:
        raise ValueError(f"positives[{layer}] holds no sample (shape {tuple(positives.shape)}); give at least one")
