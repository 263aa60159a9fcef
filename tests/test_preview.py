"""The sheet shows what the loss really compares, its numbers are those of the equations, and it can be read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import pywt
import reference
import torch
from helpers import photograph, rand, tiny_discriminator

from pcl_loss import PCLLoss, WaveletDiscriminator, preview
from pcl_loss.preview import cut, detailed_window, draw, make_sheet

ALL = {"negatives": ("blur", "lq"), "num_positives": 2, "num_negatives": 2}
HR = photograph("chelsea")[None, :, 100:148, 120:168].double()
LQ = torch.nn.functional.avg_pool2d(HR, 4)
SR = HR + 0.1 * (rand(*HR.shape) - 0.5)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_samples_are_those_that_the_loss_embeds_and_each_is_made_by_its_draw(seed: int) -> None:
    pcl, net, inputs = PCLLoss(seed=seed, **ALL), tiny_discriminator(), []
    sheet = make_sheet(HR, pcl, lq=LQ)
    pcl(SR, HR, SimpleNamespace(embed=lambda x, n: (inputs.append(x.detach()), net.embed(x, n))[1]), LQ)
    assert sheet.kinds == ["gt", "sharpen", "sharpen", "blur", "blur", "lq"]
    assert torch.equal(sheet.images, torch.cat(inputs)[1:])  # SR comes first
    gt = HR[0].numpy()
    for kind, number, image in zip(sheet.kinds, sheet.draws, sheet.images, strict=True):
        if number is not None:
            expected = reference.sharpen(gt, number) if kind == "sharpen" else reference.blur(gt, number, radius=5)
            np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)
    assert [number is None for number in sheet.draws] == [True, False, False, False, False, True]


def test_bands_energy_and_psnr_are_those_of_pywavelets_and_numpy() -> None:
    sheet = make_sheet(HR * 255, PCLLoss(data_range=255.0, **ALL), sr=SR * 255)
    gt_energy = (np.stack(pywt.dwt2(HR[0].numpy(), "haar")[1]) ** 2).mean()
    for i, kind in enumerate(sheet.kinds):
        bands = np.stack(pywt.dwt2(sheet.images[i].numpy(), "haar")[1])
        np.testing.assert_allclose(sheet.bands[i].numpy(), np.abs(bands).sum(0).mean(0), atol=1e-12)
        assert sheet.energy[i] == pytest.approx((bands**2).mean() / gt_energy)
        assert kind not in ("sharpen", "blur") or (sheet.energy[i] > 1) == (kind == "sharpen")
        mse = ((sheet.images[i] - HR[0]) ** 2).mean().item()
        assert sheet.psnr[i] == (math.inf if kind == "gt" else pytest.approx(-10 * math.log10(mse)))


@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("gt",), ("sharpen",)])
def test_similarities_and_l_cl_are_those_of_the_equations_and_the_loss(positives: tuple[str, ...]) -> None:
    pcl, net = PCLLoss(positives=positives, temperature=0.3, num_layers=3, **ALL), tiny_discriminator()
    sheet = make_sheet(HR, pcl, sr=SR, lq=LQ, embedding=net)
    pcl(SR, HR, net, LQ)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-6)
    anchors = reference.embed(net, SR[0].numpy(), 3)
    for i, image in enumerate(sheet.images):
        maps = reference.embed(net, image.numpy(), 3)
        expected = np.mean([reference.similarity(f, g) for f, g in zip(anchors, maps, strict=True)])
        assert sheet.similarities[i] == pytest.approx(expected, abs=1e-6)


def test_the_window_is_where_the_detail_is_and_inside_the_image() -> None:
    image = torch.full((1, 1, 200, 310), 0.5)
    image[..., 100:160, 200:260] = rand(1, 1, 60, 60).float()
    top, left, height, width = detailed_window(image, size=64, multiple=4)
    assert (height, width, top % 4, left % 4) == (64, 64, 0, 0)
    assert abs(top - 98) <= 4
    assert abs(left - 198) <= 4
    assert torch.equal(cut(image, (8, 4, 32, 16), 4), image[..., 2:10, 1:5])
    assert detailed_window(image[..., :47, :33]) == (0, 0, 47, 33)


@pytest.mark.parametrize(("shape", "count"), [((48, 48), 1), ((32, 160), 5), ((160, 32), 8)])
def test_no_two_texts_of_the_picture_overlap(shape: tuple[int, int], count: int) -> None:
    from matplotlib.text import Text

    hr = rand(1, 3, *shape).float()
    pcl = PCLLoss(num_positives=count, num_negatives=count, negatives=("blur", "batch", "lq"))
    sheet = make_sheet(hr, pcl, sr=hr * 0.9, embedding=tiny_discriminator(dtype=torch.float32))
    assert ["'lq'" in note or "'batch'" in note for note in sheet.notes] == [True, True]
    figure = draw(sheet, "a_photograph.png, 48x48 at 0,0")
    pixels = preview.to_pixels(figure)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1] >= 1200
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.axes is None or text.axes.axison]
    for index, (name, box) in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0, name
        assert box.x1 <= pixels.shape[1], name
        assert box.y1 <= pixels.shape[0], name
        for other, other_box in boxes[index + 1 :]:
            assert not box.overlaps(other_box), (name, other)


def test_grey_and_flat_images_and_images_that_are_not_finite_can_be_drawn() -> None:
    hr = rand(1, 1, 32, 32).float()
    sr = hr.clone()
    sr[..., 3, 3] = math.nan
    preview.to_pixels(draw(make_sheet(hr, PCLLoss(), sr=sr, embedding=WaveletDiscriminator(1, 2))))
    flat = make_sheet(torch.full_like(HR, 0.5), PCLLoss())
    assert math.isnan(flat.energy[0])
    draw(flat)
