"""A sheet of the crops of the test images where the methods of `frontier.py` differ most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _frontier_run import Image, Job, Setting, load_sets, sr_function, upscale_image
from numpy.typing import NDArray
from torch.nn import functional as F

CROP, ENLARGED = 64, 3
BORDER = 8


class Spot(NamedTuple):
    """A square of `CROP` pixels in one of the images, and how much the methods differ there."""

    difference: float
    image: int
    top: int
    left: int

    def cut(self, image: Image) -> Image:
        """Its pixels."""
        return image[self.top : self.top + CROP, self.left : self.left + CROP]


def find_spots(images: Sequence[Sequence[Image]], count: int) -> list[Spot]:
    """The `count` squares, each in an image of its own, where methods differ most from the first, on the mean.

    Args:
        images: of every method, in the same order.
        count: how many.
    """
    spots = []
    for index, (own, *others) in enumerate(zip(*images, strict=True)):
        difference = np.mean([np.abs(other.astype(np.float32) - own).mean(2) for other in others], axis=0)
        inner = torch.from_numpy(difference)[None, None, BORDER:-BORDER, BORDER:-BORDER]
        windows = F.avg_pool2d(inner, CROP, stride=8)[0, 0]
        top, left = divmod(int(windows.argmax()), windows.shape[1])
        spots.append(Spot(float(windows.max()), index, BORDER + 8 * top, BORDER + 8 * left))
    return sorted(spots, reverse=True)[:count]


def draw_sheet(setting: Setting, jobs: Sequence[Job], set_name: str, count: int, file: Path) -> list[Spot]:
    """Draw HR and the images of the jobs, of which the first is what the others are compared with.

    Returns:
        The crops, in the order of the rows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pairs = load_sets(setting)[set_name]
    images = {"HR": [hr for _, hr in pairs]}
    for job in jobs:
        upscale, _ = sr_function(setting, job)
        title = job.method.replace(",", "\n") + ("" if job.ratio is None else f"\nratio {job.ratio:g}")
        images[title] = [upscale_image(upscale, lr) for lr, _ in pairs]
    spots = find_spots(list(images.values())[1:], count)
    figure, axes = pyplot.subplots(len(spots), len(images), figsize=(2 * len(images), 2.1 * len(spots)), squeeze=False)
    for spot, row in zip(spots, axes, strict=True):
        for (title, own), axis in zip(images.items(), row, strict=True):
            axis.imshow(_enlarge(spot.cut(own[spot.image])), interpolation="nearest")
            axis.set_axis_off()
            if spot is spots[0]:
                axis.set_title(title, fontsize=7)
    figure.tight_layout(pad=0.3)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return spots


def _enlarge(image: Image) -> NDArray[np.uint8]:
    return image.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
