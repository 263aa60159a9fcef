"""The balance is a ratio of two running means, and never waits for a GPU."""

import math
from typing import Any

import pytest
import ranks
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pcl_loss.basicsr_plugin.gradients import GradientBalance


def test_the_weight_follows_its_recursion() -> None:
    balance, mean = GradientBalance(0.5), 0.0
    for n in range(1, 61):
        pix, cl = 1.0 + 0.1 * math.sin(n), 0.01 * (2 + math.cos(n)) * n
        mean += max(0.4, 1 / n) * (math.log(pix / cl) - mean)
        weight = balance(torch.tensor(pix), torch.tensor(cl))
        assert weight.item() == pytest.approx(0.5 * math.exp(mean), rel=1e-4)


def test_a_first_step_is_weighed_by_itself() -> None:
    assert GradientBalance(2.0)(torch.tensor(3.0), torch.tensor(0.5)).item() == pytest.approx(12.0)


@pytest.mark.parametrize("bad", [math.inf, math.nan, 0.0])
def test_a_norm_of_zero_or_not_finite_leaves_the_mean_alone(bad: float) -> None:
    balance = GradientBalance(1.0)
    balance(torch.tensor(1.0), torch.tensor(2.0))
    before = {key: value.clone() for key, value in balance.state_dict().items()}
    assert balance(torch.tensor(1.0), torch.tensor(bad)).item() == pytest.approx(0.5)
    assert all(torch.equal(value, before[key]) for key, value in balance.state_dict().items())


def test_the_state_dict_carries_it_on() -> None:
    first, second = GradientBalance(1.0), GradientBalance(1.0)
    for n in (1.0, 2.0, 3.0):
        first(torch.tensor(n), torch.tensor(n * n))
    second.load_state_dict(first.state_dict())
    norms = torch.tensor(5.0), torch.tensor(6.0)
    assert torch.equal(first(*norms), second(*norms))


def test_all_ranks_use_the_weight_of_their_mean_ratio(two_ranks: list[dict[str, Any]]) -> None:
    ratios = torch.stack([norms[:, 0] / norms[:, 1] for norms in (ranks.norms_of(0), ranks.norms_of(1))])
    mean, expected = 0.0, []
    for n, log_ratio in enumerate(ratios.log().mean(0).tolist(), 1):
        mean += max(0.4, 1 / n) * (log_ratio - mean)
        expected.append(0.5 * math.exp(mean))
    for results in two_ranks:
        assert results["balanced_weights"].tolist() == pytest.approx(expected, rel=1e-4)


def test_nothing_waits_for_a_gpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        assert GradientBalance(1.0)(torch.rand(()), torch.rand(())).device.type == "cuda"
