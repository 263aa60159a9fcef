from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import ranks
import reference
import torch
from helpers import (
    check_gradient_by_finite_differences,
    photograph_crops,
    rand,
    randn,
    same,
    snapshot,
    tiny_discriminator,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pcl_loss import ContrastiveDiscriminatorLoss, FixedEmbedding, PCLLoss, WaveletDiscriminator, functional
from pcl_loss.discriminator import _Block
from pcl_loss.functional import contrastive_discriminator_loss
from pcl_loss.loss import RECIPES

ALPHA_SCALE = 1 / 255
KINDS = [("batch", True), ("group", True), ("none", True), ("batch", False)]
NEGATIVE_SETS = [("blur",), ("lq",), ("batch",), ("blur", "lq", "batch")]


def images(n: int = 2, size: int = 32, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """sr, hr and lq."""
    return (
        rand(n, 3, size, size, dtype=dtype),
        rand(n, 3, size, size, seed=1, dtype=dtype),
        rand(n, 3, size // 4, size // 4, seed=2, dtype=dtype),
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few(**keywords: Any) -> PCLLoss:
    """A PCLLoss with two samples of each kind, for speed."""
    return PCLLoss(**{"num_positives": 2, "num_negatives": 2, **keywords})


def check_sr_alone_receives_a_gradient(net: WaveletDiscriminator, **keywords: Any) -> None:
    """Raise unless the gradient at `sr` is not 0 and equals finite differences, and nothing else receives any."""
    sr, hr, lq = images()
    pcl = few(loss_weight=255.0, **keywords)
    check_gradient_by_finite_differences(lambda x: pcl(x, hr, net, lq, generator()), sr, eps=1e-7)

    for tensor in (sr, hr, lq):
        tensor.requires_grad_()
    pcl(sr, hr, net, lq, generator()).backward()
    assert sr.grad is not None
    assert hr.grad is None, "hr received a gradient"
    assert lq.grad is None, "lq received a gradient"
    for name, param in net.named_parameters():
        assert param.grad is None, f"{name} of E_D received a gradient"


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_sr_alone_receives_a_gradient_and_it_equals_finite_differences(norm: str, wavelet: bool) -> None:
    check_sr_alone_receives_a_gradient(tiny_discriminator(norm, wavelet))
    knobs = {"negatives": ("blur", "lq", "batch"), "temperature": 0.3, "num_layers": 3, "energy_weight": 2.0}
    check_sr_alone_receives_a_gradient(tiny_discriminator(norm, wavelet), **knobs)


def test_the_published_codes_no_grad_around_the_anchor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaveletDiscriminator, "embed", torch.no_grad()(WaveletDiscriminator.embed))
    with pytest.raises(AssertionError, match="no gradient at all"):
        check_sr_alone_receives_a_gradient(tiny_discriminator())


def check_step_leaves_no_trace(net: WaveletDiscriminator) -> None:
    sr, hr, lq = images()
    before, flags = snapshot(net), [p.requires_grad for p in net.parameters()]
    modes = [module.training for module in net.modules()]
    few(negatives=("blur", "lq", "batch"))(sr.requires_grad_(), hr, net, lq).backward()
    assert same(before, snapshot(net)), "a weight or a buffer changed"
    assert flags == [p.requires_grad for p in net.parameters()]
    assert modes == [module.training for module in net.modules()]
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_the_sr_step_leaves_no_trace_in_e_d(norm: str, wavelet: bool, training: bool) -> None:
    net = tiny_discriminator(norm, wavelet).train(training)
    net.head.requires_grad_(False)
    check_step_leaves_no_trace(net)


def test_embedding_by_the_training_forward_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Block, "frozen", lambda self, x, layout: self(x))
    with pytest.raises(AssertionError, match="a buffer changed"):
        check_step_leaves_no_trace(tiny_discriminator())


def expected_value(pcl: PCLLoss, net: WaveletDiscriminator, sr: Tensor, hr: Tensor, lq: Tensor) -> float:
    """L_CL of `pcl`'s knobs by the loops, from the factors and sigmas of `generator()`, sample by sample."""
    gt, n, draw = hr.numpy(), len(hr), pcl.samples
    numbers = [*draw.draw(n, generator()).T.tolist()]
    positives: list[list[Any]] = []
    negatives: list[list[Any]] = []
    for i, of_image in enumerate(numbers):
        num_sharpened = draw.num_positives if "sharpen" in draw.positives else 0
        factors, sigmas = of_image[:num_sharpened], of_image[num_sharpened:]
        assert len(sigmas) == (draw.num_negatives if "blur" in draw.negatives else 0)
        positives.append([gt[i]] if "gt" in draw.positives else [])
        positives[i] += [reference.sharpen(gt[i], factor) for factor in factors]
        negatives.append([reference.blur(gt[i], sigma, math.ceil(3 * draw.blur_sigma[1])) for sigma in sigmas])
        if "lq" in draw.negatives:
            negatives[i].append(reference.bicubic(lq[i].numpy(), hr.shape[-2:]))
        if "batch" in draw.negatives:
            negatives[i] += [gt[(i + shift) % n] for shift in range(1, 1 + min(draw.num_negatives, n - 1))]
    return reference.pcl_loss(net, sr, positives, negatives, temperature=pcl.temperature, num_layers=pcl.num_layers)


def check_value(pcl: PCLLoss, net: WaveletDiscriminator, n: int = 3) -> None:
    sr, hr, lq = images(n)
    value = pcl(sr, hr, net, lq, generator())
    assert value.shape == ()
    expected = expected_value(pcl, net, sr, hr, lq)
    torch.testing.assert_close(pcl.stats["l_cl"].item(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(value.item(), pcl.loss_weight * ALPHA_SCALE * expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("negatives", NEGATIVE_SETS)
@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("sharpen",), ("gt",)])
def test_the_value_equals_the_loops_over_samples_embedded_one_by_one(
    positives: tuple[str, ...], negatives: tuple[str, ...]
) -> None:
    check_value(few(positives=positives, negatives=negatives, temperature=0.4), tiny_discriminator())


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_the_value_equals_the_loops_for_every_kind_of_e_d(norm: str, wavelet: bool) -> None:
    check_value(PCLLoss(loss_weight=3.0, num_layers=5), tiny_discriminator(norm, wavelet, num_feat=3), n=2)


@pytest.mark.parametrize(("num_negatives", "n"), [(1, 4), (3, 4), (5, 4), (4, 2)])
def test_batch_takes_the_next_images_and_at_most_all_others(num_negatives: int, n: int) -> None:
    check_value(PCLLoss(positives=("gt",), negatives=("batch",), num_negatives=num_negatives), tiny_discriminator(), n)


@pytest.mark.parametrize("negatives", [("blur",), ("blur", "lq", "batch"), ("batch",)])
@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("sharpen",)])
def test_chunk_size_changes_neither_value_nor_gradient(positives: tuple[str, ...], negatives: tuple[str, ...]) -> None:
    sr, hr, lq = images(3)
    sr.requires_grad_()
    net, results = tiny_discriminator(), []
    for chunk_size in (None, 1, 3, 5, 1000):
        pcl = few(positives=positives, negatives=negatives, chunk_size=chunk_size)
        value = pcl(sr, hr, net, lq, generator())
        results.append((value, *torch.autograd.grad(value, sr)))
    for value, grad in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_give_the_value_of_their_float32_copies(dtype: torch.dtype) -> None:
    sr, hr, lq = images(dtype=dtype)
    net, pcl = tiny_discriminator(dtype=torch.float32), few(negatives=("blur", "lq", "batch"))
    value = pcl(sr.requires_grad_(), hr, net, lq, generator())
    (grad,) = torch.autograd.grad(value, sr)
    assert value.dtype == torch.float32
    assert torch.equal(value, pcl(sr.float(), hr.float(), net, lq.float(), generator()))
    assert grad.dtype == dtype
    assert grad.isfinite().all()


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_flat_images_give_a_finite_value_and_gradient(
    norm: str, wavelet: bool, dtype: torch.dtype, grey: float
) -> None:
    net = tiny_discriminator(norm, wavelet, dtype=torch.promote_types(dtype, torch.float32))
    flat = torch.full((2, 3, 32, 32), grey, dtype=dtype)
    photographs = photograph_crops(32)[:2].to(dtype)
    for sr, hr in [(flat, flat), (flat, photographs), (photographs, flat)]:
        sr = sr.clone().requires_grad_()
        value = few(negatives=("blur", "lq", "batch"))(sr, hr, net, hr[..., :8, :8])
        assert value.isfinite()
        assert torch.autograd.grad(value, sr)[0].isfinite().all()


@pytest.mark.parametrize("data_range", [2.0, 255.0])
def test_the_gradient_is_the_same_on_every_range_as_that_of_l1_is(data_range: float) -> None:
    net, (sr, hr, _) = tiny_discriminator(), images()
    gradients = []
    for white in (1.0, data_range):
        image = (white * sr).requires_grad_()
        value = few(data_range=white)(image, white * hr, net, generator=generator())
        gradients += torch.autograd.grad(value, image)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-14)


def test_a_last_batch_of_one_goes_on_with_the_negatives_that_are_not_of_the_batch() -> None:
    net, (sr, hr, _) = WaveletDiscriminator(num_feat=2).double(), images(1)
    both, blur = (few(negatives=names)(sr, hr, net, generator=generator()) for names in (["blur", "batch"], ["blur"]))
    assert torch.equal(both, blur)


def test_numbers_of_numpy_are_knobs() -> None:
    net, (sr, hr, _) = WaveletDiscriminator(num_feat=2).double(), images()
    numpy_knobs = {"temperature": np.float64(0.5), "num_negatives": np.int64(3), "blur_sigma": np.array([0.5, 1.0])}
    plain_knobs = {"temperature": 0.5, "num_negatives": 3, "blur_sigma": (0.5, 1.0)}
    values = [few(**knobs)(sr, hr, net, generator=generator()) for knobs in (numpy_knobs, plain_knobs)]
    assert torch.equal(*values)


def test_every_call_draws_anew_and_a_seed_repeats_the_run() -> None:
    sr, hr, _ = images()
    net, pcl, twin, other = tiny_discriminator(), few(), few(), few(seed=1)
    values = [float(one(sr, hr, net)) for one in (pcl, pcl, other, twin, twin)]
    assert len(set(values[:3])) == 3
    assert values[3:] == values[:2]


def test_stats_are_detached_scalars_that_agree_with_each_other() -> None:
    sr, hr, _ = images()
    pcl = few(num_layers=3)
    pcl(sr.requires_grad_(), hr, tiny_discriminator())
    names = {"l_cl", "pos_sim", "neg_sim", "margin"}
    assert set(pcl.stats) == names | {f"{name}_{layer}" for name in names for layer in (1, 2, 3)}
    assert all(value.shape == () and not value.requires_grad for value in pcl.stats.values())
    for name in names:
        mean = torch.stack([pcl.stats[f"{name}_{layer}"] for layer in (1, 2, 3)]).mean()
        torch.testing.assert_close(pcl.stats[name], mean, rtol=1e-12, atol=1e-12)
    margin = pcl.stats["pos_sim"] - pcl.stats["neg_sim"]
    torch.testing.assert_close(pcl.stats["margin"], margin, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("fake_cuda")
def test_a_tensor_on_the_wrong_device_or_a_sync_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        with torch.device("cuda"):
            net = WaveletDiscriminator(num_feat=2)
            sr, hr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        pcl = PCLLoss(positives=("gt",), negatives=("batch",))
        with pytest.raises(RuntimeError, match="device"):
            pcl(sr, hr, WaveletDiscriminator(num_feat=2))
        scale = functional.unit_norm_scale
        monkeypatch.setattr(functional, "unit_norm_scale", lambda maps: scale(maps) * float(maps.max() > 0))
        with pytest.raises(DataDependentOutputException):
            pcl(sr, hr, net)


@pytest.mark.parametrize("kind", ["fixed", "fixed without gt", "e_d"])
def test_the_energy_term_is_added_by_its_weight_whatever_embeds(kind: str) -> None:
    sr, hr, _ = images(3)
    net = tiny_discriminator() if kind == "e_d" else FixedEmbedding(num_layers=2)
    knobs = {"num_layers": 2, "positives": ("sharpen",) if kind == "fixed without gt" else ("gt",)}
    alone, both = (few(energy_weight=weight, **knobs) for weight in (0.0, 0.3))
    difference = both(sr, hr, net, generator=generator()) - alone(sr, hr, net, generator=generator())
    bands = [FixedEmbedding().embed(x)[0][:, :-1].numpy() for x in (sr, hr)]
    expected = sum(reference.energy_loss(*image) for image in zip(*bands, strict=True)) / 3
    assert both.stats["l_energy"].item() == pytest.approx(expected, rel=1e-10)
    assert difference.item() == pytest.approx(0.3 * ALPHA_SCALE * expected, rel=1e-9)
    assert "l_energy" not in alone.stats


SR, HR, LQ = images()
KNOBS = [
    ({"temperature": 0}, "temperature must be above 0, got 0"),
    ({"negatives": ["blurr"]}, r"negatives must be some of \['blur', 'lq', 'batch'\], .*got \['blurr'\]"),
    ({"num_negatives": True}, "num_negatives must be an integer, got True"),
    ({"sharpness": (3.0, 1.5)}, r"sharpness must satisfy.*\(3.0, 1.5\)"),
    ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma\[0\] must be above 0"),
    ({"loss_weight": "1e-4"}, "loss_weight must be a number, got '1e-4' of type str$"),
    ({"recipe": "lite"}, r"recipe must be one of \['paper', 'light'\], got 'lite'"),
]
CALLS = [
    ({}, (SR, HR, None), r"PCLCriterion.*pcl_opt.*PCLModel.*PCLPerceptualLoss"),
    ({}, (SR, HR, nn.DataParallel(tiny_discriminator())), r"DataParallel has none.*net_d\.module"),
    ({}, (SR, images(size=64)[1]), r"sr \(2, 3, 32, 32\) and hr \(2, 3, 64, 64\).*same shape.*scale"),
    ({}, ((255 * SR).byte(), HR), r"sr has dtype torch\.uint8.*sr\.float\(\) / 255"),
    ({}, (SR[0], HR[0]), r"sr has shape \(3, 32, 32\).*unsqueeze"),
    ({"negatives": ["lq"]}, (SR, HR, tiny_discriminator(), LQ[:1]), "lq .* must have the batch size"),
    ({"negatives": ["blur", "lq"]}, (SR, HR), "'lq', but no lq was passed; call with lq="),
    ({"negatives": ["batch"]}, (SR[:1], HR[:1]), r"\['batch'\].*the batch has one image.*at least 2"),
]


@pytest.mark.parametrize(("keywords", "message"), KNOBS)
def test_bad_knobs_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PCLLoss(**keywords)


@pytest.mark.parametrize(("keywords", "inputs", "message"), CALLS)
def test_inputs_that_do_not_fit_are_refused(keywords: dict[str, Any], inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PCLLoss(**keywords)(*(inputs if len(inputs) > 2 else (*inputs, tiny_discriminator())))


def test_a_recipe_sets_the_knobs_that_are_not_given_and_the_paper_is_the_default() -> None:
    def knobs_of(pcl: PCLLoss) -> dict[str, Any]:
        return {name: getattr(pcl if hasattr(pcl, name) else pcl.samples, name) for name in RECIPES["paper"]}

    assert knobs_of(PCLLoss()) == RECIPES["paper"]
    for name, value in RECIPES["paper"].items():
        assert knobs_of(PCLLoss(**{"recipe": "light", name: value})) == RECIPES["light"] | {name: value}


def test_the_discriminator_loss_module_is_its_function_times_the_weight() -> None:
    real, fake = randn(4, 1), randn(3, 1, seed=1)
    expected = contrastive_discriminator_loss(real, fake)
    torch.testing.assert_close(ContrastiveDiscriminatorLoss(0.5)(real, fake), 0.5 * expected)
    # In one process there is nobody to gather from.
    assert torch.equal(ContrastiveDiscriminatorLoss(gather=True)(real, fake), expected)


@pytest.mark.slow
def test_gathered_logits_give_value_and_gradient_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    weights = ranks.start_weights().requires_grad_()
    inputs = [ranks.logit_inputs_of(rank) for rank in range(2)]
    reals, fakes = (torch.cat([pair[side] for pair in inputs]) @ weights for side in (0, 1))
    expected = reference.contrastive_discriminator_loss(reals.tolist(), fakes.tolist())
    (grad,) = torch.autograd.grad(contrastive_discriminator_loss(reals, fakes), weights)
    for results in two_ranks:
        assert results["gathered_loss"].item() == pytest.approx(expected, rel=1e-10)
    averaged = torch.stack([results["gathered_grad"] for results in two_ranks]).mean(0)
    torch.testing.assert_close(averaged, grad, rtol=1e-10, atol=1e-12)
