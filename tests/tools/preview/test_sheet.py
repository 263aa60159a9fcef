"""The sheet shows what the loss really compares, and its numbers are those of the equations."""

import math
from typing import Any

import numpy as np
import pytest
import pywt
import reference
import torch
from helpers import Recorder, rand, same, snapshot, tiny_discriminator
from torch import Tensor

from pcl_loss import PCLLoss
from pcl_loss.samples import seeded_generator
from pcl_loss.tools.preview.drawing import draw
from pcl_loss.tools.preview.sheet import detailed_window, make_sheet

ALL = {"negatives": ("blur", "lq"), "num_positives": 2, "num_negatives": 2}


def array(images: Tensor) -> Any:
    return images.numpy()


def test_the_samples_are_those_that_the_loss_embeds(hr: Tensor, sr: Tensor, lq: Tensor) -> None:
    for seed in (0, 5):
        pcl, recorder = PCLLoss(seed=seed, **ALL), Recorder(tiny_discriminator())
        sheet = make_sheet(hr, pcl, lq=lq)
        pcl(sr, hr, recorder, lq)
        embedded = torch.cat(recorder.inputs)[1:]  # SR comes first
        assert torch.equal(torch.stack([panel.image for panel in sheet.panels]), embedded)


def test_images_in_0_to_255_give_the_sheet_of_those_in_0_to_1(hr: Tensor, sr: Tensor) -> None:
    net = tiny_discriminator()
    ours = make_sheet(hr, PCLLoss(), sr=sr, embedding=net)
    theirs = make_sheet(hr * 255, PCLLoss(data_range=255.0), sr=sr * 255, embedding=net)
    assert ours.l_cl == pytest.approx(theirs.l_cl)
    for one, other in zip(ours.panels, theirs.panels, strict=True):
        torch.testing.assert_close(one.image, other.image)


def test_every_draw_beneath_a_sample_is_the_one_that_made_it(hr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(**ALL | {"negatives": ("blur",)}))
    assert [panel.kind for panel in sheet.panels] == ["gt", "sharpen", "sharpen", "blur", "blur"]
    for panel in sheet.panels[1:]:
        assert panel.draw is not None
        expected = (
            reference.sharpen(array(hr[0]), panel.draw)
            if panel.kind == "sharpen"
            else reference.blur(array(hr[0]), panel.draw, radius=5)
        )
        np.testing.assert_allclose(array(panel.image), expected, atol=1e-6)


def test_the_bands_and_their_energy_are_those_of_pywavelets(hr: Tensor, sr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(**ALL | {"negatives": ("blur",)}), sr=sr)

    def bands(image: Tensor) -> Any:
        return np.stack(pywt.dwt2(array(image), "haar")[1])

    gt_energy = (bands(hr[0]) ** 2).mean()
    for panel in sheet.panels:
        np.testing.assert_allclose(array(panel.bands), np.abs(bands(panel.image)).sum(0).mean(0), atol=1e-12)
        assert panel.energy == pytest.approx((bands(panel.image) ** 2).mean() / gt_energy)
    for panel in sheet.panels[1:]:
        if panel.kind == "sharpen":
            assert panel.energy > 1
        elif panel.kind == "blur":
            assert panel.energy < 1


def test_the_psnr_is_that_to_gt(hr: Tensor, sr: Tensor) -> None:
    for panel in make_sheet(hr, PCLLoss(), sr=sr).panels:
        mse = ((array(panel.image) - array(hr[0])) ** 2).mean()
        assert panel.psnr == (math.inf if panel.kind == "gt" else pytest.approx(-10 * math.log10(mse)))


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_the_similarities_are_those_of_equation_9(layer: int | None, hr: Tensor, sr: Tensor) -> None:
    net = tiny_discriminator()
    sheet = make_sheet(hr, PCLLoss(num_layers=3, **ALL | {"negatives": ("blur",)}), sr=sr, embedding=net, layer=layer)
    anchors = reference.embed(net, array(sr[0]), 3)
    for panel in sheet.panels:
        if panel.kind == "sr":
            assert panel.similarity_map is panel.similarity is None
            continue
        maps = reference.embed(net, array(panel.image), 3)
        layers = [reference.similarity(f, g) for f, g in zip(anchors, maps, strict=True)]
        expected = float(np.mean(layers)) if layer is None else layers[layer - 1]
        assert panel.similarity == pytest.approx(expected, abs=1e-6)
        assert panel.similarity_map is not None
        assert float(panel.similarity_map.mean()) == pytest.approx(expected, abs=1e-6)
        assert panel.similarity_map.shape == anchors[0 if layer is None else layer - 1].shape[1:]


@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("gt",), ("sharpen",)])
def test_l_cl_is_that_of_the_loss(positives: tuple[str, ...], hr: Tensor, sr: Tensor, lq: Tensor) -> None:
    pcl, net = PCLLoss(positives=positives, temperature=0.3, **ALL), tiny_discriminator()
    sheet = make_sheet(hr, pcl, sr=sr, lq=lq, embedding=net)
    pcl(sr, hr, net, lq)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-6)
    assert sheet.gt_is_positive == ("gt" in positives)


def test_what_one_image_cannot_show_is_noted(hr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(negatives=("batch", "lq")))
    assert not sheet.negatives
    assert "'lq'" in sheet.notes[0]
    assert "'batch'" in sheet.notes[1]


def test_a_sheet_changes_nothing(hr: Tensor, sr: Tensor, untouched_global_rng: None) -> None:
    net, pcl = tiny_discriminator(), PCLLoss()
    before = snapshot(net)
    make_sheet(hr, pcl, sr=sr.clone().requires_grad_(), embedding=net, generator=seeded_generator(1, 1))
    assert same(before, snapshot(net))
    assert net.training
    assert pcl.num_calls == 0
    assert not pcl.stats
    assert all(param.grad is None and param.requires_grad for param in net.parameters())


def test_a_flat_image_has_no_relative_energy(hr: Tensor) -> None:
    sheet = make_sheet(torch.full_like(hr, 0.5), PCLLoss())
    assert math.isnan(sheet.panels[0].energy)
    draw(sheet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sr": torch.zeros(1, 3, 40, 48)}, "SR is 40x48, but the image is 48x48"),
        ({"hr": torch.zeros(1, 3, 31, 48)}, "hr is 31x48, but at least 32x32"),
        ({"hr": torch.zeros(2, 3, 48, 48)}, "one image"),
        ({"embedding": tiny_discriminator()}, "give one besides the embedding"),
        ({"lq": torch.zeros(1, 1, 12, 12)}, "lq must be one image of hr's channels"),
        ({"layer": 5}, "layer must be from 1 to 4, got 5"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, hr: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        make_sheet(**({"hr": hr, "pcl": PCLLoss()} | change))


def test_the_window_is_where_the_detail_is() -> None:
    image = torch.full((1, 1, 200, 310), 0.5)
    image[..., 100:160, 200:260] = rand(1, 1, 60, 60).float()
    window = detailed_window(image, size=64, multiple=4)
    assert window.height == window.width == 64
    assert window.top % 4 == window.left % 4 == 0
    assert abs(window.top - 98) <= 4
    assert abs(window.left - 198) <= 4
    whole_height = detailed_window(image)
    assert (whole_height.top, whole_height.height, whole_height.width) == (0, 200, 256)
    assert 4 <= whole_height.left <= 54
    assert detailed_window(image[..., :47, :33]) == (0, 0, 47, 33)


def test_the_window_of_an_image_with_odd_sides_stays_inside_it() -> None:
    image = torch.zeros(1, 1, 75, 97)
    image[..., -1, -1] = 1  # where a last block of the Haar transform is half padding
    for size in (64, 74, 75, 90):
        detailed_window(image, size).check_inside(75, 97)
