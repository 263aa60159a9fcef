"""A batch that is not finite leaves no trace in a BasicSR run, is named once, and many in a row end the run."""

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_batches import add_batch_norm, check_no_trace, everything, spoil, train_unread
from basicsr_fixtures import Batches, Build, Options, assert_equal_weights, train_on, with_options

from pcl_loss.basicsr_plugin import complete_options
from pcl_loss.basicsr_plugin.bad_steps import BadStepsError
from pcl_loss.discriminator_step import GuardedStep


@pytest.fixture
def roads(baseline: Options, small: Options) -> dict[str, Options]:
    light = copy.deepcopy(small)
    light["train"]["pcl_opt"] = {"type": "PCLLoss", "recipe": "light"}
    del light["network_d"]
    perceptual = {"type": "PCLPerceptualLoss", "num_feat": 2}
    roads = {
        "PCL": small,
        "light": light,
        "perceptual": with_options(baseline | {"train": dict(baseline["train"])}, {"perceptual_opt": perceptual}),
        "L1": baseline | {"model_type": "SpeedSRModel"},
    }
    for options in roads.values():
        complete_options(options, is_pcl_model=options["model_type"] == "PCLModel")
    return roads


@pytest.mark.parametrize("where", ["gt", "lq"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("road", ["PCL", "light", "perceptual", "L1"])
def test_one_bad_pixel_leaves_no_trace(
    road: str, value: float, where: str, roads: dict[str, Options], build: Build, batches: Batches, monkeypatch: Any
) -> None:
    add_batch_norm(roads[road], monkeypatch)
    check_no_trace(roads[road], build, batches, where, value)


@pytest.mark.parametrize("train", [{"amp": "bf16"}, {"pcl_grad_ratio": 0.5}, {"optim": "foreach"}], ids=str)
def test_nor_with_other_keys(train: Options, small: Options, build: Build, batches: Batches) -> None:
    if train.pop("optim", None):
        small["train"]["optim_g"]["foreach"] = True
    check_no_trace(with_options(small, train), build, batches, "gt", math.nan)


def test_nor_with_a_frozen_discriminator(small: Options, build: Build, batches: Batches, tmp_path: Any) -> None:
    torch.save({"params": build(small).net_d.state_dict()}, tmp_path / "net_d.pth")
    small["path"]["pretrain_network_d"] = str(tmp_path / "net_d.pth")
    check_no_trace(with_options(small, {"net_d_frozen": True}), build, batches, "gt", math.nan)


@pytest.mark.parametrize("broken", ["apply", "settle", "average"])
def test_a_guard_that_does_not_hold_would_be_noticed(
    broken: str, roads: dict[str, Options], build: Build, batches: Batches, monkeypatch: Any
) -> None:
    from pcl_loss.basicsr_plugin.speed import SpeedMixin

    add_batch_norm(roads["PCL"], monkeypatch)
    if broken == "apply":
        monkeypatch.setattr(GuardedStep, "apply", staticmethod(lambda optimizer, skip: optimizer.step()))
    elif broken == "average":
        monkeypatch.setattr(SpeedMixin, "_follow_net_g", lambda self: self.model_ema(self.ema_decay))
    else:
        settle = GuardedStep.settle

        def settle_and_leave_the_buffers(self: Any, grads: Any) -> torch.Tensor:
            self._buffers = []
            return settle(self, grads)

        monkeypatch.setattr(GuardedStep, "settle", settle_and_leave_the_buffers)
    with pytest.raises(AssertionError):
        check_no_trace(roads["PCL"], build, batches, "lq", math.nan)


def test_under_fp16_an_overflowing_batch_costs_one_step(small: Options, build: Build, batches: Batches) -> None:
    net = build(with_options(small, {"amp": "fp16"}))
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    steps = spoil(batches * 5, "lq", 1e30, 10)
    train_on(net, steps)
    assert len(steps) == 30
    assert {state["step"].item() for optimizer in net.optimizers for state in optimizer.state.values()} == {29}
    assert net.bad_steps.num_bad == 1
    assert all(value.isfinite().all() for value in everything(net).values())


def test_scales_that_fp16_tries_are_no_bad_steps(small: Options, build: Build, batches: Batches) -> None:
    net = build(with_options(small, {"amp": "fp16", "max_bad_steps": 1}))
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    train_on(net, batches)
    assert net.scaler.get_scale() < 2.0**60
    assert net.bad_steps.num_bad == 0


def test_the_first_bad_step_names_its_files_and_the_end_says_how_many_there_were(
    small: Options, build: Build, batches: Batches, logged: pytest.LogCaptureFixture
) -> None:
    net = build(small)
    train_on(net, spoil(batches, "gt", math.nan, 1, 3, 4))
    warnings = [record.getMessage() for record in logged.records if record.levelno == logging.WARNING]
    (line,) = [line for line in warnings if "not finite" in line]
    assert line.startswith("Iteration 2:")
    assert "Files of the batch: hr/1a.png, hr/1b.png." in line
    net.save(-1, -1)
    assert "3 of 6 steps were not finite and were left out." in logged.text


def test_the_flags_are_read_with_the_log_and_not_before(
    small: Options, build: Build, batches: Batches, logged: pytest.LogCaptureFixture
) -> None:
    net = build(small)
    train_unread(net, spoil(batches, "gt", math.nan, 1))
    assert "not finite" not in logged.text
    net.get_current_log()
    assert "Iteration 2:" in logged.text
    assert net.bad_steps.num_steps == 6


def test_so_many_in_a_row_end_the_run(small: Options, build: Build, batches: Batches) -> None:
    net = build(with_options(small, {"max_bad_steps": 3}))
    train_on(net, spoil(batches, "gt", math.nan, 0, 1, 3, 4)[:5])
    before = everything(net)
    message = r"last 3 steps in a row, up to iteration 6, .* iteration 3\..*hr/5a.png, hr/5b.png"
    with pytest.raises(BadStepsError, match=message):
        train_on(net, spoil(batches, "gt", math.nan, 5)[5:], first_iter=6)
    assert_equal_weights(everything(net), before)


def test_one_in_a_row_is_the_least(small: Options) -> None:
    with pytest.raises(ValueError, match=r"train\.max_bad_steps must be at least 1, got 0"):
        complete_options(with_options(small, {"max_bad_steps": 0}), is_pcl_model=True)


def test_train_ends_with_status_1_and_one_line(
    small: Options, run_pipeline: Callable[..., str], bad_data: None, tmp_path: Any
) -> None:
    small["train"]["max_bad_steps"] = 2
    small["val"] = None
    with pytest.raises(SystemExit) as stop:
        run_pipeline(small)
    assert isinstance(stop.value.code, str)
    assert stop.value.code.startswith("pcl-loss train: the last 2 steps in a row, up to iteration 2, were not finite")
    assert "chelsea.png" in stop.value.code or "coffee.png" in stop.value.code or "astronaut.png" in stop.value.code
