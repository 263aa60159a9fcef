"""Slow, obvious versions of the paper's equations and of our samples: one image, one pixel, one pair at a time.

Nothing here calls `pcl_loss` or kornia. Images and maps are float64 arrays (C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pywt
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

Array = NDArray[np.float64]


def similarity(x: Array, y: Array) -> float:
    """Equation 9."""
    _, height, width = x.shape
    total = 0.0
    for row in range(height):
        for column in range(width):
            u, v = x[:, row, column], y[:, row, column]
            u_norm, v_norm = math.sqrt(u @ u), math.sqrt(v @ v)
            total += float(u @ v) / (max(u_norm, 1e-12) * max(v_norm, 1e-12))
    return total / (height * width)


def layer_loss(f: Array, positives: Sequence[Array], negatives: Sequence[Array], tau: float) -> float:
    """Equation 8, for one image and one layer."""
    total = 0.0
    for p in positives:
        log_numerator = similarity(f, p) / tau
        # The fraction is divided by its numerator, since exp(1 / tau) overflows for a small tau.
        denominator = 1.0
        for n in negatives:
            denominator += math.exp(similarity(f, n) / tau - log_numerator)
        total += math.log(denominator)
    return total / len(positives)


def contrastive_loss(
    anchor: Sequence[Array], positives: Sequence[Array], negatives: Sequence[Array], tau: float
) -> float:
    """Equation 10: anchor L x (N, C, H, W), positives and negatives L x (K, N, C, H, W)."""
    num_layers, num_images = len(anchor), len(anchor[0])
    total = 0.0
    for layer in range(num_layers):
        for i in range(num_images):
            samples = ([sample[i] for sample in of_kind[layer]] for of_kind in (positives, negatives))
            total += layer_loss(anchor[layer][i], *samples, tau)
    return total / (num_images * num_layers)


def energy_loss(sr_bands: Array, hr_bands: Array) -> float:
    """The energy term of one image: bands less what repeats every 4 pixels, the rest less what repeats every 3, in
    windows of 8 x 8 at every 4 pixels.
    """

    def less(band: Array, period: int) -> Array:
        rest = np.full_like(band, np.nan)
        for row in range(period, len(band) - period):
            for column in range(period, len(band[0]) - period):
                sides = [(row - period, column), (row + period, column), (row, column - period), (row, column + period)]
                rest[row, column] = band[row, column] - sum(band[side] for side in sides) / 4
        return rest

    def energy(rest: Array, top: int, left: int) -> float:
        total = sum(rest[row, column] ** 2 for row in range(top, top + 8) for column in range(left, left + 8))
        return math.sqrt(total / 64 + 0.01)

    channels, height, width = sr_bands.shape
    found = []
    for channel in range(channels):
        sr, hr = (less(less(bands[channel], 4), 3) for bands in (sr_bands, hr_bands))
        for top in range(7, height - 14, 4):
            for left in range(7, width - 14, 4):
                found.append(abs(math.log(energy(sr, top, left)) - math.log(energy(hr, top, left))))
    return sum(found) / len(found)


def contrastive_discriminator_loss(reals: Sequence[float], fakes: Sequence[float]) -> float:
    """Equation 7 with its sign turned, as a loss to minimise."""
    real_part = 0.0
    for r in reals:
        real_part -= math.log(math.exp(r) / (math.exp(r) + sum(math.exp(f) for f in fakes)))
    fake_part = 0.0
    for f in fakes:
        fake_part -= math.log(math.exp(-f) / (math.exp(-f) + sum(math.exp(-r) for r in reals)))
    return real_part / len(reals) + fake_part / len(fakes)


def sharpen(image: Array, factor: float) -> Array:
    """Equation 5 by one image and one factor; the outermost pixels stay."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.copy()
    for channel in range(len(image)):
        smooth[channel, 1:-1, 1:-1] = ndimage.convolve(image[channel], kernel)[1:-1, 1:-1]
    return (smooth + factor * (image - smooth)).clip(0, 1)


def blur(image: Array, sigma: float, radius: int) -> Array:
    """Equation 6 by one image and one sigma; borders mirrored without repeating the outermost pixel."""
    weights = np.array([math.exp(-(x**2) / (2 * sigma**2)) for x in range(-radius, radius + 1)])
    weights /= weights.sum()
    for axis in (1, 2):
        image = ndimage.convolve1d(image, weights, axis=axis, mode="mirror")
    return image


def bicubic(image: Array, size: tuple[int, int]) -> Array:
    """Bicubic enlargement (Keys, a = -0.75, half-pixel centres), clamped to [0, 1]."""

    def weight(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    for axis, target in ((1, size[0]), (2, size[1])):
        lines = np.moveaxis(image, axis, 0)
        enlarged = []
        for i in range(target):
            centre = (i + 0.5) * len(lines) / target - 0.5
            first = math.floor(centre) - 1
            enlarged.append(
                sum(weight(centre - j) * lines[min(max(j, 0), len(lines) - 1)] for j in range(first, first + 4))
            )
        image = np.moveaxis(np.stack(enlarged), 0, axis)
    return image.clip(0, 1)


def embed(net: nn.Module, image: Array, num_layers: int) -> list[Array]:
    """The maps of one image alone, layer by layer, with PyTorch's own batch norm in evaluation mode."""
    x = torch.from_numpy(image)[None]
    if net.wavelet:
        _, high_bands = pywt.dwt2(image, "haar")
        x = torch.from_numpy(np.concatenate(high_bands))[None]
    maps = []
    with torch.no_grad():
        for block in net.blocks[:num_layers]:
            conv, norm = block.conv, block.norm
            x = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
            if isinstance(norm, nn.BatchNorm2d):
                x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps)
            elif isinstance(norm, nn.GroupNorm):
                x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
            x = torch.where(x > 0, x, 0.2 * x)
            maps.append(x[0].numpy())
    return maps


def pcl_loss(
    net: nn.Module,
    sr: Tensor,
    positives: Sequence[Sequence[Array]],
    negatives: Sequence[Sequence[Array]],
    *,
    temperature: float = 1.0,
    num_layers: int = 4,
) -> float:
    """Equations 8 to 10 of one E_D, embedding every image on its own; `positives[i]` are those of image i."""
    total = 0.0
    for image, *samples in zip(sr.detach().numpy(), positives, negatives, strict=True):
        f = embed(net, image, num_layers)
        p, n = ([embed(net, sample, num_layers) for sample in of_kind] for of_kind in samples)
        for layer in range(num_layers):
            total += layer_loss(f[layer], [s[layer] for s in p], [s[layer] for s in n], temperature)
    return total / (len(sr) * num_layers)


def running_statistics(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What batch norm with momentum max(0.1, 1 / n) has gathered of `inputs`, each (N, C, H, W)."""
    mean, var = torch.zeros(inputs[0].shape[1]).to(inputs[0]), torch.ones(inputs[0].shape[1]).to(inputs[0])
    for n, x in enumerate(inputs, 1):
        momentum = max(0.1, 1 / n)
        values = x.transpose(0, 1).flatten(1)
        mean = (1 - momentum) * mean + momentum * values.mean(1)
        var = (1 - momentum) * var + momentum * values.var(1, unbiased=True)
    return mean, var
