"""BasicSR's perceptual loss and PCL in one slot: the gradient is that of both, PCL's by the ratio that is asked for."""

from typing import Any

import pytest
import torch
from basicsr.losses import build_loss
from helpers import rand

from pcl_loss import PCLCriterion


@pytest.mark.parametrize(("perceptual", "style"), [(0.7, 2.0), (900.0, 0.0)])
def test_pcls_gradient_has_the_asked_ratio_to_that_of_the_others(
    perceptual: float, style: float, vgg_stand_in: Any
) -> None:
    weights = {"perceptual_weight": perceptual, "style_weight": style}
    pcl = {"type": "PCLPerceptualLoss", "recipe": "light"}
    loss = build_loss({"type": "PerceptualLossWithPCL", "pcl": pcl, "grad_ratio": 0.4, **weights})
    image, hr = (rand(2, 3, 32, 32, seed=seed).float() for seed in (0, 1))
    sr = image.requires_grad_().square()  # as from a network
    of_vgg = torch.stack([each for each in vgg_stand_in(**weights)(sr, hr) if each is not None]).sum()
    of_pcl = PCLCriterion(recipe="light")(sr, hr)
    norms = [torch.autograd.grad(term, sr, retain_graph=True)[0].norm() for term in (of_vgg, of_pcl)]
    expected = of_vgg + 0.4 * (norms[0] / norms[1]).detach() * of_pcl
    value, _ = loss(sr, hr)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(total, image, retain_graph=True) for total in (value, expected)))
    with torch.no_grad():
        torch.testing.assert_close(loss(sr, hr)[0], of_vgg + of_pcl)
