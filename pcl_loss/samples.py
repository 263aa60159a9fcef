"""Positives and negatives (eqs 5 and 6), and the only place that draws random numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIVE_SOURCES = ("gt", "sharpen")
NEGATIVE_SOURCES = ("blur", "lq", "batch")


def is_distributed() -> bool:
    """Whether this process is one of a torch.distributed group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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

    rank = torch.distributed.get_rank() if is_distributed() else 0
    state = int(SeedSequence(seed, spawn_key=(step, rank)).generate_state(1, "uint64")[0])
    return torch.Generator().manual_seed(state)


def draw_uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers from U[low, high), float64, on the generator's device."""
    unit = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Sharpened images: the positives of equation 5.

    `clamp(s + factor * (x - s), 0, 1)`, `s` being `x` smoothed by the kernel `[1 1 1; 1 5 1; 1 1 1] / 13` (kornia's
    `sharpness`). A factor of 1 returns the image, 2 adds its high-frequency part once more; the outermost pixels
    stay as they are.

    Args:
        images: `(N, C, H, W)`, in [0, 1].
        factor: `(N,)`, one strength per image; on the CPU or the images' device.

    Returns:
        `(N, C, H, W)`, in [0, 1].
    """
    from kornia.enhance import sharpness

    return sharpness(images, factor)


def blur(images: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Images under an isotropic Gaussian: the negatives of equation 6.

    Args:
        images: `(N, C, H, W)`, in [0, 1].
        sigma: `(N,)`, in pixels, above 0, one per image; on the CPU or the images' device.
        max_sigma: the largest sigma to expect; sets the kernel's size, which reaches three of it to each side.

    Returns:
        `(N, C, H, W)`, in [0, 1].

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
    blurred = gaussian_blur2d(images, 2 * radius + 1, sigma[:, None].expand(-1, 2))
    return blurred.clamp(0, 1)  # the kernel's weights sum to 1 up to rounding alone


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
    factor = draw_uniform(*sharpness, (count * len(hr),), generator)
    return sharpen(_repeat(hr, count), factor).unflatten(0, (count, -1))


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
    sigma = draw_uniform(*blur_sigma, (count * len(hr),), generator)
    return blur(_repeat(hr, count), sigma, blur_sigma[1]).unflatten(0, (count, -1))


def _repeat(images: Tensor, count: int) -> Tensor:
    return images.expand(count, *images.shape).flatten(0, 1)
