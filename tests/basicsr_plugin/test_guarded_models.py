"""Under `pcl-loss train` and `run` a model with a loop of its own is as safe from a bad batch as ours are."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import basicsr.models
import pytest
import torch
from bad_batches import add_batch_norm, check_no_trace, spoil, train_unread
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import MODEL_REGISTRY
from basicsr_fixtures import Batches, Build, Options, train_on, weights
from device_waits import Reads

from pcl_loss.basicsr_plugin import complete_options, guarded_models
from pcl_loss.discriminator_step import GuardedStep

LOOPS = ("own", "unfused", "GAN")


class OwnLoopModel(SRModel):  # type: ignore[misc]
    """Has an `optimize_parameters` of its own."""

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        losses = {"l_pix": self.cri_pix(self.output, self.gt)}
        losses["l_percep"], _ = self.cri_perceptual(self.output, self.gt)
        sum(losses.values()).backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)
        self.model_ema(self.ema_decay)


@pytest.fixture
def loops(baseline: Options, monkeypatch: pytest.MonkeyPatch) -> dict[str, Options]:
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "OwnLoopModel", OwnLoopModel)
    baseline["model_type"] = "OwnLoopModel"
    baseline["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
    loops = {loop: copy.deepcopy(baseline) for loop in LOOPS}
    loops["unfused"]["train"]["optim_g"]["fused"] = False
    # Spectral norm keeps buffers, in which a bad batch would stay.
    unet = {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 2}
    gan_opt = {"type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0}
    loops["GAN"] |= {"model_type": "SRGANModel", "network_d": unet}
    loops["GAN"]["train"] |= {
        "optim_d": dict(baseline["train"]["optim_g"]),
        "gan_opt": gan_opt | {"loss_weight": 0.1},
    }
    for options in loops.values():
        complete_options(options, is_pcl_model=False)
    return loops


@pytest.fixture
def guarded() -> Iterator[None]:
    """The models that are built are those of a run of `pcl-loss train`."""
    with guarded_models.guarded_models(basicsr.models):
        yield


@pytest.mark.parametrize("where", ["gt", "lq"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("loop", LOOPS)
def test_one_bad_pixel_leaves_no_trace(
    loop: str,
    value: float,
    where: str,
    loops: dict[str, Options],
    build: Build,
    batches: Batches,
    guarded: None,
    monkeypatch: Any,
) -> None:
    add_batch_norm(loops[loop], monkeypatch)
    check_no_trace(loops[loop], build, batches, where, value)


@pytest.mark.parametrize("broken", ["step", "statistics", "average", "second optimizer"])
def test_a_guard_that_does_not_hold_would_be_noticed(
    broken: str, loops: dict[str, Options], build: Build, batches: Batches, guarded: None, monkeypatch: Any
) -> None:
    loop = loops["GAN" if broken == "second optimizer" else "own"]
    add_batch_norm(loop, monkeypatch)
    Guard = guarded_models.Guard
    if broken == "step":
        monkeypatch.setattr(Guard, "_before_step", lambda *_: None)
    elif broken == "statistics":
        monkeypatch.setattr(guarded_models, "GuardedStep", lambda nets: GuardedStep(torch.nn.ReLU()))
    elif broken == "average":
        follow = Guard.__init__

        def init_and_follow(self: Any, model: Any) -> None:
            model_ema = model.model_ema
            follow(self, model)
            model.model_ema = model_ema

        monkeypatch.setattr(Guard, "__init__", init_and_follow)
    else:
        init = Guard.__init__

        def guard_the_first(self: Any, model: Any) -> None:
            optimizers, model.optimizers = model.optimizers, model.optimizers[:1]
            init(self, model)
            model.optimizers = optimizers

        monkeypatch.setattr(Guard, "__init__", guard_the_first)
    with pytest.raises(AssertionError):
        check_no_trace(loop, build, batches, "gt", math.nan)


def test_without_a_bad_batch_the_iteration_is_the_models_own_with_a_fused_adam(
    loops: dict[str, Options], build: Build, batches: Batches
) -> None:
    with guarded_models.guarded_models(basicsr.models):
        guarded = build(loops["own"])
    loops["own"]["train"]["optim_g"]["fused"] = True
    own = build(loops["own"])
    for net in (guarded, own):
        train_on(net, batches)
    for name in ("net_g", "net_g_ema"):
        for key, value in weights(getattr(own, name)).items():
            assert torch.equal(weights(getattr(guarded, name))[key], value)


@pytest.mark.parametrize(("loop", "more"), [("own", 0), ("unfused", 1)])
def test_the_guard_lets_a_step_wait_for_nothing_where_adam_is_fused(
    loop: str, more: int, loops: dict[str, Options], build: Build, batches: Batches
) -> None:
    loops[loop]["train"]["optim_g"].setdefault("fused", True)
    own = build(loops[loop])
    with guarded_models.guarded_models(basicsr.models):
        guarded = build(loops[loop])
    counts = []
    for net in (guarded, own):
        train_on(net, batches[:1])
        net.feed_data(batches[1])
        with Reads() as reads:
            net.optimize_parameters(2)
        counts.append(reads.count)
    assert counts[0] == counts[1] + more


def test_the_flags_wait_for_the_log(
    loops: dict[str, Options],
    build: Build,
    batches: Batches,
    guarded: None,
    logged: pytest.LogCaptureFixture,
) -> None:
    net = build(loops["own"])
    train_unread(net, spoil(batches, "gt", math.nan, 1))
    assert "not finite" not in logged.text
    net.get_current_log()
    assert "Iteration 2:" in logged.text
    assert "Files of the batch: hr/1a.png, hr/1b.png." in logged.text
    net.save(-1, -1)
    assert "1 of 6 steps were not finite and were left out." in logged.text


def test_a_state_of_an_adam_that_was_not_fused_is_taken(
    loops: dict[str, Options], build: Build, batches: Batches, guarded: None, tmp_path: Any
) -> None:
    net = build(loops["unfused"])
    train_on(net, batches[:2])
    net.save(0, 2)
    net = build(loops["own"])
    net.resume_training(torch.load(tmp_path / "training_states/2.state", weights_only=True))
    train_on(net, spoil(batches, "gt", math.nan, 2)[2:4], first_iter=3)
    assert (net.bad_steps.num_steps, net.bad_steps.num_bad) == (2, 1)


def test_train_ends_with_status_1_and_one_line(
    loops: dict[str, Options],
    run_pipeline: Callable[..., str],
    bad_data: None,
) -> None:
    options = loops["own"]
    options["train"]["max_bad_steps"] = 2
    options["val"] = None
    with pytest.raises(SystemExit) as stop:
        run_pipeline(options)
    assert isinstance(stop.value.code, str)
    assert stop.value.code.startswith("pcl-loss train: the last 2 steps in a row, up to iteration 2, were not finite")
