from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import reference
import torch
from helpers import randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcl_loss.functional import contrastive_discriminator_loss, contrastive_loss

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
Maps = list[Tensor]


def random_maps(
    n: int, k_p: int, k_n: int, shapes: Sequence[tuple[int, int, int]], seed: int = 0
) -> tuple[Maps, Maps, Maps]:
    return (
        [randn(n, *shape, seed=seed + 10 * i) for i, shape in enumerate(shapes)],
        [randn(k_p, n, *shape, seed=seed + 10 * i + 1) for i, shape in enumerate(shapes)],
        [randn(k_n, n, *shape, seed=seed + 10 * i + 2) for i, shape in enumerate(shapes)],
    )


def logsumexp_over_all(anchor: Maps, positives: Maps, negatives: Maps, temperature: float) -> Tensor:
    """A plausible mistake: the denominator of equation 8 holds all positives, as in other contrastive losses."""
    losses = []
    for f, p, n in zip(anchor, positives, negatives, strict=True):
        f, p, n = (torch.nn.functional.normalize(t, dim=-3) for t in (f, p, n))
        pos, neg = ((f * t).sum(-3).mean((-2, -1)) / temperature for t in (p, n))
        losses.append((torch.logsumexp(torch.cat([pos, neg]), 0) - pos).mean())
    return torch.stack(losses).mean()


@st.composite
def loss_inputs(draw: st.DrawFn) -> tuple[Maps, Maps, Maps, float]:
    sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
    shapes = draw(st.lists(sizes, min_size=1, max_size=4))
    maps = random_maps(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 4)),
        shapes,
        seed=draw(st.integers(0, 10_000)),
    )
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    if draw(st.booleans()):
        maps[0][0][..., 0, 0] = 0
    return [f * scale for f in maps[0]], maps[1], maps[2], draw(st.floats(0.03, 10.0))


def check_equals_loops(loss: Callable[..., Tensor], maps: tuple[Maps, Maps, Maps], temperature: float) -> None:
    expected = reference.contrastive_loss(*([t.numpy() for t in layers] for layers in maps), temperature)
    ours = loss(*maps, temperature)
    assert ours.shape == ()
    torch.testing.assert_close(ours.item(), expected, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(loss_inputs())
def test_contrastive_loss_equals_the_equations_as_loops(inputs: tuple[Maps, Maps, Maps, float]) -> None:
    *maps, temperature = inputs
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


@pytest.mark.parametrize("k_n", [1, 4, 7])
def test_equal_similarities_give_log_one_plus_k_n(k_n: int) -> None:
    f = randn(2, 3, 4, 4)
    sample = randn(1, 2, 3, 4, 4, seed=1)
    value = contrastive_loss([f], [sample.expand(3, -1, -1, -1, -1)], [sample.expand(k_n, -1, -1, -1, -1)], 0.3)
    assert value.item() == pytest.approx(math.log(1 + k_n), rel=1e-12)


def test_perfect_match_against_an_opposite_has_its_closed_form() -> None:
    f = randn(2, 3, 4, 4)
    value = contrastive_loss([f], [7 * f[None]], [-2 * f[None]], 0.5)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-12)


def test_no_negatives_give_zero_and_a_zero_gradient() -> None:
    anchor, positives, negatives = random_maps(2, 3, 0, [(3, 4, 4), (2, 2, 2)])
    for f in anchor:
        f.requires_grad_()
    value = contrastive_loss(anchor, positives, negatives)
    value.backward()
    assert value.item() == 0
    for f in anchor:
        assert f.grad is not None
        assert not f.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_zero_maps_give_log_one_plus_k_n_and_a_zero_gradient(dtype: torch.dtype) -> None:
    anchor = torch.zeros(2, 3, 4, 4, dtype=dtype, requires_grad=True)
    positives = randn(2, 2, 3, 4, 4, dtype=dtype).requires_grad_()
    negatives = torch.zeros(3, 2, 3, 4, 4, dtype=dtype, requires_grad=True)
    value = contrastive_loss([anchor], [positives], [negatives])
    value.backward()
    assert value.item() == pytest.approx(math.log(4), rel=1e-6)
    assert anchor.grad is not None
    assert positives.grad is not None
    assert negatives.grad is not None
    assert not anchor.grad.any()
    assert not negatives.grad.any()
    assert positives.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_zero_at_all_zero_pixels_and_alive_elsewhere(dtype: torch.dtype) -> None:
    anchor = randn(1, 3, 4, 4, dtype=dtype)
    dead = torch.zeros(4, 4, dtype=torch.bool)
    dead[1, 2] = dead[3, 3] = True
    anchor[:, :, dead] = 0
    anchor.requires_grad_()
    value = contrastive_loss(
        [anchor], [randn(2, 1, 3, 4, 4, seed=1, dtype=dtype)], [randn(2, 1, 3, 4, 4, seed=2, dtype=dtype)]
    )
    value.backward()
    assert anchor.grad is not None
    assert anchor.grad.dtype == dtype
    assert value.isfinite()
    assert anchor.grad.isfinite().all()
    assert not anchor.grad[:, :, dead].any()
    assert (anchor.grad[:, :, ~dead] != 0).any(1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e-6, 1e6, 1e15])
def test_maps_of_any_magnitude_give_finite_values_and_gradients(scale: float) -> None:
    anchor, positives, negatives = random_maps(2, 2, 2, [(3, 4, 4)])
    f = (anchor[0] * scale).float().requires_grad_()
    value = contrastive_loss([f], [(positives[0] * scale).float()], [(negatives[0] * scale).float()])
    value.backward()
    assert value.isfinite()
    assert f.grad is not None
    assert f.grad.isfinite().all()


def test_the_scale_of_a_map_does_not_matter() -> None:
    anchor, positives, negatives = random_maps(2, 2, 2, [(3, 4, 4)])
    value = contrastive_loss(anchor, positives, negatives)
    scaled = contrastive_loss([3 * anchor[0]], [0.1 * positives[0]], [50 * negatives[0]])
    torch.testing.assert_close(scaled, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_maps_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    anchor, positives, negatives = ([t.to(dtype) for t in maps] for maps in random_maps(2, 2, 3, [(16, 9, 9)]))
    value = contrastive_loss(anchor, positives, negatives, 0.2)
    exact = contrastive_loss(*([t.double() for t in maps] for maps in (anchor, positives, negatives)), 0.2)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_autocast_changes_nothing() -> None:
    maps = tuple([t.float() for t in layers] for layers in random_maps(2, 2, 3, [(16, 9, 9)]))
    logits = randn(4, dtype=torch.float32), randn(3, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(*maps, 0.2), contrastive_discriminator_loss(*logits)
    outside = contrastive_loss(*maps, 0.2), contrastive_discriminator_loss(*logits)
    for a, b in zip(inside, outside, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_contrastive_loss_compiles_without_a_graph_break() -> None:
    maps = random_maps(2, 2, 3, [(3, 4, 4), (2, 2, 2)])
    maps[0][0].requires_grad_()
    compiled = torch.compile(contrastive_loss, fullgraph=True, backend="aot_eager")
    value, expected = compiled(*maps, 0.5), contrastive_loss(*maps, 0.5)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    (grad,), (expected_grad,) = (torch.autograd.grad(v, maps[0][0]) for v in (value, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


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


def test_logits_of_any_shape_are_flattened() -> None:
    real, fake = randn(6), randn(4, seed=1)
    value = contrastive_discriminator_loss(real.view(1, 3, 2), fake.view(4, 1))
    assert torch.equal(value, contrastive_discriminator_loss(real, fake))


def test_discriminator_loss_pulls_reals_up_and_fakes_down() -> None:
    real, fake = randn(3).requires_grad_(), randn(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(contrastive_discriminator_loss, (real, fake))
    contrastive_discriminator_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    real = torch.tensor([-3e4, 3e4], dtype=dtype, requires_grad=True)
    value = contrastive_discriminator_loss(real, torch.tensor([3e4, -3e4], dtype=dtype))
    value.backward()
    assert value.isfinite()
    assert real.grad is not None
    assert real.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_a_temperature_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be"):
        contrastive_loss(*random_maps(1, 1, 1, [(2, 2, 2)]), temperature)


def test_a_temperature_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"temperature must be a number, got '0\.1'"):
        contrastive_loss(*random_maps(1, 1, 1, [(2, 2, 2)]), "0.1")  # type: ignore[arg-type]


def test_maps_that_do_not_fit_each_other_are_refused() -> None:
    anchor, positives, negatives = random_maps(2, 2, 2, [(3, 4, 4)])
    with pytest.raises(ValueError, match="1, 1 and 0 layers"):
        contrastive_loss(anchor, positives, [])
    with pytest.raises(ValueError, match="at least one layer"):
        contrastive_loss([], [], [])
    with pytest.raises(ValueError, match=r"positives\[0\] has shape \(2, 1, 3, 4, 4\)"):
        contrastive_loss(anchor, [positives[0][:, :1]], negatives)
    with pytest.raises(ValueError, match=r"negatives\[0\] has shape \(2, 3, 4, 4\)"):
        contrastive_loss(anchor, positives, [negatives[0][0]])
    with pytest.raises(ValueError, match=r"positives\[0\] holds no sample"):
        contrastive_loss(anchor, [positives[0][:0]], negatives)
    with pytest.raises(ValueError, match=r"anchor\[0\] has shape \(3, 4, 4\)"):
        contrastive_loss([anchor[0][0]], positives, negatives)


def test_empty_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one logit each, got 0 and 2"):
        contrastive_discriminator_loss(torch.zeros(0), torch.zeros(2))


def test_maps_of_different_dtypes_are_compared_in_the_wider_one() -> None:
    anchor, positives, negatives = random_maps(2, 2, 3, [(3, 4, 4)])
    mixed = contrastive_loss([anchor[0].float()], positives, negatives)
    wide = contrastive_loss([anchor[0].float().double()], positives, negatives)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, wide, rtol=1e-12, atol=0)
