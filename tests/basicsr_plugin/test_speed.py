"""amp, channels_last and compile change how a step is computed and not what it is: all its losses' gradient."""

import copy
import functools
import math
from typing import Any

import pytest
import ranks
import torch
from basicsr_fixtures import (
    LOG_KEYS,
    Batches,
    Build,
    Options,
    assert_equal_weights,
    cosine,
    strong,
    train_on,
    weights,
    with_options,
)
from device_waits import Reads
from torch.nn import functional as F

from pcl_loss import PCLLoss, functional
from pcl_loss.basicsr_plugin.speed import GradientBalance
from pcl_loss.samples import seeded_generator


def one_step(options: Options, build: Build, batches: Batches, train: Options) -> tuple[Any, dict[str, float]]:
    """A model after its second iteration, whose E_D has seen images, and that iteration's log."""
    net = build(with_options(strong(copy.deepcopy(options)), train))
    return net, train_on(net, batches[:2])[1]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near_float32(
    amp: str, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    # At its own first scale fp16 would skip the first steps.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**8))
    exact, expected = one_step(small, build, batches, {})
    net, log = one_step(small, build, batches, {"amp": amp})
    # bf16 has 8 bits of mantissa: 0.4 % per operation.
    assert log["l_pix"] == pytest.approx(expected["l_pix"], rel=0.01)
    assert log["l_cl"] == pytest.approx(expected["l_cl"], rel=0.01)
    assert log["l_d"] == pytest.approx(expected["l_d"], rel=0.05)
    assert log["grad_ratio"] == pytest.approx(expected["grad_ratio"], rel=0.05)
    assert all(param.dtype == torch.float32 for param in [*net.net_g.parameters(), *net.net_d.parameters()])
    assert cosine(net.net_g, exact.net_g) > 0.99
    assert cosine(net.net_d, exact.net_d) > 0.95
    sizes = [sum(param.grad.square().sum().item() for param in model.net_d.parameters()) for model in (net, exact)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.4), "Adam was given E_D's gradient at the scaler's scale"


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_under_amp_networks_compute_in_half_and_equations_7_to_10_in_float32(
    amp: str, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    net = build(with_options(small, {"amp": amp}))
    seen: dict[str, list[torch.dtype]] = {name: [] for name in ("net_g", "net_d", "info_nce", "_softplus")}
    for name, layer in (("net_g", net.net_g.body[0].conv1), ("net_d", net.net_d.blocks[0].conv)):
        layer.register_forward_hook(lambda _m, _x, y, to=seen[name]: to.append(y.dtype))
    for name in ("info_nce", "_softplus"):
        function = getattr(functional, name)
        noted = lambda x, *rest, call=function, to=seen[name]: (to.append(x.dtype), call(x, *rest))[1]  # noqa: E731
        monkeypatch.setattr(functional, name, noted)
    train_on(net, batches[:1])
    assert set(seen["net_g"] + seen["net_d"]) == {half}
    assert set(seen["info_nce"]) == set(seen["_softplus"]) == {torch.float32}
    assert net.output.dtype == torch.float32


def test_fp16_skips_a_step_that_overflows_and_halves_its_scale(small: Options, build: Build, batches: Batches) -> None:
    net = build(with_options(small, {"amp": "fp16", "pcl_grad_ratio": 0.5}))
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    nets = (net.net_g, net.net_d, net.balance)
    before = [weights(one) for one in nets]
    train_on(net, batches[:1])
    for one, expected in zip(nets, before, strict=True):
        assert_equal_weights(weights(one), expected)
    assert net.scaler.get_scale() == 2.0**59


HAN = {"type": "HAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 2, "num_block": 1}
HAN |= {"squeeze_factor": 4, "upscale": 4}


@pytest.mark.parametrize(
    ("train", "network_g"),
    [
        ({"channels_last": True}, {}),
        ({"channels_last": True}, HAN),
        ({"compile": {"backend": "eager"}}, {}),
        pytest.param({"compile": {"backend": "aot_eager"}}, HAN, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_channels_last_or_compiled_is_the_eager_one(
    train: Options, network_g: Options, small: Options, build: Build, batches: Batches
) -> None:
    torch.compiler.reset()
    small["network_g"] = network_g or small["network_g"]
    exact, expected = one_step(small, build, batches, {})
    net, log = one_step(small, build, batches, train)
    # Adam's first step makes a step of full size of whatever rounding leaves of a gradient near 0.
    assert log == pytest.approx(expected, rel=0.01)
    for ours, theirs in ((net.net_g, exact.net_g), (net.net_d, exact.net_d)):
        assert cosine(ours, theirs) > 0.9999
        assert weights(ours).keys() == weights(theirs).keys()
        tensors = [net.lq, net.gt, net.output, *(param for param in ours.parameters() if param.dim() == 4)]
        lies = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors]
        assert "compile" in train or all(lies)


def test_all_that_a_step_runs_is_compiled_and_validation_is_not(
    small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    compiled = []

    @functools.wraps(torch.compile)
    def note(function: Any, **keywords: Any) -> Any:
        assert keywords == {"mode": "max-autotune"}
        return lambda *args: (compiled.append(function), function(*args))[1]

    monkeypatch.setattr(torch, "compile", note)
    small["train"]["ema_decay"] = 0
    net = build(with_options(small, {"compile": {"mode": "max-autotune"}}))
    train_on(net, batches[:1])
    assert set(compiled) == {net.net_g, net.net_d, net.net_d.embed}
    compiled.clear()
    net.test()
    assert not compiled


def test_without_a_key_a_speed_model_is_the_sr_model_bit_for_bit(
    baseline: Options, build: Build, batches: Batches
) -> None:
    baseline["train"]["optim_g"]["fused"] = True
    plain = build(baseline)
    ours = build(baseline | {"model_type": "SpeedSRModel"})
    assert train_on(ours, batches) == train_on(plain, batches)
    for name in ("net_g", "net_g_ema"):
        assert_equal_weights(weights(getattr(ours, name)), weights(getattr(plain, name)))


@pytest.mark.parametrize(("keywords", "waits"), [({}, False), ({"foreach": True}, True)])
def test_a_step_does_not_wait_to_hear_whether_its_gradients_are_finite(
    keywords: Options, waits: bool, baseline: Options, build: Build, batches: Batches
) -> None:
    baseline["train"]["optim_g"] |= keywords
    net = build(with_options(baseline | {"model_type": "SpeedSRModel"}, {"amp": "fp16"}))
    net.feed_data(batches[0])
    with Reads() as reads:
        net.optimize_parameters(1)
    assert (reads.count > 0) is waits


# --- the gradient at the SR output ---


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


@pytest.mark.slow
def test_all_ranks_use_the_weight_of_their_mean_ratio(two_ranks: list[dict[str, Any]]) -> None:
    ratios = torch.stack([norms[:, 0] / norms[:, 1] for norms in (ranks.norms_of(0), ranks.norms_of(1))])
    mean, expected = 0.0, []
    for n, log_ratio in enumerate(ratios.log().mean(0).tolist(), 1):
        mean += max(0.4, 1 / n) * (log_ratio - mean)
        expected.append(0.5 * math.exp(mean))
    for results in two_ranks:
        assert results["balanced_weights"].tolist() == pytest.approx(expected, rel=1e-4)


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


@pytest.mark.parametrize(("percep", "style", "pixel"), [(0.5, 0.0, False), (0.5, 3.0, True), (0.0, 0.0, True)])
def test_a_steps_gradient_is_that_of_the_sum_of_its_losses(
    percep: float, style: float, pixel: bool, small: Options, build: Build, batches: Batches, vgg_stand_in: Any
) -> None:
    keywords = {"perceptual_weight": percep, "style_weight": style}
    small["train"]["perceptual_opt"] = {"type": "PerceptualLoss", **keywords}
    if not pixel:
        del small["train"]["pixel_opt"]
    net = build(strong(small))
    net_g, batch = copy.deepcopy(net.net_g), batches[0]
    sr = net_g(batch["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batch["gt"], net.net_d, generator=seeded_generator(3, 1))
    losses = dict(zip(("l_percep", "l_style"), vgg_stand_in(**keywords)(sr, batch["gt"]), strict=True))
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
