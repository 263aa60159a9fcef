"""The picture can be read: nothing overlaps, and what is compared has one scale."""

import math
import sys

import numpy as np
import pytest
import torch
from helpers import rand, tiny_discriminator
from matplotlib.text import Text
from torch import Tensor

from pcl_loss import PCLLoss, WaveletDiscriminator
from pcl_loss.tools import preview
from pcl_loss.tools.preview.drawing import draw
from pcl_loss.tools.preview.sheet import make_sheet


@pytest.mark.parametrize(("shape", "count"), [((48, 48), 1), ((32, 160), 5), ((160, 32), 5), ((48, 48), 8)])
def test_no_two_texts_of_the_picture_overlap(shape: tuple[int, int], count: int) -> None:
    hr = rand(1, 3, *shape).float()
    pcl = PCLLoss(num_positives=count, num_negatives=count, negatives=("blur", "batch"))
    sheet = make_sheet(hr, pcl, sr=hr * 0.9, embedding=tiny_discriminator(dtype=torch.float32))
    figure = draw(sheet, "a_photograph.png, 48x48 at 0,0")
    pixels = preview.to_pixels(figure)
    assert pixels.shape[1:] == (1200, 3)
    assert pixels.dtype == np.uint8
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]
    for index, (name, box) in enumerate(boxes):
        assert box.x0 >= 0, name
        assert box.x1 <= pixels.shape[1], name
        assert box.y0 >= 0, name
        assert box.y1 <= pixels.shape[0], name
        for other, other_box in boxes[index + 1 :]:
            assert not box.overlaps(other_box), (name, other)


def test_all_bands_have_one_scale_and_all_similarities_one(hr: Tensor, sr: Tensor) -> None:
    figure = draw(make_sheet(hr, PCLLoss(), sr=sr, embedding=tiny_discriminator()))
    limits: dict[str, set[tuple[float, float]]] = {}
    for ax in figure.axes:
        for image in ax.images:
            limits.setdefault(f"{image.get_cmap().name} {image.get_array().ndim}", set()).add(image.get_clim())
    assert {key: len(values) for key, values in limits.items() if not key.endswith("3")} == {
        "gray 2": 1,
        "viridis 2": 1,
    }


def test_grey_images_and_images_that_are_not_finite_can_be_drawn() -> None:
    hr = rand(1, 1, 32, 32).float()
    net = WaveletDiscriminator(1, 2)
    sr = hr.clone()
    sr[..., 3, 3] = math.nan
    preview.to_pixels(draw(make_sheet(hr, PCLLoss(), sr=sr, embedding=net)))


def test_without_matplotlib_the_error_names_the_extra(hr: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pcl_loss\[plots\]'"):
        draw(make_sheet(hr, PCLLoss()))
