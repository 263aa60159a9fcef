"""One iteration is the SR step with the E_D of before, and then E_D's step; nothing else moves."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.models.swinir_model import SwinIRModel
from basicsr.utils.registry import MODEL_REGISTRY
from basicsr_fixtures import (
    LOG_KEYS,
    Batches,
    Build,
    Options,
    assert_equal_weights,
    strong,
    train_on,
    weights,
    with_options,
)
from device_waits import WaitCounter
from helpers import skip_kornias_sigma_check
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pcl_loss import FixedEmbedding, PCLLoss, functional
from pcl_loss.basicsr_plugin import (
    OptionsError,
    PCLMixin,
    PCLModel,
    PCLSwinIRModel,
    complete_options,
    model,
    pcl_model,
    speed,
)
from pcl_loss.samples import seeded_generator


def check_one_iteration(net: Any, batch: dict[str, torch.Tensor]) -> None:
    """Both networks move as plain PyTorch steps written out from the paper's algorithm move their copies."""
    net_g, net_d = copy.deepcopy(net.net_g), copy.deepcopy(net.net_d)
    optim_g = torch.optim.Adam(net_g.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    sr = net_g(batch["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batch["gt"], net_d, generator=seeded_generator(3, 1))
    (F.l1_loss(sr, batch["gt"]) + pcl).backward()
    optim_g.step()

    optim_d = torch.optim.Adam(net_d.parameters(), lr=1e-3, betas=(0.9, 0.999), fused=True)
    logits = net_d(torch.cat([batch["gt"], sr.detach()]))
    functional.contrastive_discriminator_loss(logits[:2], logits[2:]).backward()
    optim_d.step()

    train_on(net, [batch])
    assert_equal_weights(weights(net.net_g), weights(net_g))
    assert_equal_weights(weights(net.net_d), weights(net_d))
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        assert torch.equal(param.grad, expected.grad), "E_D's step reached the SR network"


def test_one_iteration_is_the_sr_step_and_then_the_step_of_e_d(small: Options, build: Build, batches: Batches) -> None:
    check_one_iteration(build(strong(small)), batches[0])


def no_gradient(sr: torch.Tensor, losses: Any, scaler: Any) -> torch.Tensor:
    return torch.zeros_like(sr)


def swapped(loss: Any) -> Any:
    """E_D's loss with fake images for real ones."""
    return lambda self, net_d, hr, sr, *rest: loss(self, net_d, sr, hr, *rest)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (model, "gradient_at", no_gradient),
        (speed, "gradient_at", no_gradient),
        (model.DiscriminatorStep, "loss", swapped(model.DiscriminatorStep.loss)),
        (model.DiscriminatorStep, "apply", staticmethod(lambda optimizer, skip: None)),
        (model.DiscriminatorStep, "settle", lambda self, grads: grads[0].sum() * 0 + 1),
    ],
)
def test_a_mutant_of_the_iteration_is_caught(
    owner: Any, name: str, mutant: Any, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        check_one_iteration(build(strong(small)), batches[0])


def test_an_sr_image_that_keeps_its_graph_in_e_ds_step_would_be_noticed(
    small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    class Attached(PCLModel):  # type: ignore[misc, valid-type]
        """E_D's step sees SR with the SR network's graph."""

        def _optimize_net_d(self) -> Any:
            self.output = self.net_g(self.lq)
            return super()._optimize_net_d()

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "PCLModel", Attached)
    with pytest.raises(AssertionError):
        check_one_iteration(build(strong(small)), batches[0])


def test_the_sr_network_trains_as_its_baseline_up_to_pcl_start_iter(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    small["train"]["pcl_start_iter"] = 3
    baseline["train"]["optim_g"]["fused"] = True
    plain, net = build(baseline), build(strong(small))
    before = weights(net.net_d)
    train_on(plain, batches[:3])
    logs = train_on(net, batches[:3])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))
    assert all(log["l_pcl"] == 0 and log["l_cl"] > 0 for log in logs)
    assert any(not torch.equal(value, before[key]) for key, value in weights(net.net_d).items())

    plain.feed_data(batches[3])
    plain.optimize_parameters(4)
    (log,) = train_on(net, batches[3:4], first_iter=4)
    assert log["l_pcl"] > 0
    assert not torch.equal(net.net_g.conv_first.weight, plain.net_g.conv_first.weight)


def test_building_e_d_leaves_the_random_numbers_of_the_run_alone(
    baseline: Options, small: Options, build: Build
) -> None:
    plain = build(baseline)
    state = torch.random.get_rng_state()
    net = build(small)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))


def test_the_seed_decides_e_d(small: Options, build: Build) -> None:
    first, again = build(small), build(small)
    assert_equal_weights(weights(first.net_d), weights(again.net_d))
    other = build(small | {"manual_seed": 4})
    assert not torch.equal(first.net_d.head.weight, other.net_d.head.weight)


def test_warm_up_and_scheduler_hold_for_both_networks(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [5], "gamma": 0.5}
    net = build(small)
    rates = []
    for iteration, batch in enumerate(batches, 1):
        net.update_learning_rate(iteration, warmup_iter=3)
        net.feed_data(batch)
        net.optimize_parameters(iteration)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in net.optimizers])
    # BasicSR's warm-up stops an iteration short of the full rate.
    expected = [1e-3 / 3, 2e-3 / 3, 2e-3 / 3, 2e-3 / 3, 2e-3 / 3, 1e-3 / 3]
    assert rates == [pytest.approx([rate, rate], rel=1e-12) for rate in expected]


def test_a_pretrained_e_d_is_loaded(small: Options, build: Build, batches: Batches, tmp_path: Path) -> None:
    teacher = build(small)
    train_on(teacher, batches[:2])
    teacher.save(0, 2)
    small["path"]["pretrain_network_d"] = str(tmp_path / "models/net_d_2.pth")
    assert_equal_weights(weights(build(small).net_d), weights(teacher.net_d))


def test_a_frozen_e_d_embeds_and_is_never_trained(
    small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    teacher = build(small)
    teacher.save(0, 2)
    small["path"]["pretrain_network_d"] = str(tmp_path / "models/net_d_2.pth")
    small["train"]["net_d_frozen"] = True
    net = build(small)
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_d), weights(teacher.net_d))
    assert len(net.optimizers) == 1
    assert all(log.keys() == LOG_KEYS - {"l_d", "out_d_real", "out_d_fake"} and log["l_pcl"] > 0 for log in logs)


def test_a_model_that_derives_from_sr_model_gets_the_term() -> None:
    assert issubclass(PCLModel, (PCLMixin, SRModel))
    assert issubclass(PCLSwinIRModel, SwinIRModel)
    assert PCLSwinIRModel.test is PCLMixin.test
    assert PCLModel.__name__ == "PCLModel"
    assert PCLSwinIRModel.__name__ == "PCLSwinIRModel"


def test_swinir_trains_and_is_tested_on_sizes_off_its_window(small: Options, build: Build, batches: Batches) -> None:
    small["model_type"] = "PCLSwinIRModel"
    small["network_g"] = {
        "type": "SwinIR",
        "upscale": 4,
        "in_chans": 3,
        "img_size": 16,
        "window_size": 4,
        "img_range": 1.0,
        "depths": [1],
        "embed_dim": 8,
        "num_heads": [2],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
    }
    net = build(small)
    train_on(net, batches[:1])
    net.feed_data({"lq": torch.rand(1, 3, 14, 18)})
    net.test()
    assert net.output.shape == (1, 3, 56, 72)


@pytest.mark.parametrize("base", [ESRGANModel, dict, "SRModel"])
def test_a_base_that_trains_in_a_way_of_its_own_is_refused(base: Any) -> None:
    with pytest.raises(
        TypeError, match="PCLPerceptualLoss" if base is ESRGANModel else "derives from BasicSR's SRModel"
    ):
        pcl_model(base)


@pytest.mark.parametrize("make", [pcl_model, lambda base: type("Speed", (speed.SpeedMixin, base), {})])
def test_a_loss_of_the_base_model_that_would_not_be_used_is_refused(
    make: Any, small: Options, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithAnother(SRModel):  # type: ignore[misc]
        def init_training_settings(self) -> None:
            self.cri_fft = torch.nn.L1Loss()
            super().init_training_settings()

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "PCLModel", make(WithAnother))
    with pytest.raises(OptionsError, match=r"would not use cri_fft.*PCLPerceptualLoss"):
        build(small)


def test_pcl_every_applies_the_term_at_every_nth_iteration_alone_with_the_same_weight(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    baseline["train"]["optim_g"]["fused"] = True
    plain, net = build(baseline), build(with_options(strong(small), {"pcl_every": 3}))
    before = weights(net.net_d)
    train_on(plain, batches[:2])
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))
    assert any(not torch.equal(value, before[key]) for key, value in weights(net.net_d).items())

    net_g = copy.deepcopy(net.net_g)
    sr = net_g(batches[2]["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batches[2]["gt"], net.net_d, generator=seeded_generator(3, 3))
    (F.l1_loss(sr, batches[2]["gt"]) + pcl).backward()
    (due,) = train_on(net, batches[2:3], first_iter=3)
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        assert torch.equal(param.grad, expected.grad)

    (between,) = train_on(net, batches[3:4], first_iter=4)
    assert all(log.keys() == LOG_KEYS for log in [*logs, due, between])
    assert all(log["l_pcl"] == log["grad_ratio"] == 0 and log["l_cl"] > 0 for log in logs)
    assert due["l_pcl"] == pytest.approx(pcl.item(), rel=1e-6)
    for key in ("l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio"):
        assert between[key] == due[key], key
    assert between["l_pix"] != due["l_pix"]
    assert between["l_d"] != due["l_d"]


def test_between_the_iterations_of_pcl_every_the_loss_is_not_computed(
    small: Options, build: Build, batches: Batches
) -> None:
    net = build(with_options(small, {"pcl_every": 3, "pcl_start_iter": 3}))
    calls = []
    net.cri_pcl.register_forward_hook(lambda *_: calls.append(iteration))
    for iteration, batch in enumerate(batches, 1):
        train_on(net, [batch], first_iter=iteration)
    assert calls == [1, 3, 6]  # at the first, so that the log has something to show


@pytest.mark.parametrize("where", ["lq", "gt"])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_e_d(
    where: str, small: Options, build: Build, batches: Batches
) -> None:
    net = build(small)
    train_on(net, batches[:2])
    before, state = weights(net.net_d), copy.deepcopy(net.optimizer_d.state_dict()["state"])
    spoilt = copy.deepcopy(batches[2])
    spoilt[where][0, 0, 3, 5] = float("nan")
    train_on(net, [spoilt], first_iter=3)
    assert_equal_weights(weights(net.net_d), before)
    for param, expected in state.items():
        assert_equal_weights(net.optimizer_d.state_dict()["state"][param], expected)


# --- hidden waits ---


@pytest.fixture
def waits(small: Options, build: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What three iterations on fake CUDA tensors wait for, without what autograd does, which does not run there."""
    skip_kornias_sigma_check(monkeypatch)
    # Any gradient of the right shape stands in, and optimizers stand still.
    for module in (model, speed):
        monkeypatch.setattr(module, "gradient_at", lambda sr, losses, scaler: torch.rand_like(sr))
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)

    def zero_grad(self: Any) -> None:
        for param in self.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", zero_grad)

    def waits(train: Options) -> list[str]:
        small["train"] |= {"pcl_start_iter": 1, "pcl_every": 2} | train
        small["train"]["pcl_opt"] = {"type": "PCLLoss", "negatives": ["blur", "lq"]}
        complete_options(small, is_pcl_model=True)
        monkeypatch.setattr(model, "complete_options", lambda *_, **__: None)  # it builds E_D once, for its checks
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # a fake tensor cannot be moved in place
        with FakeTensorMode(), WaitCounter() as counter:
            with torch.device("cuda"):
                net = build(small | {"num_gpu": 1})
            net.lq, net.gt = (torch.rand(2, 3, size, size, device="cuda") for size in (16, 64))
            net.optimize_parameters(1)  # BasicSR's EDSR moves its mean colour
            counter.waits.clear()
            for iteration in (2, 3, 4):
                net.optimize_parameters(iteration)
        assert net._log_values.device.type == "cuda"
        return counter.waits

    return waits


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("train", [{}, {"pcl_grad_ratio": 0.5}])
def test_an_iteration_does_not_wait_for_the_gpu(train: Options, waits: Callable[..., list[str]]) -> None:
    assert not waits(train)


@pytest.mark.usefixtures("fake_cuda")
def test_a_copy_that_waits_for_the_gpu_would_be_noticed(waits: Callable[..., list[str]], monkeypatch: Any) -> None:
    end = PCLModel._end_iteration
    late = lambda self, log: end(self, log | {"l_d": torch.ones(()).to("cuda")})  # noqa: E731
    monkeypatch.setattr(PCLModel, "_end_iteration", late)
    assert len(waits({})) == 3


# --- in several processes ---


def test_all_ranks_have_the_mean_of_the_statistics_that_each_ranks_batch_gives(two_ranks: list[dict[str, Any]]) -> None:
    for steps in zip(*(results["model_steps"] for results in two_ranks), strict=True):
        assert_equal_weights(steps[0]["net_d"], steps[1]["net_d"])
        names = [name for name in steps[0]["own"] if "running" in name]
        assert len(names) == 16
        for name in names:
            own, others = (step["own"][name] for step in steps)
            assert not torch.equal(own, others)
            torch.testing.assert_close(steps[0]["net_d"][name], (own + others) / 2)


def test_e_d_moves_by_the_mean_gradient_of_all_ranks(two_ranks: list[dict[str, Any]]) -> None:
    for steps in zip(*(results["model_steps"] for results in two_ranks), strict=True):
        for name, own in steps[0]["own_grads"].items():
            expected = (own + steps[1]["own_grads"][name]) / 2
            for step in steps:
                torch.testing.assert_close(step["grads"][name], expected, rtol=1e-4, atol=1e-7)


# --- the light recipe ---


def test_the_light_recipe_has_no_e_d_and_its_step_has_the_gradient_of_both_losses(
    light: Options, build: Build, batches: Batches
) -> None:
    model, twin = build(copy.deepcopy(light)), build(copy.deepcopy(light))
    assert not hasattr(model, "net_d")
    assert len(model.optimizers) == 1
    (log,) = train_on(model, batches[:1])
    assert set(log) == LOG_KEYS - {"l_d", "out_d_real", "out_d_fake"}

    lq, hr = batches[0]["lq"], batches[0]["gt"]
    sr = twin.net_g(lq)
    pcl = PCLLoss(recipe="light")
    loss = F.l1_loss(sr, hr) + pcl(sr, hr, FixedEmbedding(), generator=seeded_generator(3, 1))
    grads = torch.autograd.grad(loss, list(twin.net_g.parameters()))
    for param, grad in zip(model.net_g.parameters(), grads, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=1e-4, atol=1e-7)
