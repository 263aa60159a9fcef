"""The report's picture, in the form of the paper's Figure 2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._files import Image, read_image
from .._panels import Panel
from .._regions import Region, best_region
from .measure import BICUBIC, Pair, Score, by_image, load_pair
from .tables import baselines

CROP = 64  # side of the crops, if none is given


class Crop(NamedTuple):
    """What the figure shows of an image."""

    set_name: str
    image: str
    region: Region

    def find(self, pairs: Mapping[str, Sequence[Pair]]) -> Pair:
        """Its image. Raises ValueError if there is none."""
        for pair in pairs.get(self.set_name, ()):
            if pair.name == self.image:
                return pair
        known = [f"{set_name}/{pair.name}" for set_name, images in pairs.items() for pair in images]
        raise ValueError(f"there is no image {self.set_name}/{self.image} to crop; there are {', '.join(known)}")


def most_lost(hr: Image, bicubic: Image, size: int) -> Region:
    """The square where HR `(H, W, 3)` has the most detail that LR has lost: bicubic is furthest from it there.

    No trained net has a say in it, so that no net can be made to look good or bad by the choice.
    """
    return best_region(np.abs(hr.astype(np.float64) - bicubic).mean(axis=2), size, size)


def default_crop(set_name: str, pairs: Sequence[Pair], scores: Sequence[Score], scale: int, size: int = CROP) -> Crop:
    """Of the image with the lowest PSNR of bicubic, the part where bicubic is furthest from HR."""
    known = by_image(scores)
    pair = min(pairs, key=lambda pair: known[BICUBIC, set_name, pair.name].psnr)
    hr, _ = load_pair(pair, scale)
    bicubic = read_image(known[BICUBIC, set_name, pair.name].sr)
    return Crop(set_name, pair.name, most_lost(hr, bicubic, min(size, *hr.shape[:2])))


def figure_rows(
    nets: Sequence[str], pairs: Mapping[str, Sequence[Pair]], crops: Sequence[Crop], scores: Sequence[Score], scale: int
) -> list[list[Panel]]:
    """A row per crop with HR, bicubic, baseline and PCL, for each pair of nets; all nets where there is no pair."""
    couples: list[tuple[str, ...]] = [(base, pcl) for pcl, base in baselines(nets).items()]
    known = by_image(scores)
    rows = []
    for columns in couples or [tuple(net for net in nets if net != BICUBIC)]:
        for crop in crops:
            hr, _ = load_pair(crop.find(pairs), scale)
            caption = f"{crop.set_name}/{crop.image}\nPSNR / LPIPS of the whole image"
            row = [Panel(crop.region.cut(hr)[..., ::-1], "HR", caption)]
            for net in (BICUBIC, *columns):
                score = known[net, crop.set_name, crop.image]
                lpips = "n/a" if score.lpips is None else f"{score.lpips:.4f}"
                psnr = "exact" if math.isinf(score.psnr) else f"{score.psnr:.2f} dB"
                row.append(Panel(crop.region.cut(read_image(score.sr))[..., ::-1], net, f"{psnr} / {lpips}"))
            rows.append(row)
    return rows
