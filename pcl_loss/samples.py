"""Positives and negatives (eqs 5 and 6), and the only place that draws random numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ._checks import check_count, check_positive, check_range, check_sources
from ._distributed import rank

POSITIVE_SOURCES = ("gt", "sharpen")
NEGATIVE_SOURCES = ("blur", "lq", "batch")


class SampleDraw:
    """Which samples there are of every image, by the knobs of `PCLLoss`: draws their random numbers, and makes them.

    The negatives `'batch'` are other images of the batch: they are not made here.
    """

    def __init__(
        self,
        num_positives: int,
        num_negatives: int,
        positives: Iterable[str],
        negatives: Iterable[str],
        sharpness: Sequence[float],
        blur_sigma: Sequence[float],
    ) -> None:
        self.positives = check_sources("positives", positives, POSITIVE_SOURCES)
        self.negatives = check_sources("negatives", negatives, NEGATIVE_SOURCES)
        self.num_positives = check_count("num_positives", num_positives, int("sharpen" in self.positives))
        self.num_negatives = check_count("num_negatives", num_negatives, int(self.negatives != ("lq",)))
        self.sharpness = check_range("sharpness", sharpness, 0.0)
        self.blur_sigma = check_range("blur_sigma", blur_sigma, 0.0)
        check_positive("blur_sigma[0]", self.blur_sigma[0])
        counts = {"gt": 1, "sharpen": self.num_positives, "blur": self.num_negatives, "lq": 1, "batch": 0}
        order = [source for source in counts if source in self.positives + self.negatives]
        # The source of every sample that `make` makes, in its order: the positives come first.
        self.kinds: tuple[str, ...] = tuple(source for source in order for _ in range(counts[source]))
        self.total_positives = sum(kind in POSITIVE_SOURCES for kind in self.kinds)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """The numbers for n images, on the generator's device: sharpening factors, then sigmas, `(K, n)`."""
        drawn = []
        for kind, (low, high) in (("sharpen", self.sharpness), ("blur", self.blur_sigma)):
            size = (self.kinds.count(kind), n)
            unit = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64)
            drawn.append(low + (high - low) * unit)
        return torch.cat(drawn)

    def make(self, gt: Tensor, lq: Tensor | None, draws: Tensor) -> Tensor:
        """The samples `(K, n, C, H, W)` of images `gt`, without a gradient, in [0, 1] and in the order of `kinds`.

        Without `lq`, `(n, C, h, w)`, the sample `'lq'` is left out. `draws` are these images' columns of what `draw`
        gave. Raises ValueError if an image is too small for the blur.
        """
        with torch.no_grad(), torch.autocast(gt.device.type, enabled=False):
            num_sharpened = self.kinds.count("sharpen")
            made = [gt[None]] if "gt" in self.positives else []
            if "sharpen" in self.positives:
                made.append(sharpen(gt, draws[:num_sharpened]))
            if "blur" in self.negatives:
                made.append(blur(gt, draws[num_sharpened:], self.blur_sigma[1]))
            if "lq" in self.negatives and lq is not None:
                made.append(upsample(lq, (gt.shape[-2], gt.shape[-1]))[None].to(gt.dtype))
            return torch.cat(made)


def seeded_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one training step, of (seed, step, rank); nearby ones, at least 0, give unrelated streams."""
    # torch needs numpy for this alone, and has loaded it already where it is there.
    from numpy.random import SeedSequence

    state = int(SeedSequence(seed, spawn_key=(step, rank())).generate_state(1, "uint64")[0])
    return torch.Generator().manual_seed(state)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Sharpened images `(K, N, C, H, W)`, in [0, 1]: the positives of equation 5.

    `clamp(s + factor * (x - s), 0, 1)`, `s` being `x` smoothed by the kernel `[1 1 1; 1 5 1; 1 1 1] / 13`; the
    outermost pixels stay as they are, as in kornia. `factor` is `(K, N)`, on the CPU or the images' device.
    """
    factor = factor.to(images.dtype)[..., None, None, None]
    if factor.device.type == "cpu" and images.is_cuda and torch.cuda.is_available():
        factor = factor.pin_memory()  # a copy from pageable memory waits for the GPU's queue
    factor = factor.to(images.device, non_blocking=True)
    # The kernel is a 3x3 box and 4 times the pixel, and a box a sum of rows and then of columns: far cheaper on a CPU
    # than a depthwise convolution, and no sharpened image needs one of its own.
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1].mul_(4).add_(box).div_(13)
    return torch.lerp(smooth, images, factor).clamp_(0, 1)


def blur(images: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Images under an isotropic Gaussian, `(K, N, C, H, W)`, in [0, 1]: the negatives of equation 6.

    `sigma` is `(K, N)`, in pixels, above 0, on the CPU or the images' device. Raises ValueError if an image is smaller
    than three `max_sigma`.
    """
    from kornia.filters import gaussian_blur2d

    radius = math.ceil(3 * max_sigma)
    if radius >= min(images.shape[-2:]):
        fix = f"too far for images of {images.shape[-2]}x{images.shape[-1]}; lower blur_sigma or use larger patches"
        raise ValueError(f"a Gaussian of sigma {max_sigma} reaches {radius} pixels to each side, {fix}")
    repeated = images.expand(len(sigma), *images.shape).flatten(0, 1)
    blurred = gaussian_blur2d(repeated, 2 * radius + 1, sigma.flatten()[:, None].expand(-1, 2))
    # The kernel's weights sum to 1 up to rounding alone.
    return blurred.clamp_(0, 1).unflatten(0, sigma.shape)


def upsample(lq: Tensor, size: tuple[int, int]) -> Tensor:
    """LR images enlarged to `size` by bicubic interpolation, `(N, C, *size)`, clamped to [0, 1]."""
    return F.interpolate(lq, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
