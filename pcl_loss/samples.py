"""Positives and negatives (eqs 5 and 6), and the only place that draws random numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ._distributed import rank

POSITIVE_SOURCES = ("gt", "sharpen")
NEGATIVE_SOURCES = ("blur", "lq", "batch")


def seeded_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one training step, seeded from (seed, step, rank of this process).

    Nearby seeds and steps give unrelated streams, and every rank its own, so that the ranks of a distributed run
    draw different samples and a resumed run goes on with those of an uninterrupted one.

    Args:
        seed: the run's seed, at least 0.
        step: the number of the call or iteration, at least 0.
    """
    # torch needs numpy for this alone, and has loaded it already where it is there.
    from numpy.random import SeedSequence

    state = int(SeedSequence(seed, spawn_key=(step, rank())).generate_state(1, "uint64")[0])
    return torch.Generator().manual_seed(state)


def draw_uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers from U[low, high), float64, on the generator's device."""
    unit = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Sharpened images: the positives of equation 5.

    `clamp(s + factor * (x - s), 0, 1)`, `s` being `x` smoothed by the kernel `[1 1 1; 1 5 1; 1 1 1] / 13`, as in
    kornia's and PIL's sharpness. A factor of 1 returns the image, 2 adds its high-frequency part once more; the
    outermost pixels stay as they are.

    Args:
        images: `(N, C, H, W)`, in [0, 1].
        factor: `(K, N)`, K strengths per image; on the CPU or the images' device.

    Returns:
        `(K, N, C, H, W)`, in [0, 1].
    """
    factor = factor.to(images)[..., None, None, None]
    return torch.lerp(_smooth(images), images, factor).clamp_(0, 1)


def blur(images: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Images under an isotropic Gaussian: the negatives of equation 6.

    Args:
        images: `(N, C, H, W)`, in [0, 1].
        sigma: `(K, N)`, in pixels, above 0, K per image; on the CPU or the images' device.
        max_sigma: the largest sigma to expect; sets the kernel's size, which reaches three of it to each side.

    Returns:
        `(K, N, C, H, W)`, in [0, 1].

    Raises:
        ValueError: an image is too small to be mirrored at its borders by the kernel's radius.
    """
    from kornia.filters import gaussian_blur2d

    radius = math.ceil(3 * max_sigma)
    if radius >= min(images.shape[-2:]):
        raise ValueError(
            f"a Gaussian of sigma {max_sigma} reaches {radius} pixels to each side, too far for images of "
            f"{images.shape[-2]}x{images.shape[-1]}; lower blur_sigma or use larger patches"
        )
    repeated = images.expand(len(sigma), *images.shape).flatten(0, 1)
    blurred = gaussian_blur2d(repeated, 2 * radius + 1, sigma.flatten()[:, None].expand(-1, 2))
    # The kernel's weights sum to 1 up to rounding alone.
    return blurred.clamp_(0, 1).unflatten(0, sigma.shape)


def upsample(lq: Tensor, size: tuple[int, int]) -> Tensor:
    """LR images enlarged to `size` by bicubic interpolation, `(N, C, *size)`, clamped to [0, 1]."""
    return F.interpolate(lq, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def draw_sharpened(hr: Tensor, count: int, sharpness: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`count` sharpened versions of every image, each with its own factor from U[*sharpness].

    Args:
        hr: `(N, C, H, W)`, in [0, 1].
        count: K_P.
        sharpness: the factor's range.
        generator: where the factors come from.

    Returns:
        `(count, N, C, H, W)`, in [0, 1].
    """
    return sharpen(hr, draw_uniform(*sharpness, (count, len(hr)), generator))


def draw_blurred(hr: Tensor, count: int, blur_sigma: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`count` blurred versions of every image, each with its own sigma from U[*blur_sigma].

    Args:
        hr: `(N, C, H, W)`, in [0, 1].
        count: K_N.
        blur_sigma: the range of sigma, in pixels.
        generator: where the sigmas come from.

    Returns:
        `(count, N, C, H, W)`, in [0, 1].
    """
    return blur(hr, draw_uniform(*blur_sigma, (count, len(hr)), generator), blur_sigma[1])


def _smooth(images: Tensor) -> Tensor:
    """The images under `[1 1 1; 1 5 1; 1 1 1] / 13`, the outermost pixels left alone: a 3x3 box, and 4 times the pixel.

    A box is a sum of rows and then of columns, on a CPU far cheaper than a depthwise convolution, and no sharpened
    image needs one of its own.
    """
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()
    inner = smooth[..., 1:-1, 1:-1]
    inner.mul_(4).add_(box).div_(13)
    return smooth
