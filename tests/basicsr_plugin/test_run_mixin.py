"""In a run a batch that is not finite leaves no trace in any model, and the model's own step runs."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_batches import add_batch_norm, check_no_trace, everything, spoil
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from basicsr_fixtures import Batches, Build, Options, assert_equal_weights, train_on, with_options
from device_waits import Reads

from pcl_loss.basicsr_plugin import complete_options, run_mixin
from pcl_loss.basicsr_plugin.run_mixin import BadStepsError, RunMixin

Roads = dict[str, Options]
ROADS = ("PCL", "light", "perceptual", "L1", "own", "unfused", "GAN")


class OwnLoopModel(SRModel):  # type: ignore[misc]
    """Has a step of its own, as a codebase with clipped gradients has."""

    num_own_steps = 0

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        losses = {"l_pix": self.cri_pix(self.output, self.gt)}
        losses["l_percep"], _ = self.cri_perceptual(self.output, self.gt)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.net_g.parameters(), 1e-3)
        self.optimizer_g.step()
        self.num_own_steps += 1
        self.log_dict = self.reduce_loss_dict(losses)
        self.model_ema(self.ema_decay)


@pytest.fixture
def roads(baseline: Options, small: Options, monkeypatch: pytest.MonkeyPatch) -> Roads:
    """Options by road; the last three have loops of their own."""
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "OwnLoopModel", OwnLoopModel)
    roads = {road: copy.deepcopy(baseline) for road in ROADS} | {"PCL": small, "light": copy.deepcopy(small)}
    roads["light"]["train"]["pcl_opt"] = {"type": "PCLLoss", "recipe": "light"}
    del roads["light"]["network_d"]
    for road in ("perceptual", "own", "unfused", "GAN"):
        roads[road]["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
        roads[road]["train"]["optim_g"]["fused"] = road != "unfused"
    for road in ("own", "unfused"):
        roads[road]["model_type"] = "OwnLoopModel"
    # Spectral norm keeps buffers, in which a bad batch would stay.
    unet = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 2}
    gan_opt = {"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0}
    roads["GAN"] |= {"model_type": "SRGANModel", "network_d": unet}
    roads["GAN"]["train"] |= {"optim_d": dict(baseline["train"]["optim_g"]), "gan_opt": gan_opt | {"loss_weight": 0.1}}
    for options in roads.values():
        complete_options(options, is_pcl_model=options["model_type"] == "PCLModel")
    return roads


# --- a bad batch ---


@pytest.mark.parametrize(
    ("road", "where", "value"),
    [*((road, "gt", math.nan) for road in ROADS), ("PCL", "lq", math.inf), ("own", "lq", math.inf)],
)
def test_one_bad_pixel_leaves_no_trace(
    road: str,
    where: str,
    value: float,
    roads: Roads,
    build_in_run: Build,
    batches: Batches,
    monkeypatch: Any,
) -> None:
    add_batch_norm(roads[road], monkeypatch)
    check_no_trace(roads[road], build_in_run, batches, where, value)


@pytest.mark.parametrize(
    ("road", "method", "broken"),
    [
        ("own", "_before_step", lambda *_: None),
        ("own", "model_ema", lambda self, *given, **keywords: super(RunMixin, self).model_ema(*given, **keywords)),
        ("PCL", "model_ema", lambda self, *given, **keywords: super(RunMixin, self).model_ema(*given, **keywords)),
        ("GAN", None, lambda kept, skip: None),
    ],
)
def test_a_guard_that_does_not_hold_would_be_noticed(
    road: str,
    method: str | None,
    broken: Any,
    roads: Roads,
    build_in_run: Build,
    batches: Batches,
    monkeypatch: Any,
) -> None:
    add_batch_norm(roads[road], monkeypatch)
    monkeypatch.setattr(run_mixin if method is None else RunMixin, method or "put_back", broken)
    with pytest.raises(AssertionError):
        check_no_trace(roads[road], build_in_run, batches, "gt" if road == "own" else "lq", math.nan)


def test_under_fp16_an_overflowing_batch_costs_one_step_and_a_scale_that_is_tried_is_no_bad_one(
    small: Options, build_in_run: Build, batches: Batches
) -> None:
    net = build_in_run(with_options(small, {"amp": "fp16", "max_bad_steps": 2}))
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    train_on(net, batches)
    assert net.scaler.get_scale() < 2.0**60
    assert net.bad_steps.num_bad == 0
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    train_on(net, spoil(batches, "lq", 1e30, 1), first_iter=7)
    assert net.bad_steps.num_bad == 1
    assert all(value.isfinite().all() for value in everything(net).values())


# --- what is said of it ---


def test_the_first_bad_step_names_its_files_when_the_log_is_read_and_the_end_says_how_many_there_were(
    roads: Roads, build_in_run: Build, batches: Batches, logged: pytest.LogCaptureFixture
) -> None:
    net = build_in_run(roads["own"])
    for iteration, batch in enumerate(spoil(batches, "gt", math.nan, 1, 3, 4), 1):
        net.feed_data(batch)
        net.optimize_parameters(iteration)
    assert "not finite" not in logged.text
    net.get_current_log()
    (line,) = [record.getMessage() for record in logged.records if "not finite" in record.getMessage()]
    assert line.startswith("Iteration 2:")
    assert "Files of the batch: hr/1a.png, hr/1b.png." in line
    net.save(-1, -1)
    assert "3 of 6 steps were not finite and were left out." in logged.text


def test_so_many_in_a_row_end_the_run(small: Options, build_in_run: Build, batches: Batches) -> None:
    net = build_in_run(with_options(small, {"max_bad_steps": 3}))
    train_on(net, spoil(batches, "gt", math.nan, 0, 1, 3, 4)[:5])
    before = everything(net)
    message = r"last 3 steps in a row, up to iteration 6, .* iteration 3\..*hr/5a.png, hr/5b.png"
    with pytest.raises(BadStepsError, match=message):
        train_on(net, spoil(batches, "gt", math.nan, 5)[5:], first_iter=6)
    assert_equal_weights(everything(net), before)


def test_train_ends_with_status_1_and_one_line(
    roads: Roads, run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = SRModel.feed_data
    monkeypatch.setattr(SRModel, "feed_data", lambda self, data: feed(self, data | {"gt": math.nan * data["gt"]}))
    roads["own"]["train"]["max_bad_steps"] = 2
    roads["own"]["val"] = None
    with pytest.raises(SystemExit, match=r"pcl-loss train: the last 2 steps in a row, up to iteration 2,.*\.png"):
        run_pipeline(roads["own"])


# --- the model's own step ---


def test_the_models_own_step_runs_and_without_a_bad_batch_nothing_differs(
    roads: Roads, build: Build, build_in_run: Build, batches: Batches
) -> None:
    in_run, own = build_in_run(roads["own"]), build(roads["own"])
    assert type(in_run).__name__ == "OwnLoopModel"
    for net in (in_run, own):
        train_on(net, batches)
    assert in_run.num_own_steps == 6
    assert_equal_weights(everything(in_run), everything(own))


@pytest.mark.parametrize(("road", "more"), [("own", 0), ("unfused", 1), ("GAN", 0)])
def test_a_step_waits_for_nothing_more_where_adam_is_fused(
    road: str, more: int, roads: Roads, build: Build, build_in_run: Build, batches: Batches
) -> None:
    roads["GAN"]["train"]["optim_d"]["fused"] = True
    counts = []
    for net in (build_in_run(roads[road]), build(roads[road])):
        train_on(net, batches[:1])
        net.feed_data(batches[1])
        with Reads() as reads:
            net.optimize_parameters(2)
        counts.append(reads.count)
    assert counts[0] == counts[1] + more
