"""A batch that is not finite leaves no trace in the network that it would have trained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_criterion import all_equal, batch, criterion, run
from torch import Tensor

from pcl_loss import PCLCriterion
from pcl_loss.discriminator_step import DiscriminatorStep


def everything(crit: PCLCriterion) -> list[Tensor]:
    """E_D's weights and statistics, its Adam and its pending gradients, without the number of calls."""
    return [value for key, value in crit.state_dict().items() if not key.startswith("pcl")]


def spoilt_batch(where: str, value: float) -> tuple[Tensor, Tensor]:
    sr, hr = batch(7)
    with torch.no_grad():
        {"sr": sr, "hr": hr}[where][0, 1, 5, 9] = value
    return sr, hr


def check_a_spoilt_batch_leaves_no_trace(norm: str, where: str, value: float, update_every: int = 1) -> None:
    spoilt, clean = (criterion(norm=norm, update_every=update_every) for _ in range(2))
    for crit in (spoilt, clean):
        run(crit, range(2))
    for _ in range(update_every):
        assert not spoilt(*spoilt_batch(where, value)).isfinite()
    assert all_equal(everything(spoilt), everything(clean))
    for crit in (spoilt, clean):
        run(crit, range(2, 4))
    assert all_equal(everything(spoilt), everything(clean))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["sr", "hr"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_e_d(norm: str, where: str, value: float) -> None:
    check_a_spoilt_batch_leaves_no_trace(norm, where, value)


def test_calls_that_are_all_not_finite_make_no_step() -> None:
    check_a_spoilt_batch_leaves_no_trace("batch", "sr", math.nan, update_every=2)


def test_of_accumulated_calls_the_finite_ones_count() -> None:
    spoilt, clean = criterion(update_every=2), criterion()
    spoilt(*batch(0))
    spoilt(*spoilt_batch("sr", math.nan))
    clean(*batch(0))
    assert all_equal(everything(spoilt), everything(clean))


def test_a_step_that_is_not_skipped_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscriminatorStep, "apply", staticmethod(lambda optimizer, skip: optimizer.step()))
    with pytest.raises(AssertionError):
        check_a_spoilt_batch_leaves_no_trace("none", "sr", math.nan)


def test_statistics_that_are_not_restored_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcl_loss.discriminator_step.put_back", lambda kept, skip: None)
    with pytest.raises(AssertionError):
        check_a_spoilt_batch_leaves_no_trace("batch", "sr", math.nan)


@pytest.mark.parametrize(("optimizer", "keywords"), [(torch.optim.Adam, {"fused": True}), (torch.optim.RMSprop, {})])
def test_any_optimizer_takes_the_step_or_leaves_it_out(optimizer: Any, keywords: dict[str, Any]) -> None:
    weights = torch.ones(3, requires_grad=True)
    weights.grad = torch.ones(3)
    optimizer = optimizer([weights], lr=0.1, **keywords)
    DiscriminatorStep.apply(optimizer, torch.tensor(True))
    assert torch.equal(weights, torch.ones(3))
    DiscriminatorStep.apply(optimizer, torch.tensor(False))
    assert (weights < 1).all()
