"""Patches of scikit-image's free photographs, for the examples."""

from collections.abc import Iterator

import skimage.data
import torch
from torch import Tensor
from torch.nn import functional as F

PHOTOS = ("astronaut", "chelsea", "coffee")


def sr_batches(count: int, batch_size: int = 4, size: int = 96, scale: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` batches `(lq, hr)` in [0, 1], `hr` of `size` x `size`, at random places, the same in every run."""
    for hr in hr_batches(count, batch_size, size):
        lq = F.interpolate(hr, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)
        yield lq, hr


def hr_batches(count: int, batch_size: int = 4, size: int = 96) -> Iterator[Tensor]:
    """`count` batches of clean patches `(batch_size, 3, size, size)` in [0, 1]."""
    photos = [torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1) / 255 for name in PHOTOS]
    generator = torch.Generator().manual_seed(0)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    for _ in range(count):
        patches = []
        for _ in range(batch_size):
            photo = photos[below(len(photos))]
            top, left = below(photo.shape[1] - size), below(photo.shape[2] - size)
            patches.append(photo[:, top : top + size, left : left + size])
        yield torch.stack(patches)
