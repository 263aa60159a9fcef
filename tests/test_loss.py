from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from device_waits import WaitCounter
from helpers import (
    Recorder,
    check_gradient_by_finite_differences,
    photograph_crops,
    rand,
    randn,
    same,
    skip_kornias_sigma_check,
    snapshot,
    tiny_discriminator,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from pcl_loss import ContrastiveDiscriminatorLoss, PCLLoss, WaveletDiscriminator, _known_gradient, samples
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


def embed_without_grad(self: WaveletDiscriminator, x: Tensor, num_layers: int = 4) -> list[Tensor]:
    """Mutant: what the published code does to the anchor."""
    with torch.no_grad():
        return original_embed(self, x, num_layers)


original_embed = WaveletDiscriminator.embed


def frozen_with_live_weights(self: _Block, x: Tensor, layout: torch.memory_format) -> Tensor:
    """Mutant: the frozen view computed with the parameters themselves."""
    norm = self.norm
    y = F.conv2d(x, self.conv.weight, self.conv.bias, self.conv.stride, self.conv.padding)
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps)
    return F.leaky_relu(y, 0.2)


# --- gradients ---


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


@pytest.mark.parametrize("negatives", NEGATIVE_SETS)
def test_the_gradient_equals_finite_differences_with_all_negatives(negatives: tuple[str, ...]) -> None:
    check_sr_alone_receives_a_gradient(tiny_discriminator(), negatives=negatives, temperature=0.3, num_layers=3)


def test_gradcheck_of_the_whole_loss() -> None:
    sr, hr, lq = images()
    net, pcl = tiny_discriminator(), few(loss_weight=255.0, negatives=("blur", "lq", "batch"))
    # Fast mode checks a random projection: the full Jacobian would need 12,288 evaluations.
    assert torch.autograd.gradcheck(
        lambda x: pcl(x, hr, net, lq, generator()), (sr.requires_grad_(),), eps=1e-7, atol=1e-7, fast_mode=True
    )


def test_the_published_codes_no_grad_around_the_anchor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaveletDiscriminator, "embed", embed_without_grad)
    with pytest.raises(AssertionError, match="no gradient at all"):
        check_sr_alone_receives_a_gradient(tiny_discriminator())


def test_live_weights_in_embed_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Block, "frozen", frozen_with_live_weights)
    with pytest.raises(AssertionError, match="of E_D received a gradient"):
        check_sr_alone_receives_a_gradient(tiny_discriminator())


def test_a_step_along_the_gradient_brings_sr_nearer_to_the_positives() -> None:
    hr = photograph_crops(32)[::4]
    sr = samples.blur(hr, samples.draw_uniform(*(1.0, 1.0), (1, len(hr)), generator()), (1.0, 1.0)[1])[
        0
    ].requires_grad_()
    net, pcl = tiny_discriminator(num_feat=8, dtype=torch.float32), PCLLoss()
    net(hr)
    margins = []
    optimizer = torch.optim.Adam([sr], lr=4e-3)
    for _ in range(12):
        pcl(sr, hr, net, generator=generator()).backward()
        margins.append(pcl.stats["margin"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert margins[-1] > margins[0] + 0.05


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


def test_a_later_step_of_e_d_leaves_a_pending_backward_as_it_was() -> None:
    sr, hr, _ = images()
    net, pcl = tiny_discriminator(), few()
    (expected,) = torch.autograd.grad(pcl(sr.requires_grad_(), hr, net, generator=generator()), sr)
    pending = pcl(sr, hr, net, generator=generator())
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    contrastive_discriminator_loss(net(hr), net(sr.detach())).backward()
    optimizer.step()
    (grad,) = torch.autograd.grad(pending, sr)
    assert torch.equal(grad, expected)


# --- values ---


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every set of numbers that the samples draw, in order."""
    numbers: list[Tensor] = []
    draw = samples.draw_uniform

    def draw_and_note(*args: Any, **kwargs: Any) -> Tensor:
        numbers.append(draw(*args, **kwargs))
        return numbers[-1]

    monkeypatch.setattr(samples, "draw_uniform", draw_and_note)
    return numbers


def expected_value(
    pcl: PCLLoss, net: WaveletDiscriminator, sr: Tensor, hr: Tensor, lq: Tensor, drawn: list[Tensor]
) -> float:
    """L_CL of `pcl`'s knobs by the loops, from the factors and sigmas that were drawn, sample by sample."""
    gt, n = hr.numpy(), len(hr)
    numbers = iter(drawn)
    positives: list[list[Any]] = [[image] if "gt" in pcl.samples.positives else [] for image in gt]
    negatives: list[list[Any]] = [[] for _ in gt]
    if "sharpen" in pcl.samples.positives:
        factors = next(numbers).view(pcl.samples.num_positives, n)
        for i in range(n):
            positives[i] += [reference.sharpen(gt[i], float(f)) for f in factors[:, i]]
    if "blur" in pcl.samples.negatives:
        sigmas = next(numbers).view(pcl.samples.num_negatives, n)
        for i in range(n):
            negatives[i] += [
                reference.blur(gt[i], float(s), math.ceil(3 * pcl.samples.blur_sigma[1])) for s in sigmas[:, i]
            ]
    for i in range(n):
        if "lq" in pcl.samples.negatives:
            negatives[i].append(reference.bicubic(lq[i].numpy(), hr.shape[-2:]))
        if "batch" in pcl.samples.negatives:
            negatives[i] += [gt[(i + shift) % n] for shift in range(1, 1 + min(pcl.samples.num_negatives, n - 1))]
    assert next(numbers, None) is None, "more numbers were drawn than the samples need"
    return reference.pcl_loss(net, sr, positives, negatives, temperature=pcl.temperature, num_layers=pcl.num_layers)


def check_value(pcl: PCLLoss, net: WaveletDiscriminator, drawn: list[Tensor], n: int = 3) -> None:
    sr, hr, lq = images(n)
    value = pcl(sr, hr, net, lq, generator())
    assert value.shape == ()
    expected = expected_value(pcl, net, sr, hr, lq, drawn)
    torch.testing.assert_close(pcl.stats["l_cl"].item(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(value.item(), pcl.loss_weight * ALPHA_SCALE * expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("negatives", NEGATIVE_SETS)
@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("sharpen",), ("gt",)])
def test_the_value_equals_the_loops_over_samples_embedded_one_by_one(
    positives: tuple[str, ...], negatives: tuple[str, ...], drawn: list[Tensor]
) -> None:
    check_value(few(positives=positives, negatives=negatives, temperature=0.4), tiny_discriminator(), drawn)


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_the_value_equals_the_loops_for_every_kind_of_e_d(norm: str, wavelet: bool, drawn: list[Tensor]) -> None:
    check_value(PCLLoss(loss_weight=3.0, num_layers=5), tiny_discriminator(norm, wavelet, num_feat=3), drawn, n=2)


@pytest.mark.parametrize(("num_negatives", "n"), [(1, 4), (3, 4), (5, 4), (4, 2)])
def test_batch_takes_the_next_images_and_at_most_all_others(num_negatives: int, n: int, drawn: list[Tensor]) -> None:
    check_value(
        PCLLoss(positives=("gt",), negatives=("batch",), num_negatives=num_negatives), tiny_discriminator(), drawn, n
    )


def test_the_order_of_batch_negatives_is_that_of_the_images() -> None:
    sr, hr, _ = images(3)
    sr, hr = sr, hr.clone()
    # The next image of 0 is its own sr, that of 1 and of 2 is not: only image 0 has a negative similarity of 1.
    hr[1] = sr[0]
    net = tiny_discriminator("none")
    pcl = PCLLoss(positives=("gt",), negatives=("batch",), num_negatives=1, num_layers=1)
    similarities = [pcl(sr[[0, i]], hr[[0, i]], net).item() for i in (1, 2)]
    assert similarities[0] > similarities[1]
    pcl(sr, hr, net)
    pairs = [(0, 1), (1, 2), (2, 0)]
    expected = [
        reference.similarity(reference.embed(net, sr[i].numpy(), 1)[0], reference.embed(net, hr[j].numpy(), 1)[0])
        for i, j in pairs
    ]
    assert expected[0] == pytest.approx(1)
    assert pcl.stats["neg_sim"].item() == pytest.approx(sum(expected) / 3, rel=1e-10)


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


def test_chunk_size_bounds_what_embed_is_given_at_a_time() -> None:
    sr, hr, _ = images(2)
    recorder = Recorder(tiny_discriminator())
    PCLLoss(chunk_size=3)(sr, hr, recorder)
    of_first, of_second = recorder.inputs[:4], recorder.inputs[4:]
    for (anchor, *chunks), image in zip((of_first, of_second), sr, strict=True):
        assert torch.equal(anchor, image[None])
        assert [len(chunk) for chunk in chunks] == [3] * 3


def test_by_default_two_images_are_compared_at_a_time_on_a_cpu() -> None:
    sr, hr, _ = images(3)
    recorder = Recorder(tiny_discriminator())
    few()(sr, hr, recorder)
    assert [len(chunk) for chunk in recorder.inputs] == [2, 10, 1, 5]


def test_images_that_lie_channels_last_give_the_same_value_and_gradient() -> None:
    sr, hr, lq = images(3)
    net, results = tiny_discriminator(), []
    for layout in (torch.contiguous_format, torch.channels_last):
        anchor, gt = (x.clone(memory_format=layout) for x in (sr, hr))
        value = few(negatives=("blur", "lq"))(anchor.requires_grad_(), gt, net, lq, generator())
        results.append((value, *torch.autograd.grad(value, anchor)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-14)


def test_k_p_and_k_n_count_sharpened_blurred_and_extra_samples() -> None:
    sr, hr, lq = images(3)
    for positives, negatives, embedded in [
        (("gt", "sharpen"), ("blur",), 1 + 4 + 4),
        (("gt", "sharpen"), ("blur", "lq"), 1 + 4 + 4 + 1),
        (("gt",), ("lq",), 1 + 1),
        (("gt", "sharpen"), ("batch",), 1 + 4),  # GT's features are rolled, not computed anew
    ]:
        recorder = Recorder(tiny_discriminator())
        PCLLoss(positives=positives, negatives=negatives, chunk_size=1000)(sr, hr, recorder, lq)
        assert sum(len(x) for x in recorder.inputs) == 3 + 3 * embedded


def test_an_lq_that_no_negative_asks_for_changes_nothing() -> None:
    sr, hr, lq = images(3)
    net = tiny_discriminator()
    expected = few()(sr, hr, net, None, generator())
    for unused in (lq, lq[:1], lq[0]):
        assert torch.equal(few()(sr, hr, net, unused, generator()), expected)


def test_sr_is_not_clamped() -> None:
    sr, hr, _ = images()
    recorder = Recorder(tiny_discriminator())
    few()(3 * sr - 1, hr, recorder)
    torch.testing.assert_close(recorder.inputs[0], 3 * sr - 1)


def test_loss_weight_scales_the_value_alone() -> None:
    sr, hr, _ = images()
    net = tiny_discriminator()
    one, many = PCLLoss(1.0), PCLLoss(7.0)
    torch.testing.assert_close(many(sr, hr, net), 7 * one(sr, hr, net), rtol=1e-12, atol=0)
    assert torch.equal(many.stats["l_cl"], one.stats["l_cl"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_give_the_value_of_their_float32_copies(dtype: torch.dtype) -> None:
    sr, hr, lq = images(dtype=dtype)
    net, pcl = tiny_discriminator(dtype=torch.float32), few(negatives=("blur", "lq", "batch"))
    value = pcl(sr.requires_grad_(), hr, net, lq, generator())
    value.backward()
    expected = pcl(sr.float(), hr.float(), net, lq.float(), generator())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert sr.grad is not None
    assert sr.grad.dtype == dtype
    assert sr.grad.isfinite().all()


def test_autocast_gives_a_value_and_gradient_near_those_of_float32() -> None:
    sr, hr, lq = images(dtype=torch.float32)
    net, pcl = tiny_discriminator(num_feat=8, dtype=torch.float32), few(negatives=("blur", "lq", "batch"))
    sr.requires_grad_()
    exact = pcl(sr, hr, net, lq, generator())
    (exact_grad,) = torch.autograd.grad(exact, sr)
    with torch.autocast("cpu", torch.bfloat16):
        value = pcl(sr, hr, net, lq, generator())
    (grad,) = torch.autograd.grad(value, sr)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.01)
    assert F.cosine_similarity(grad.flatten(), exact_grad.flatten(), 0) > 0.95


def test_samples_are_made_outside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, plain = (
        Recorder(tiny_discriminator(dtype=torch.float32)),
        Recorder(tiny_discriminator(dtype=torch.float32)),
    )
    sr, hr, lq = images(dtype=torch.float32)
    pcl = few(negatives=("blur", "lq"), chunk_size=1000)
    pcl(sr, hr, plain, lq, generator())
    with torch.autocast("cpu", torch.bfloat16):
        pcl(sr, hr, recorder, lq, generator())
    for ours, expected in zip(recorder.inputs, plain.inputs, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_flat_images_give_a_finite_value_and_gradient(
    norm: str, wavelet: bool, dtype: torch.dtype, grey: float
) -> None:
    net = tiny_discriminator(norm, wavelet, dtype=torch.promote_types(dtype, torch.float32))
    flat = torch.full((2, 3, 32, 32), grey, dtype=dtype)
    photographs = photograph_crops(32)[:2].to(dtype)
    for sr, hr in [(flat, flat), (flat, photographs), (photographs, flat)]:
        sr = sr.clone().requires_grad_()
        value = few(negatives=("blur", "lq", "batch"))(sr, hr, net, hr[..., :8, :8])
        value.backward()
        assert value.isfinite()
        assert sr.grad is not None
        assert sr.grad.isfinite().all()


# --- the range of the images ---


def test_images_of_0_255_are_embedded_as_those_of_0_1() -> None:
    sr, hr, lq = images()
    inputs = []
    for data_range in (1.0, 255.0):
        recorder = Recorder(tiny_discriminator())
        pcl = few(negatives=("blur", "lq"), data_range=data_range)
        pcl(data_range * sr, data_range * hr, recorder, data_range * lq, generator())
        inputs.append(recorder.inputs)
    for a, b in zip(*inputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def gradient_ratio(data_range: float, pcl: Callable[..., Tensor]) -> float:
    sr, hr, _ = images()
    sr, hr = (data_range * sr).requires_grad_(), data_range * hr
    (of_l1,) = torch.autograd.grad(F.l1_loss(sr, hr), sr)
    (of_pcl,) = torch.autograd.grad(pcl(sr, hr), sr)
    return float(of_pcl.norm() / of_l1.norm())


def test_the_balance_against_l1_is_the_same_on_every_range() -> None:
    net = tiny_discriminator()
    ratios = [
        gradient_ratio(r, lambda sr, hr, r=r: few(data_range=r)(sr, hr, net, generator=generator()))
        for r in (1.0, 2.0, 255.0)
    ]
    assert ratios[1] == pytest.approx(ratios[0], rel=1e-9)
    assert ratios[2] == pytest.approx(ratios[0], rel=1e-9)


def test_on_0_255_loss_weight_is_the_papers_alpha() -> None:
    sr, hr, _ = images()
    pcl = PCLLoss(loss_weight=2.0, data_range=255.0)
    value = pcl(255 * sr, 255 * hr, tiny_discriminator())
    torch.testing.assert_close(value, 2 * pcl.stats["l_cl"], rtol=1e-12, atol=0)


# --- randomness ---


def embedded_images(pcl: PCLLoss, generator: torch.Generator | None = None) -> Tensor:
    sr, hr, _ = images()
    recorder = Recorder(tiny_discriminator())
    pcl(sr, hr, recorder, generator=generator)
    return torch.cat(recorder.inputs)


@pytest.mark.usefixtures("untouched_global_rng")
def test_the_global_generator_is_left_alone() -> None:
    sr, hr, lq = images()
    few(negatives=("blur", "lq", "batch"))(sr, hr, tiny_discriminator(), lq)


def test_every_call_draws_anew_and_a_seed_repeats_the_run() -> None:
    pcl, twin, other = few(), few(), few(seed=1)
    first, second = embedded_images(pcl), embedded_images(pcl)
    assert not torch.equal(first, second)
    assert torch.equal(first, embedded_images(twin))
    assert torch.equal(second, embedded_images(twin))
    assert not torch.equal(first, embedded_images(other))


def test_ranks_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_, rank=rank: rank)
        made.append(embedded_images(few()))
    assert not torch.equal(*made)


def test_a_given_generator_rules_the_samples() -> None:
    pcl = few()
    assert torch.equal(embedded_images(pcl, generator(3)), embedded_images(pcl, generator(3)))
    assert not torch.equal(embedded_images(pcl, generator(3)), embedded_images(pcl, generator(4)))


def test_a_resumed_loss_draws_the_samples_of_an_uninterrupted_one() -> None:
    pcl, resumed = few(), few()
    for _ in range(3):
        embedded_images(pcl)
    resumed.load_state_dict(pcl.state_dict())
    assert torch.equal(embedded_images(resumed), embedded_images(pcl))


# --- stats ---


def test_stats_are_detached_scalars_that_agree_with_each_other() -> None:
    sr, hr, _ = images()
    pcl = few(num_layers=3)
    pcl(sr.requires_grad_(), hr, tiny_discriminator())
    names = {"l_cl", "pos_sim", "neg_sim", "margin"}
    assert set(pcl.stats) == names | {f"{name}_{layer}" for name in names for layer in (1, 2, 3)}
    for value in pcl.stats.values():
        assert value.shape == ()
        assert not value.requires_grad
    for name in names:
        mean = torch.stack([pcl.stats[f"{name}_{layer}"] for layer in (1, 2, 3)]).mean()
        torch.testing.assert_close(pcl.stats[name], mean, rtol=1e-12, atol=1e-12)
    margin = pcl.stats["pos_sim"] - pcl.stats["neg_sim"]
    torch.testing.assert_close(pcl.stats["margin"], margin, rtol=1e-12, atol=1e-12)


def test_a_perfect_sr_has_positive_similarity_one() -> None:
    _, hr, _ = images()
    pcl = PCLLoss(positives=("gt",))
    pcl(hr, hr, tiny_discriminator())
    for layer in (1, 2, 3, 4):
        assert pcl.stats[f"pos_sim_{layer}"].item() == pytest.approx(1, abs=1e-12)
        assert pcl.stats[f"neg_sim_{layer}"].item() < 1


# --- devices ---


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_everything_runs_on_the_device_of_the_images_without_a_sync(
    monkeypatch: pytest.MonkeyPatch, norm: str, wavelet: bool
) -> None:
    # Fake tensors: one left on the CPU raises a device mismatch, an .item() a data-dependent error.
    skip_kornias_sigma_check(monkeypatch)
    with FakeTensorMode():
        with torch.device("cuda"):
            net = WaveletDiscriminator(num_feat=2, norm=norm, wavelet=wavelet)
            sr, hr, lq = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
        pcl = PCLLoss(negatives=("blur", "lq", "batch"), temperature=0.5)
        with WaitCounter() as counter:
            value = pcl(sr.requires_grad_(), hr, net, lq)
        assert not counter.waits
        assert value.device.type == "cuda"
        assert value.shape == ()
        assert all(stat.device.type == "cuda" for stat in pcl.stats.values())


@pytest.mark.usefixtures("fake_cuda")
def test_a_copy_that_waits_for_the_gpu_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_kornias_sigma_check(monkeypatch)
    monkeypatch.setattr(samples, "move_without_waiting", lambda x, device: x.to(device))
    with FakeTensorMode(), torch.device("cuda"):
        net, sr, hr = WaveletDiscriminator(num_feat=2), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        with WaitCounter() as counter:
            PCLLoss()(sr, hr, net)
    assert len(counter.waits) == 1


@pytest.mark.usefixtures("fake_cuda")
def test_a_tensor_on_the_wrong_device_or_a_sync_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        with torch.device("cuda"):
            net = WaveletDiscriminator(num_feat=2)
            sr, hr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
        pcl = PCLLoss(positives=("gt",), negatives=("batch",))
        with pytest.raises(RuntimeError, match="device"):
            pcl(sr, hr, WaveletDiscriminator(num_feat=2))
        scale = _known_gradient.unit_norm_scale
        monkeypatch.setattr(_known_gradient, "unit_norm_scale", lambda maps: scale(maps) * float(maps.max() > 0))
        with pytest.raises(DataDependentOutputException):
            pcl(sr, hr, net)


# --- bad input ---


class Wrapper(nn.Module):
    """Hides its module's methods, as DataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_missing_embedding_is_refused_and_both_roads_are_named() -> None:
    sr, hr, _ = images()
    with pytest.raises(ValueError, match=r"(?s)pcl_opt.*PCLModel.*PCLPerceptualLoss.*PCLCriterion"):
        PCLLoss()(sr, hr)


def test_a_parallel_wrapper_as_embedding_is_refused() -> None:
    sr, hr, _ = images()
    with pytest.raises(TypeError, match=r"Wrapper has none.*net_d\.module"):
        PCLLoss()(sr, hr, Wrapper(tiny_discriminator()))  # type: ignore[arg-type]


def test_images_that_do_not_fit_are_refused() -> None:
    sr, hr, lq = images()
    net = tiny_discriminator()
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3, 32, 32\) and \(2, 3, 64, 64\).*scale"):
        PCLLoss()(sr, images(size=64)[1], net)
    with pytest.raises(ValueError, match=r"same shape, got \(1, 3, 32, 32\)"):
        PCLLoss()(sr[:1], hr, net)
    with pytest.raises(ValueError, match=r"1 channels, but 3 are expected.*num_in_ch=1"):
        PCLLoss()(sr[:, :1], hr[:, :1], net)
    with pytest.raises(TypeError, match=r"sr has dtype torch\.uint8.*sr\.float\(\) / 255"):
        PCLLoss()((255 * sr).byte(), (255 * hr).byte(), net)
    with pytest.raises(TypeError, match=r"hr has dtype torch\.int64"):
        PCLLoss()(sr, hr.long(), net)
    with pytest.raises(TypeError, match=r"sr must be a torch\.Tensor .*got ndarray"):
        PCLLoss()(sr.numpy(), hr, net)
    with pytest.raises(ValueError, match="sr is 31x32, but at least 32x32 is needed; use larger patches"):
        PCLLoss()(sr[..., :31, :], hr[..., :31, :], net)
    with pytest.raises(ValueError, match=r"sr has shape \(3, 32, 32\).*unsqueeze"):
        PCLLoss()(sr[0], hr[0], net)
    with pytest.raises(ValueError, match="lq must have the batch size"):
        PCLLoss(negatives=("lq",))(sr, hr, net, lq[:1])


def test_negatives_that_cannot_be_made_are_refused() -> None:
    sr, hr, _ = images()
    net = tiny_discriminator()
    with pytest.raises(ValueError, match=r"'lq', but no lq was passed; call with lq="):
        PCLLoss(negatives=("blur", "lq"))(sr, hr, net)
    with pytest.raises(ValueError, match=r"'batch'.*the batch has one image.*at least 2"):
        PCLLoss(negatives=("batch",))(sr[:1], hr[:1], net)
    with pytest.raises(ValueError, match="too far for images of 32x32; lower blur_sigma"):
        PCLLoss(blur_sigma=(1.0, 20.0))(sr, hr, net)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature must be above 0, got 0"),
        ({"temperature": float("nan")}, ValueError, "temperature must be finite, got nan"),
        ({"negatives": ["blurr"]}, ValueError, r"unknown entries \['blurr'\]; allowed are \['blur', 'lq', 'batch'\]"),
        ({"positives": ["lq"]}, ValueError, r"unknown entries \['lq'\]; allowed are \['gt', 'sharpen'\]"),
        ({"negatives": "blur"}, TypeError, r"got the string 'blur'; write \['blur'\]"),
        ({"negatives": []}, ValueError, "negatives is empty"),
        ({"negatives": ["blur", "blur"]}, ValueError, "names a source twice"),
        ({"num_positives": 0}, ValueError, "num_positives must be at least 1, got 0"),
        ({"num_negatives": 0}, ValueError, "num_negatives must be at least 1, got 0"),
        ({"num_negatives": True}, TypeError, "num_negatives must be an integer, got True"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"sharpness": (3.0, 1.5)}, ValueError, r"sharpness must satisfy.*\(3.0, 1.5\)"),
        ({"sharpness": 2.0}, ValueError, r"sharpness must be two numbers \(low, high\), got 2.0"),
        ({"blur_sigma": (0.0, 1.0)}, ValueError, r"blur_sigma\[0\] must be above 0"),
        ({"data_range": -1.0}, ValueError, "data_range must be above 0, got -1.0"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"loss_weight": "1e-4"}, TypeError, "loss_weight must be a number, got '1e-4'.*YAML"),
        ({"num_sharpened": 3}, TypeError, "num_sharpened"),
    ],
)
def test_bad_knobs_are_refused(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PCLLoss(**keywords)


# --- recipes ---


def knobs_of(pcl: PCLLoss) -> dict[str, Any]:
    return {name: getattr(pcl if hasattr(pcl, name) else pcl.samples, name) for name in RECIPES["paper"]}


@pytest.mark.parametrize("recipe", ["paper", "light"])
def test_a_recipe_sets_the_knobs_that_are_not_given(recipe: str) -> None:
    assert knobs_of(PCLLoss(recipe=recipe)) == RECIPES[recipe]


def test_the_paper_is_the_default_recipe() -> None:
    assert knobs_of(PCLLoss()) == RECIPES["paper"]


def test_a_knob_that_is_given_wins_over_the_recipe_also_if_it_equals_another_ones() -> None:
    for name, value in RECIPES["paper"].items():
        assert knobs_of(PCLLoss(**{"recipe": "light", name: value})) == RECIPES["light"] | {name: value}


def test_the_light_recipe_makes_few_samples_and_no_sharpened_one() -> None:
    light, paper = PCLLoss(recipe="light").samples.kinds, PCLLoss().samples.kinds
    assert "sharpen" not in light
    assert len(light) <= len(paper) / 3


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recipe must be one of \['paper', 'light'\], got 'lite'"):
        PCLLoss(recipe="lite")


def test_sources_without_a_count_need_none() -> None:
    PCLLoss(positives=("gt",), num_positives=0)
    PCLLoss(negatives=("lq",), num_negatives=0)


# --- the module twin of equation 7 ---


def test_the_discriminator_loss_module_is_its_function_times_the_weight() -> None:
    real, fake = randn(4, 1), randn(3, 1, seed=1)
    expected = contrastive_discriminator_loss(real, fake)
    torch.testing.assert_close(ContrastiveDiscriminatorLoss(0.5)(real, fake), 0.5 * expected)
    # In one process there is nobody to gather from.
    assert torch.equal(ContrastiveDiscriminatorLoss(gather=True)(real, fake), expected)


def test_the_discriminator_loss_module_refuses_bad_arguments() -> None:
    with pytest.raises(TypeError, match="gather must be True or False, got 'yes'"):
        ContrastiveDiscriminatorLoss(gather="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loss_weight must be a number"):
        ContrastiveDiscriminatorLoss("1")  # type: ignore[arg-type]


@pytest.mark.slow
def test_gathered_logits_give_value_and_gradient_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    import ranks

    weights = ranks.start_weights().requires_grad_()
    inputs = [ranks.logit_inputs_of(rank) for rank in range(2)]
    reals, fakes = (torch.cat([pair[side] for pair in inputs]) @ weights for side in (0, 1))
    expected = reference.contrastive_discriminator_loss(reals.tolist(), fakes.tolist())
    (grad,) = torch.autograd.grad(contrastive_discriminator_loss(reals, fakes), weights)
    for results in two_ranks:
        assert results["gathered_loss"].item() == pytest.approx(expected, rel=1e-10)
    averaged = torch.stack([results["gathered_grad"] for results in two_ranks]).mean(0)
    torch.testing.assert_close(averaged, grad, rtol=1e-10, atol=1e-12)
