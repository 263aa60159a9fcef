"""amp, channels_last and compile change how a step is computed and not what it is."""

import copy
import functools
from typing import Any

import pytest
import torch
from basicsr_fixtures import (
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

from pcl_loss import functional


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


@pytest.mark.parametrize("network_g", [{}, HAN | {"squeeze_factor": 4, "upscale": 4}], ids=["EDSR", "HAN"])
@pytest.mark.parametrize("train", [{"channels_last": True}, {"compile": {"backend": "aot_eager"}}], ids=str)
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
