from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import reference
import torch
from helpers import check_gradient_by_finite_differences, rand, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcl_loss import functional
from pcl_loss.functional import (
    contrastive_discriminator_loss,
    contrastive_loss,
    energy_loss,
    info_nce_slopes,
    known_contrastive_loss,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
Maps = list[Tensor]


def random_maps(n: int, k_p: int, k_n: int, shapes: Sequence[tuple[int, int, int]], seed: int = 0) -> list[Maps]:
    """Anchor, positives and negatives, each a list of layers."""
    kinds = enumerate([(n,), (k_p, n), (k_n, n)])
    return [[randn(*k, *shape, seed=seed + 10 * i + j) for i, shape in enumerate(shapes)] for j, k in kinds]


def logsumexp_over_all(anchor: Maps, positives: Maps, negatives: Maps, temperature: float) -> Tensor:
    """A plausible mistake: the denominator of equation 8 holds all positives, as in other contrastive losses."""
    losses = []
    for f, p, n in zip(anchor, positives, negatives, strict=True):
        f, p, n = (torch.nn.functional.normalize(t, dim=-3) for t in (f, p, n))
        pos, neg = ((f * t).sum(-3).mean((-2, -1)) / temperature for t in (p, n))
        losses.append((torch.logsumexp(torch.cat([pos, neg]), 0) - pos).mean())
    return torch.stack(losses).mean()


SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)
MAPS = st.builds(random_maps, st.integers(1, 3), st.integers(1, 4), st.integers(0, 4), SHAPES, st.integers(0, 10_000))


def check_equals_loops(loss: Callable[..., Tensor], maps: list[Maps], temperature: float) -> None:
    expected = reference.contrastive_loss(*([t.numpy() for t in layers] for layers in maps), temperature)
    ours = loss(*maps, temperature)
    assert ours.shape == ()
    torch.testing.assert_close(ours.item(), expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(MAPS, st.floats(0.03, 10.0), st.sampled_from([1e-3, 1.0, 1e3]), st.booleans())
def test_contrastive_loss_equals_the_equations_as_loops(
    maps: list[Maps], temperature: float, scale: float, has_zeros: bool
) -> None:
    for f in maps[0]:
        f *= scale
    if has_zeros:
        maps[0][0][..., 0, 0] = 0
    check_equals_loops(contrastive_loss, maps, temperature)


def test_the_loops_tell_other_contrastive_losses_apart() -> None:
    with pytest.raises(AssertionError):
        check_equals_loops(logsumexp_over_all, random_maps(2, 3, 3, [(3, 2, 2)]), 0.7)


@pytest.mark.parametrize("k_n", [0, 1, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_gradient_to_every_map_equals_finite_differences(k_n: int, temperature: float) -> None:
    anchor, positives, negatives = random_maps(2, 2, k_n, [(3, 2, 3), (2, 2, 1)])
    flat = [t.requires_grad_() for t in (*anchor, *positives, *negatives)]

    def loss(a0: Tensor, a1: Tensor, p0: Tensor, p1: Tensor, n0: Tensor, n1: Tensor) -> Tensor:
        return contrastive_loss([a0, a1], [p0, p1], [n0, n1], temperature)

    assert torch.autograd.gradcheck(loss, flat)
    if k_n:
        grads = torch.autograd.grad(loss(*flat), flat)
        assert all(grad.abs().max() > 0 for grad in grads)


def test_equal_similarities_and_a_perfect_match_against_an_opposite_have_their_closed_forms() -> None:
    f, sample = randn(2, 3, 4, 4), randn(1, 2, 3, 4, 4, seed=1)
    equal = contrastive_loss([f], [sample.expand(3, -1, -1, -1, -1)], [sample.expand(7, -1, -1, -1, -1)], 0.3)
    assert equal.item() == pytest.approx(math.log(1 + 7), rel=1e-12)
    opposite = contrastive_loss([f], [7 * f[None]], [-2 * f[None]], 0.5)
    assert opposite.item() == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_zero_at_all_zero_pixels_and_alive_elsewhere(dtype: torch.dtype) -> None:
    anchor = randn(1, 3, 4, 4, dtype=dtype)
    dead = torch.zeros(4, 4, dtype=torch.bool)
    dead[1, 2] = dead[3, 3] = True
    anchor[:, :, dead] = 0
    anchor.requires_grad_()
    positives, negatives = (randn(2, 1, 3, 4, 4, seed=seed, dtype=dtype) for seed in (1, 2))
    value = contrastive_loss([anchor], [positives], [negatives])
    (grad,) = torch.autograd.grad(value, anchor)
    assert grad.dtype == dtype
    assert value.isfinite()
    assert grad.isfinite().all()
    assert not grad[:, :, dead].any()
    assert (grad[:, :, ~dead] != 0).any(1).all()
    zeros = torch.zeros(1, 3, 4, 4, dtype=dtype, requires_grad=True)
    value = contrastive_loss([zeros], [zeros[None]], [zeros.expand(3, 1, -1, -1, -1)])
    assert value.item() == pytest.approx(math.log(4), rel=1e-6)
    assert not torch.autograd.grad(value, zeros)[0].any()


def test_autocast_changes_nothing() -> None:
    maps = [[layer.float() for layer in layers] for layers in random_maps(2, 2, 3, [(16, 9, 9)])]
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(*maps, 0.2)
    assert torch.equal(inside, contrastive_loss(*maps, 0.2))


LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(LOGITS, LOGITS)
def test_discriminator_loss_equals_equation_7_as_loops(reals: list[float], fakes: list[float]) -> None:
    value = contrastive_discriminator_loss(
        torch.tensor(reals, dtype=torch.float64), torch.tensor(fakes, dtype=torch.float64)
    )
    torch.testing.assert_close(
        value.item(), reference.contrastive_discriminator_loss(reals, fakes), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("num_real", "num_fake"), [(1, 1), (4, 4), (2, 7)])
def test_equal_logits_give_the_sum_of_two_logs(num_real: int, num_fake: int) -> None:
    value = contrastive_discriminator_loss(torch.full((num_real, 1), 0.7), torch.full((num_fake, 1), 0.7))
    assert value.item() == pytest.approx(math.log(1 + num_fake) + math.log(1 + num_real), rel=1e-6)


def test_discriminator_loss_pulls_reals_up_and_fakes_down() -> None:
    logits = randn(3).requires_grad_(), randn(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(contrastive_discriminator_loss, logits)
    of_reals, of_fakes = torch.autograd.grad(contrastive_discriminator_loss(*logits), logits)
    assert (of_reals < 0).all()
    assert (of_fakes > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    real = torch.tensor([-3e4, 3e4], dtype=dtype, requires_grad=True)
    value = contrastive_discriminator_loss(real, torch.tensor([3e4, -3e4], dtype=dtype))
    assert value.isfinite()
    assert torch.autograd.grad(value, real)[0].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    anchor, positives, negatives = random_maps(2, 2, 2, [(3, 4, 4)])
    for maps, message in [
        (([], [], []), "at least one layer"),
        ((anchor, [positives[0][:, :1]], negatives), r"positives\[0\] has shape \(2, 1, 3, 4, 4\)"),
        ((anchor, positives, negatives, 0), "temperature must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            contrastive_loss(*maps)
    with pytest.raises(ValueError, match="at least one logit each, got 0 and 2"):
        contrastive_discriminator_loss(torch.zeros(0), torch.zeros(2))


def test_the_energy_term_equals_its_loops_for_every_image() -> None:
    sr, hr = randn(2, 3, 27, 23), randn(2, 3, 27, 23, seed=1)
    for value, *image in zip(energy_loss(sr, hr), sr.numpy(), hr.numpy(), strict=True):
        assert value.item() == pytest.approx(reference.energy_loss(*image), rel=1e-10)


def test_the_energy_term_has_the_gradient_of_finite_differences() -> None:
    hr = randn(1, 3, 22, 22, seed=1)
    check_gradient_by_finite_differences(lambda x: energy_loss(x, hr).sum(), randn(1, 3, 22, 22))


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_bands_that_are_scaled_have_the_log_of_their_factor(factor: float) -> None:
    bands = 1e6 * randn(2, 3, 24, 24)  # far above the floor
    torch.testing.assert_close(energy_loss(factor * bands, bands), torch.full((2,), abs(math.log(factor))).double())


@pytest.mark.parametrize("period", [2, 3, 4])
def test_a_pattern_that_repeats_as_a_grid_of_upsampling_has_no_energy(period: int) -> None:
    sr, hr = randn(1, 3, 24, 24), randn(1, 3, 24, 24, seed=1)
    grid = randn(1, 3, period, period, seed=2).tile(1, 1, 24 // period, 24 // period)
    torch.testing.assert_close(energy_loss(sr + 5 * grid, hr), energy_loss(sr, hr), rtol=1e-10, atol=0)


# --- against samples that receive no gradient: the value of the equations, and autograd's gradient ---


def layered_maps(n: int = 3, k_p: int = 3, k_n: int = 4, scale: float = 1.0) -> list[Maps]:
    """Anchor, positives and negatives of three layers; some pixels are 0 in the anchor, some in a sample."""
    anchor, positives, negatives = random_maps(n, k_p, k_n, [(4, 6, 5), (3, 3, 3), (2, 1, 1)])
    anchor[0][0, :, 0, :2] = 0
    positives[0][0, -1, :, 2, 2] = 0
    return [[scale * layer for layer in maps] for maps in (anchor, positives, negatives)]


def in_chunks(positives: Maps, negatives: Maps, size: int = 100) -> list[tuple[Tensor, ...]]:
    return [torch.cat(pair).split(size) for pair in zip(positives, negatives, strict=True)]


def check_agrees_with_autograd(size: int = 100, **keywords: Any) -> None:
    anchor, positives, negatives = layered_maps(**keywords)
    anchor = [f.requires_grad_() for f in anchor]
    ours = known_contrastive_loss(anchor, in_chunks(positives, negatives, size), len(positives[0]), 0.4)[0].mean()
    expected = contrastive_loss(anchor, positives, negatives, 0.4)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    for one, other in zip(*(torch.autograd.grad(value, anchor) for value in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14 / keywords.get("scale", 1))


SIZES = [{"k_n": 0}, {"k_n": 1, "k_p": 1, "n": 1}, {"scale": 1e-14}, {"scale": 1e6}, {"size": 1}, {"size": 5}]


@pytest.mark.parametrize("keywords", SIZES)
def test_value_and_gradient_are_those_of_contrastive_loss_by_autograd(keywords: dict[str, Any]) -> None:
    check_agrees_with_autograd(**keywords)


def test_the_gradient_equals_finite_differences_where_every_image_weighs_differently() -> None:
    anchor, positives, negatives = layered_maps()
    weights = rand(3, 3, seed=5)

    def loss(f: Tensor) -> Tensor:
        layers = [f, *anchor[1:]]
        return (known_contrastive_loss(layers, in_chunks(positives, negatives), 3, 0.4)[0] * weights).sum()

    anchor[0][0, :, 0, :2] = 0.3  # at a zero pixel the loss has no derivative
    check_gradient_by_finite_differences(loss, anchor[0])


def test_a_gradient_along_the_anchor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Tensor.addcmul_  # nothing is projected out
    monkeypatch.setattr(Tensor, "addcmul_", lambda x, a, b, value=1: x if value == -1 else add(x, a, b))
    with pytest.raises(AssertionError):
        check_agrees_with_autograd()


def test_weights_of_the_wrong_image_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "info_nce_slopes", lambda *args: [x.roll(1, 0) for x in info_nce_slopes(*args)])
    with pytest.raises(AssertionError):
        check_agrees_with_autograd()


def test_a_gradient_may_be_taken_twice_and_one_of_a_gradient_is_refused() -> None:
    anchor, positives, negatives = layered_maps()
    anchor = [f.requires_grad_() for f in anchor]
    value = known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)[0].mean()
    first, second = (torch.autograd.grad(value, anchor, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, anchor[0], create_graph=True)


def test_nothing_of_the_samples_is_kept_for_the_backward_pass() -> None:
    anchor, positives, negatives = layered_maps()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        anchor = [f.requires_grad_() for f in anchor]
        known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)
    # One map of each anchor's size.
    assert sorted(t.numel() for t in saved) == sorted(f.numel() for f in anchor)
