"""One iteration is the SR step with the E_D of before, and then E_D's step; nothing else moves."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
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
from pcl_loss.basicsr_plugin import OptionsError, PCLModel, complete_options, model, pcl_model, speed
from pcl_loss.samples import seeded_generator


def gradients(net: torch.nn.Module) -> list[Any]:
    return [param.grad for param in net.parameters()]


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
    assert all(map(torch.equal, gradients(net.net_g), gradients(net_g))), "E_D's step reached the SR network"


def test_one_iteration_is_the_sr_step_and_then_the_step_of_e_d(small: Options, build: Build, batches: Batches) -> None:
    check_one_iteration(build(strong(small)), batches[0])


def no_gradient(sr: torch.Tensor, losses: Any, scaler: Any) -> torch.Tensor:
    return torch.zeros_like(sr)


def fake_for_real(self: Any, net_d: Any, hr: Any, sr: Any, *rest: Any, loss: Any = model.DiscriminatorStep.loss) -> Any:
    return loss(self, net_d, sr, hr, *rest)


def sr_with_its_graph(self: Any, current_iter: int, step: Any = speed.SpeedMixin._optimize_net_g) -> Any:
    log = step(self, current_iter)
    self.output = self.net_g(self.lq)
    return log


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (model, "gradient_at", no_gradient),
        (speed, "gradient_at", no_gradient),
        (model.DiscriminatorStep, "loss", fake_for_real),
        (model.DiscriminatorStep, "apply", staticmethod(lambda optimizer, skip: None)),
        (model.DiscriminatorStep, "settle", lambda self, grads: grads[0].sum() * 0 + 1),
        (speed.SpeedMixin, "_optimize_net_g", sr_with_its_graph),
    ],
)
def test_a_mutant_of_the_iteration_would_be_noticed(
    owner: Any, name: str, mutant: Any, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        check_one_iteration(build(strong(small)), batches[0])


def test_the_sr_network_trains_as_its_baseline_up_to_pcl_start_iter(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    small["train"]["pcl_start_iter"] = 3
    baseline["train"]["optim_g"]["fused"] = True
    plain, state = build(baseline), torch.random.get_rng_state()
    net = build(strong(small))
    assert torch.equal(torch.random.get_rng_state(), state), "E_D's weights came out of the run's random numbers"
    before = net.net_d.head.weight.clone()
    train_on(plain, batches[:3])
    logs = train_on(net, batches[:3])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))
    assert not torch.equal(net.net_d.head.weight, before)
    assert all(log["l_pcl"] == 0 and log["l_cl"] > 0 for log in logs)
    assert train_on(net, batches[3:4], first_iter=4)[0]["l_pcl"] > 0


def test_a_frozen_e_d_is_loaded_embeds_and_is_never_trained(
    small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    teacher = build(small)
    train_on(teacher, batches[:1])
    teacher.save(0, 2)
    small["path"]["pretrain_network_d"] = str(tmp_path / "models/net_d_2.pth")
    small["train"]["net_d_frozen"] = True
    net = build(small)
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_d), weights(teacher.net_d))
    assert len(net.optimizers) == 1
    assert all(log.keys() == LOG_KEYS - {"l_d", "out_d_real", "out_d_fake"} and log["l_pcl"] > 0 for log in logs)


def test_swinir_trains_and_is_tested_on_sizes_off_its_window(small: Options, build: Build, batches: Batches) -> None:
    small["model_type"] = "PCLSwinIRModel"
    tiny = {"depths": [1], "embed_dim": 8, "num_heads": [2], "mlp_ratio": 2, "img_range": 1.0, "in_chans": 3}
    small["network_g"] = {"type": "SwinIR", "upscale": 4, "img_size": 16, "window_size": 4} | tiny
    small["network_g"]["upsampler"] = "pixelshuffledirect"
    net = build(small)
    train_on(net, batches[:1])
    net.feed_data({"lq": torch.rand(1, 3, 14, 18)})
    net.test()
    assert net.output.shape == (1, 3, 56, 72)


@pytest.mark.parametrize("base", [ESRGANModel, "SRModel"])
def test_a_base_that_trains_in_a_way_of_its_own_is_refused(base: Any) -> None:
    with pytest.raises(TypeError, match=r"SRModel.*PCLPerceptualLoss"):
        pcl_model(base)


def test_a_loss_of_the_base_model_that_would_not_be_used_is_refused(
    small: Options, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithAnother(SRModel):  # type: ignore[misc]
        def init_training_settings(self) -> None:
            self.cri_fft = torch.nn.L1Loss()
            super().init_training_settings()

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "PCLModel", pcl_model(WithAnother))
    with pytest.raises(OptionsError, match=r"would not use cri_fft.*PCLPerceptualLoss"):
        build(small)


def test_pcl_every_applies_the_term_at_every_nth_iteration_alone_with_the_same_weight(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    baseline["train"]["optim_g"]["fused"] = True
    plain, net = build(baseline), build(with_options(strong(small), {"pcl_every": 3}))
    train_on(plain, batches[:2])
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))

    net_g = copy.deepcopy(net.net_g)
    sr = net_g(batches[2]["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batches[2]["gt"], net.net_d, generator=seeded_generator(3, 3))
    (F.l1_loss(sr, batches[2]["gt"]) + pcl).backward()
    (due,) = train_on(net, batches[2:3], first_iter=3)
    assert all(map(torch.equal, gradients(net.net_g), gradients(net_g)))

    net.cri_pcl.register_forward_hook(lambda *_: pytest.fail("the loss was computed in between"))
    (between,) = train_on(net, batches[3:4], first_iter=4)
    assert all(log.keys() == LOG_KEYS for log in [*logs, due, between])
    assert all(log["l_pcl"] == log["grad_ratio"] == 0 and log["l_cl"] > 0 for log in logs)
    assert due["l_pcl"] == pytest.approx(pcl.item(), rel=1e-6)
    changed = {key for key in LOG_KEYS if between[key] != due[key]}
    assert changed == {"l_pix", "l_d", "out_d_real", "out_d_fake"}


def test_a_term_that_has_collapsed_is_said_once(
    small: Options, build: Build, batches: Batches, logged: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(model, "FIRST_STEPS", 3)
    small["train"]["optim_d"] = {"type": "Adam", "lr": 0.0}
    net = build(small)
    train_on(net, batches[:3])
    assert "collapsed" not in logged.text
    with torch.no_grad():
        for block in net.net_d.blocks:
            block.norm.bias.fill_(1e6)  # every map is this constant
    train_on(net, batches[3:], first_iter=4)
    assert logged.text.count("has collapsed") == 1


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
def test_an_iteration_does_not_wait_for_the_gpu(waits: Callable[..., list[str]]) -> None:
    assert not waits({"pcl_grad_ratio": 0.5})


@pytest.mark.usefixtures("fake_cuda")
def test_a_copy_that_waits_for_the_gpu_would_be_noticed(waits: Callable[..., list[str]], monkeypatch: Any) -> None:
    end = PCLModel._end_iteration
    late = lambda self, log: end(self, log | {"l_d": torch.ones(()).to("cuda")})  # noqa: E731
    monkeypatch.setattr(PCLModel, "_end_iteration", late)
    assert len(waits({})) == 3


# --- in several processes ---


@pytest.mark.slow
def test_all_ranks_have_the_mean_of_each_ranks_statistics_and_gradients_of_e_d(two_ranks: list[dict[str, Any]]) -> None:
    for one, other in zip(*(results["model_steps"] for results in two_ranks), strict=True):
        assert_equal_weights(one["net_d"], other["net_d"])
        names = [name for name in one["own"] if "running" in name]
        assert len(names) == 16
        for name in names:
            assert not torch.equal(one["own"][name], other["own"][name])
            torch.testing.assert_close(one["net_d"][name], (one["own"][name] + other["own"][name]) / 2)
        for name, grad in one["own_grads"].items():
            expected = (grad + other["own_grads"][name]) / 2
            torch.testing.assert_close(one["grads"][name], expected, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(other["grads"][name], expected, rtol=1e-4, atol=1e-7)


# --- the light recipe ---


def test_the_light_recipe_has_no_e_d_and_its_step_has_the_gradient_of_both_losses(
    light: Options, build: Build, batches: Batches
) -> None:
    net = build(light)
    net_g, hr = copy.deepcopy(net.net_g), batches[0]["gt"]
    sr = net_g(batches[0]["lq"])
    pcl = PCLLoss(recipe="light")(sr, hr, FixedEmbedding(), generator=seeded_generator(3, 1))
    (F.l1_loss(sr, hr) + pcl).backward()
    (log,) = train_on(net, batches[:1])
    assert len(net.optimizers) == 1
    assert log.keys() == LOG_KEYS - {"l_d", "out_d_real", "out_d_fake"}
    for grad, expected in zip(gradients(net.net_g), gradients(net_g), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)
