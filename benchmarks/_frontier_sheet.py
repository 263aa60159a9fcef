"""A sheet of the crops of the test images where the methods of `frontier.py` differ most."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _frontier_run import Image, Job, Setting, load_sets, sr_function, upscale_image
from _frontier_tables import title
from torch.nn import functional as F

from pcl_loss.tools import _panels

CROP = 64
BORDER = 8
LINE = 16  # letters of a title


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
    pairs = load_sets(setting)[set_name]
    images = {"HR": [hr for _, hr in pairs]}
    for job in jobs:
        upscale, _ = sr_function(setting, job)
        name = textwrap.fill(title(job.method), LINE) + ("" if job.ratio is None else f"\nr {job.ratio:g}")
        images[name] = [upscale_image(upscale, lr) for lr, _ in pairs]
    spots = find_spots(list(images.values())[1:], count)
    rows = [[_panels.Panel(spot.cut(own[spot.image]), name, "") for name, own in images.items()] for spot in spots]
    figure, _ = _panels.draw(rows)
    figure.savefig(file, dpi=130)
    return spots
