"""The report's picture, in the form of the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._images import read_image
from .._panels import Panel
from .._regions import Region, best_region
from .measure import Score
from .nets import BICUBIC, Pair
from .tables import baselines

CROP = 64  # side of the crops, if none is given

Crop = tuple[Pair, Region]


def default_crops(scores: Sequence[Score], scale: int) -> list[Crop]:
    """Of each set the image with the lowest PSNR of bicubic, and there the part where bicubic is furthest from HR.

    No trained net has a say in it, so that no net can be made to look good or bad by the choice.
    """
    bicubic = [score for score in scores if score.net == BICUBIC]
    crops = []
    for set_name in dict.fromkeys(score.pair.set_name for score in bicubic):
        worst = min((s for s in bicubic if s.pair.set_name == set_name), key=lambda score: score.values["psnr"] or 0)
        lost = np.abs(worst.pair.load(scale)[0].astype(np.float64) - read_image(worst.sr)).mean(axis=2)
        size = min(CROP, *lost.shape)
        crops.append((worst.pair, best_region(lost, size, size)))
    return crops


def figure_rows(nets: Sequence[str], crops: Sequence[Crop], scores: Sequence[Score], scale: int) -> list[list[Panel]]:
    """A row per crop with HR, bicubic, baseline and PCL, for each pair of nets; all nets where there is no pair."""
    couples: list[tuple[str, ...]] = [(base, pcl) for pcl, base in baselines(nets).items()]
    known = {(score.net, score.pair): score for score in scores}
    rows = []
    for columns in couples or [tuple(net for net in nets if net != BICUBIC)]:
        for pair, region in crops:
            caption = f"{pair.set_name}/{pair.name}\nPSNR / LPIPS of the whole image"
            row = [Panel(region.cut(pair.load(scale)[0])[..., ::-1], "HR", caption)]
            for net in (BICUBIC, *columns):
                score = known[net, pair]
                lpips = "n/a" if score.values["lpips"] is None else f"{score.values['lpips']:.4f}"
                caption = f"{score.values['psnr']:.2f} dB / {lpips}"
                row.append(Panel(region.cut(read_image(score.sr))[..., ::-1], net, caption))
            rows.append(row)
    return rows
