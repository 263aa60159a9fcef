"""A contrastive term that has stopped to act is said once, with what to change."""

from typing import Any

import pytest
import torch
from basicsr_fixtures import Batches, Build, Options, train_on

from pcl_loss.basicsr_plugin.collapse import CollapseWatch

Logged = pytest.LogCaptureFixture


@pytest.mark.parametrize(("neg_sim", "is_said"), [(-0.9995, 1), (0.99, 0)])
def test_similarities_at_their_bound_are_said_once_and_not_in_the_first_steps(
    neg_sim: float, is_said: int, logged: Logged
) -> None:
    watch = CollapseWatch()
    log = {"pos_sim": 0.9996, "neg_sim": neg_sim}
    watch.look(99, log, 1.0)
    assert not logged.records
    watch.look(100, log, 1.0)
    watch.look(101, log, 1.0)
    assert logged.text.count("similarities are at their bound") == logged.text.count("train.optim_d.lr") == is_said


@pytest.mark.parametrize(("last", "is_said"), [(0.009, True), (0.011, False)])
def test_a_gradient_far_below_its_median_is_said(last: float, is_said: bool, logged: Logged) -> None:
    watch = CollapseWatch()
    for step, norm in enumerate([0.5, 2.0, 1.0, 0.9, 1.5, last], 98):
        watch.look(step, {"pos_sim": 0.6, "neg_sim": 0.5}, norm)
    assert ("its gradient norm is" in logged.text) is is_said


def test_a_model_whose_discriminator_collapses_says_so(
    small: Options, build: Build, batches: Batches, logged: Logged, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pcl_loss.basicsr_plugin.collapse.FIRST_STEPS", 3)
    small["train"]["optim_d"] = {"type": "Adam", "lr": 0.0}
    net = build(small)
    train_on(net, batches)
    assert "collapsed" not in logged.text
    with torch.no_grad():
        for block in net.net_d.blocks:
            block.norm.bias.fill_(1e6)  # every map is this constant
    train_on(net, batches[:1], first_iter=7)
    assert logged.text.count("has collapsed") == 1


@pytest.mark.parametrize("start", [0, 99])
def test_what_is_watched_is_the_gradient_without_its_weight(
    start: int, small: Options, build: Build, batches: Batches
) -> None:
    net = build(small | {"train": small["train"] | {"pcl_start_iter": start}})
    norms: list[float] = []
    net.watch.look = lambda _steps, _log, norm: norms.append(norm)
    (log,) = train_on(net, batches[:1])
    # dL_1/dSR is the sign over the number of pixels: its norm is 1 / sqrt of that number.
    assert norms == ([] if start else pytest.approx([log["grad_ratio"] * (2 * 3 * 64 * 64) ** -0.5], rel=1e-4))
