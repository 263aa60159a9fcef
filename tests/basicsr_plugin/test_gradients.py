"""The balance is a ratio of two running means; a step's gradient is that of all its losses."""

import copy
import math
from typing import Any

import pytest
import ranks
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from basicsr_fixtures import LOG_KEYS, Batches, Build, Options, strong, train_on, with_options
from torch.nn import functional as F

from pcl_loss import PCLLoss
from pcl_loss.basicsr_plugin.gradients import GradientBalance
from pcl_loss.samples import seeded_generator


def test_the_weight_follows_its_recursion() -> None:
    balance, mean = GradientBalance(0.5), 0.0
    for n in range(1, 61):
        pix, cl = 1.0 + 0.1 * math.sin(n), 0.01 * (2 + math.cos(n)) * n
        mean += max(0.4, 1 / n) * (math.log(pix / cl) - mean)
        weight = balance(torch.tensor(pix), torch.tensor(cl))
        assert weight.item() == pytest.approx(0.5 * math.exp(mean), rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0])
def test_a_norm_of_zero_or_not_finite_leaves_the_mean_alone(bad: float) -> None:
    balance = GradientBalance(1.0)
    balance(torch.tensor(1.0), torch.tensor(2.0))
    before = {key: value.clone() for key, value in balance.state_dict().items()}
    assert balance(torch.tensor(1.0), torch.tensor(bad)).item() == pytest.approx(0.5)
    assert all(torch.equal(value, before[key]) for key, value in balance.state_dict().items())


def test_all_ranks_use_the_weight_of_their_mean_ratio(two_ranks: list[dict[str, Any]]) -> None:
    ratios = torch.stack([norms[:, 0] / norms[:, 1] for norms in (ranks.norms_of(0), ranks.norms_of(1))])
    mean, expected = 0.0, []
    for n, log_ratio in enumerate(ratios.log().mean(0).tolist(), 1):
        mean += max(0.4, 1 / n) * (log_ratio - mean)
        expected.append(0.5 * math.exp(mean))
    for results in two_ranks:
        assert results["balanced_weights"].tolist() == pytest.approx(expected, rel=1e-4)


# --- in a step of the model ---


def test_with_pcl_grad_ratio_the_step_is_that_of_the_logged_weight(
    small: Options, build: Build, batches: Batches
) -> None:
    net = build(with_options(small, {"pcl_grad_ratio": 1.5}))
    net_g = copy.deepcopy(net.net_g)
    sr = net_g(batches[0]["lq"])
    gt, leaf = batches[0]["gt"], sr.detach().requires_grad_()
    pcl = PCLLoss()(leaf, gt, net.net_d, generator=seeded_generator(3, 1))
    grad_pix, grad_pcl = (torch.autograd.grad(loss, leaf)[0] for loss in (F.l1_loss(leaf, gt), pcl))
    sr.backward(grad_pix + 1.5 * grad_pix.norm() / grad_pcl.norm() * grad_pcl)
    (log,) = train_on(net, batches[:1])
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        torch.testing.assert_close(param.grad, expected.grad, rtol=1e-4, atol=1e-8)
    assert log["l_pcl"] == pytest.approx(log["pcl_weight"] * log["l_cl"] / 255, rel=1e-5)
    assert log["grad_ratio"] == pytest.approx(1.5, rel=1e-4)
    assert log.keys() == LOG_KEYS | {"pcl_weight"}


class TinyPerceptualLoss(torch.nn.Module):
    """As BasicSR's PerceptualLoss: two losses of the same features, None if its weight is 0."""

    def __init__(self, perceptual_weight: float, style_weight: float) -> None:
        super().__init__()
        self.perceptual_weight, self.style_weight = perceptual_weight, style_weight

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        features, gt_features = (F.avg_pool2d(images, 3).square().flatten(2) for images in (x, gt))
        grams = [maps @ maps.mT / maps.shape[-1] for maps in (features, gt_features)]
        percep, style = F.l1_loss(features, gt_features), F.mse_loss(*grams)
        return (
            self.perceptual_weight * percep if self.perceptual_weight else None,
            self.style_weight * style if self.style_weight else None,
        )


@pytest.mark.parametrize(
    ("percep", "style", "pixel"), [(0.5, 3.0, True), (0.5, 0.0, False), (0.0, 3.0, True), (0.0, 0.0, True)]
)
def test_a_steps_gradient_is_that_of_the_sum_of_its_losses(
    percep: float, style: float, pixel: bool, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "TinyPerceptualLoss", TinyPerceptualLoss)
    keywords = {"perceptual_weight": percep, "style_weight": style}
    small["train"]["perceptual_opt"] = {"type": "TinyPerceptualLoss", **keywords}
    if not pixel:
        del small["train"]["pixel_opt"]
    net = build(strong(small))
    net_g, batch = copy.deepcopy(net.net_g), batches[0]
    sr = net_g(batch["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batch["gt"], net.net_d, generator=seeded_generator(3, 1))
    losses = dict(zip(("l_percep", "l_style"), TinyPerceptualLoss(**keywords)(sr, batch["gt"]), strict=True))
    losses = {name: loss for name, loss in losses.items() if loss is not None} | {"l_pcl": pcl}
    if pixel:
        losses = {"l_pix": F.l1_loss(sr, batch["gt"])} | losses
    sum(losses.values()).backward()

    (log,) = train_on(net, [batch])
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        torch.testing.assert_close(param.grad, expected.grad, rtol=1e-4, atol=1e-7)
    assert list(log)[: len(losses)] == list(losses)
    for name, loss in losses.items():
        assert log[name] == pytest.approx(loss.item(), rel=1e-5), name
