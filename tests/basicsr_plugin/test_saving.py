"""A resumed run goes on as if it had not been interrupted."""

import copy
import functools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr_fixtures import Batches, Build, Options, assert_equal_weights, train_on, weights, with_options

RESUMED = [
    {},
    {"pcl_every": 2},
    {"pcl_grad_ratio": 0.5},
    {"amp": "bf16"},
    {"amp": "fp16", "pcl_grad_ratio": 0.5},
    {"channels_last": True},
    {"compile": {"backend": "aot_eager"}},
]


@pytest.mark.parametrize("train", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    train: Options, small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    with_options(small, train)
    whole = build(small)
    train_on(whole, batches)

    first = build(small)
    train_on(first, batches[:3])
    first.save(0, 3)
    small["path"] |= {f"pretrain_network_{net}": str(tmp_path / f"models/net_{net}_3.pth") for net in "gd"}
    second = build(small)
    second.resume_training(torch.load(tmp_path / "training_states/3.state", weights_only=True))
    train_on(second, batches[3:], first_iter=4)

    for name in ("net_g", "net_g_ema", "net_d"):
        assert_equal_weights(weights(getattr(second, name)), weights(getattr(whole, name)))
    for resumed, uninterrupted in zip(second.optimizers, whole.optimizers, strict=True):
        for param, state in uninterrupted.state_dict()["state"].items():
            assert_equal_weights(resumed.state_dict()["state"][param], state)
    assert len(second.optimizers) == len(second.schedulers) == 2
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    if whole.balance is not None:
        assert_equal_weights(weights(second.balance), weights(whole.balance))


def test_a_resumed_run_without_its_balance_says_so(
    small: Options, build: Build, batches: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    net = build(small)
    train_on(net, batches[:1])
    net.save(0, 1)
    net = build(with_options(small, {"pcl_grad_ratio": 0.5}))
    monkeypatch.setattr(logging.getLogger("basicsr"), "propagate", True)
    net.resume_training(torch.load(tmp_path / "training_states/1.state", weights_only=True))
    assert "pcl_state_1.pth does not hold the balance's state" in caplog.text


def test_a_baseline_under_fp16_resumes_with_its_scale(
    baseline: Options, build: Build, batches: Batches, tmp_path: Path, monkeypatch: Any
) -> None:
    # So high that the first steps overflow.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**31))
    baseline = with_options(baseline | {"model_type": "SpeedSRModel"}, {"amp": "fp16"})
    whole = build(baseline)
    train_on(whole, batches)

    first = build(baseline)
    train_on(first, batches[:3])
    first.save(0, 3)
    baseline["path"]["pretrain_network_g"] = str(tmp_path / "models/net_g_3.pth")
    second = build(baseline)
    second.resume_training(torch.load(tmp_path / "training_states/3.state", weights_only=True))
    train_on(second, batches[3:], first_iter=4)
    assert_equal_weights(weights(second.net_g), weights(whole.net_g))
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert second.scaler.get_scale() < 2.0**31


@pytest.mark.parametrize(("before", "after"), [({}, {"amp": "fp16"}), ({"amp": "fp16"}, {})], ids=str)
def test_a_run_may_be_resumed_with_another_amp(
    before: Options, after: Options, small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    first = build(with_options(copy.deepcopy(small), before))
    train_on(first, batches[:1])
    first.save(0, 1)
    second = build(with_options(small, after))
    second.resume_training(torch.load(tmp_path / "training_states/1.state", weights_only=True))
    (log,) = train_on(second, batches[1:2], first_iter=2)
    assert all(math.isfinite(value) for value in log.values())
    assert [optimizer.param_groups[0]["fused"] for optimizer in second.optimizers] == [True, True]
