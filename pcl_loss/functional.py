"""Equations 7 to 10 of the paper, and the energy term, as pure functions: no state, no randomness, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import at_least_float32, check_positive

NORM_EPS = 1e-12
# Of the energy term, in pixels: upsampling by 2, 3 or 4 may leave a grid that repeats so, and a grid is no detail.
PERIODS = (4, 3)
WINDOW = 8
ENERGY_FLOOR = 0.01


def unit_norm_scale(maps: Tensor) -> Tensor:
    """The factor `1 / max(norm, 1e-12)` of every pixel of maps `(..., C, H, W)`, `(..., 1, H, W)`; where all channels
    are 0 it is 0, and so is its gradient.
    """
    norm = torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    return torch.where(norm > 0, norm.clamp_min(NORM_EPS).reciprocal(), 0.0)


def similarity(anchor: Tensor, samples: Tensor) -> Tensor:
    """Equation 9: `(N, K)`, in [-1, 1], of an anchor's map `(N, C, H, W)` and its samples' `(K, N, C, H, W)`."""
    with torch.autocast(anchor.device.type, enabled=False):
        anchor, samples = (at_least_float32(maps) for maps in (anchor, samples))
        anchor, samples = (maps * unit_norm_scale(maps) for maps in (anchor, samples))
        products = torch.bmm(samples.flatten(2).transpose(0, 1), anchor.flatten(1).unsqueeze(2))
        return products.squeeze(2) / (anchor.shape[-2] * anchor.shape[-1])


def info_nce(pos_sim: Tensor, neg_sim: Tensor, temperature: float) -> Tensor:
    """Equation 8 for every positive p, `(..., K_P)`, from its similarities `(..., K_P)` and `(..., K_N)`, `K_N >= 0`:
    `-log(exp(p / tau) / (exp(p / tau) + sum_k exp(n_k / tau)))`.
    """
    return _softplus(torch.logsumexp(neg_sim / temperature, -1, keepdim=True) - pos_sim / temperature)


def info_nce_slopes(pos_sim: Tensor, neg_sim: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The derivatives of the mean of `info_nce` over the positives: `(..., K_P)` and `(..., K_N)`."""
    z = torch.logsumexp(neg_sim / temperature, -1, keepdim=True) - pos_sim / temperature
    towards = z.sigmoid() / (pos_sim.shape[-1] * temperature)
    away = (neg_sim / temperature).softmax(-1) * towards.sum(-1, keepdim=True)
    return -towards, away


def contrastive_loss(
    anchor: Sequence[Tensor], positives: Sequence[Tensor], negatives: Sequence[Tensor], temperature: float = 1.0
) -> Tensor:
    """The contrastive loss L_CL of the paper, equations 8 to 10, and nothing else.

    The mean over images and layers of `info_nce`'s mean over the positives, a similarity being the mean over the pixels
    of the cosine between the channel vectors of two maps. A map is normalised as `f / max(norm, 1e-12)`; a pixel whose
    channels are all 0 has similarity 0 and receives a zero gradient.

    `anchor` are L maps `(N, C_l, H_l, W_l)`, any floating dtype; `positives` and `negatives` L each, `(K, N, C_l, H_l,
    W_l)`, of which there need be no negatives: the value is then 0. `temperature` is tau, above 0.

    Returns 0-dim, in float32 or wider, differentiable with respect to every map. Raises ValueError if a list, a shape
    or the temperature does not fit.
    """
    temperature = check_positive("temperature", temperature)
    if not anchor:
        raise ValueError("anchor, positives and negatives must have at least one layer")
    losses = []
    for layer, (f, p, n) in enumerate(zip(anchor, positives, negatives, strict=True)):
        for name, samples, fewest in (("positives", p, 1), ("negatives", n, 0)):
            if f.dim() != 4 or samples.shape[1:] != f.shape or len(samples) < fewest:
                raise ValueError(
                    f"{name}[{layer}] has shape {tuple(samples.shape)}, and anchor[{layer}] {tuple(f.shape)}; expected "
                    f"are (K, N, C, H, W), K at least {fewest}, and (N, C, H, W)"
                )
        losses.append(info_nce(similarity(f, p), similarity(f, n), temperature).mean())
    return torch.stack(losses).mean()


def contrastive_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Equation 7 as a loss to minimise: each real against all fakes, and the mirror image.

    `mean_r [-log(exp(r) / (exp(r) + sum_f exp(f)))] + mean_f [-log(exp(-f) / (exp(-f) + sum_r exp(-r)))]` of logits of
    any shape. Returns 0-dim, float32 or wider. Raises ValueError if either side is empty.
    """
    counts = real_logits.numel(), fake_logits.numel()
    if 0 in counts:
        raise ValueError(f"real_logits and fake_logits need at least one logit each, got {counts[0]} and {counts[1]}")
    with torch.autocast(real_logits.device.type, enabled=False):
        real, fake = at_least_float32(real_logits).flatten(), at_least_float32(fake_logits).flatten()
        real_loss = _softplus(torch.logsumexp(fake, 0) - real).mean()
        fake_loss = _softplus(torch.logsumexp(-real, 0) + fake).mean()
        return real_loss + fake_loss


def energy_loss(sr_bands: Tensor, hr_bands: Tensor) -> Tensor:
    """How far the energies of bands, window by window, are from those of the ground truth, for every image.

    The mean over bands and windows of `|log e(SR) - log e(HR)|`, with `e = sqrt(mean of b^2 + 0.01)` over a window of
    8 x 8 at every 4 pixels. `b` is the band less the mean of the four pixels at a distance of 4, and then the same at a
    distance of 3: what repeats every 4 or 3 pixels, such as a grid, has no energy. Bands are `(N, C, H, W)`,
    `H, W >= 22`, over a `FixedEmbedding`'s threshold.
    Returns `(N,)`, in float32 or wider.
    """

    def log_energies(bands: Tensor) -> Tensor:
        bands = at_least_float32(bands)
        for period in PERIODS:
            inner = slice(period, -period)
            near = bands[..., inner, 2 * period :] + bands[..., inner, : -2 * period]
            near = near + bands[..., 2 * period :, inner] + bands[..., : -2 * period, inner]
            bands = bands[..., inner, inner] - near / 4
        return (F.avg_pool2d(bands.square(), WINDOW, WINDOW // 2) + ENERGY_FLOOR).log() / 2

    with torch.autocast(sr_bands.device.type, enabled=False):
        return (log_energies(sr_bands) - log_energies(hr_bands)).abs().mean((1, 2, 3))


def known_contrastive_loss(
    anchor: Sequence[Tensor], samples: Sequence[Sequence[Tensor]], num_positives: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Equation 8 for every image and layer, against samples that receive no gradient: what `PCLLoss` computes with.

    The gradient at the anchor is finished here, so that no sample's map waits for the backward pass; that raises
    RuntimeError with `create_graph=True`. `anchor` are L maps `(N, C_l, H_l, W_l)`; `samples` are, of every layer,
    tensors `(k, N, C_l, H_l, W_l)`, K in all, the positives first. Returns losses `(N, L)`, similarities `(N, L, K)`.
    """
    needs_gradient = torch.is_grad_enabled() and any(f.requires_grad for f in anchor)
    with torch.no_grad(), torch.autocast(anchor[0].device.type, enabled=False):
        layers = [
            _layer(*maps, num_positives, temperature, needs_gradient) for maps in zip(anchor, samples, strict=True)
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
            raise RuntimeError("PCLLoss has no second derivative: drop create_graph=True, or use functional instead")
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
    pos_and_neg = sims[:, :num_positives], sims[:, num_positives:]
    losses = info_nce(*pos_and_neg, temperature).mean(-1)
    if not needs_gradient:
        return losses, sims, None
    slopes = torch.cat(info_nce_slopes(*pos_and_neg, temperature), 1)
    pixels = anchor.shape[-2] * anchor.shape[-1]
    factors = scales * (slopes.T / pixels)[..., None, None, None]
    gradient = torch.zeros_like(unit_anchor)
    for sample, factor in zip(each_sample, factors, strict=True):
        gradient.addcmul_(sample.to(gradient.dtype), factor)
    # Below the smallest norm a map is divided by a constant: nothing is projected out.
    inverse_square = torch.where(scale < 1 / NORM_EPS, scale.square(), 0.0)
    along = (gradient * anchor).sum(1, keepdim=True) * inverse_square
    return losses, sims, gradient.addcmul_(anchor.to(gradient.dtype), along, value=-1).mul_(scale)


def _softplus(x: Tensor) -> Tensor:
    # Beyond torch's own threshold of 20 its linear branch is off by 2e-9, which float64 shows.
    return F.softplus(x, threshold=40)
