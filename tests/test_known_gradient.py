"""The loss against frozen samples: the value of the equations, and the gradient that autograd would give."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from helpers import check_gradient_by_finite_differences, rand, randn
from torch import Tensor

from pcl_loss import _known_gradient
from pcl_loss._known_gradient import known_contrastive_loss
from pcl_loss.functional import contrastive_loss, info_nce, info_nce_terms

SHAPES = [(4, 6, 5), (3, 3, 3), (2, 1, 1)]
Maps = list[Tensor]


def random_maps(
    n: int = 3, k_p: int = 3, k_n: int = 4, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> tuple[Maps, Maps, Maps]:
    """Anchor, positives and negatives of three layers; some pixels are 0 in the anchor, some in a sample."""
    anchor = [randn(n, *shape, seed=i) for i, shape in enumerate(SHAPES)]
    positives = [randn(k_p, n, *shape, seed=10 + i) for i, shape in enumerate(SHAPES)]
    negatives = [randn(k_n, n, *shape, seed=20 + i) for i, shape in enumerate(SHAPES)]
    anchor[0][0, :, 0, :2] = 0
    positives[0][0, -1, :, 2, 2] = 0
    return tuple([(scale * maps).to(dtype) for maps in layers] for layers in (anchor, positives, negatives))


def in_chunks(positives: Maps, negatives: Maps, size: int | None = None) -> list[tuple[Tensor, ...]]:
    layers = [torch.cat(pair) for pair in zip(positives, negatives, strict=True)]
    return [maps.split(size or len(maps)) for maps in layers]


def value_and_gradients(
    anchor: Maps, positives: Maps, negatives: Maps, temperature: float = 0.4, size: int | None = None
) -> tuple[Tensor, ...]:
    anchor = [f.clone().requires_grad_() for f in anchor]
    losses, _ = known_contrastive_loss(anchor, in_chunks(positives, negatives, size), len(positives[0]), temperature)
    return losses.mean().detach(), *torch.autograd.grad(losses.mean(), anchor)


def autograds(anchor: Maps, positives: Maps, negatives: Maps, temperature: float = 0.4) -> tuple[Tensor, ...]:
    anchor = [f.clone().requires_grad_() for f in anchor]
    value = contrastive_loss(anchor, positives, negatives, temperature)
    return value.detach(), *torch.autograd.grad(value, anchor)


def check_agrees_with_autograd(**keywords: int) -> None:
    maps = random_maps(**keywords)
    for ours, expected in zip(value_and_gradients(*maps), autograds(*maps), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("k_n", [0, 1, 4])
@pytest.mark.parametrize("k_p", [1, 3])
@pytest.mark.parametrize("n", [1, 3])
def test_value_and_gradient_are_those_of_contrastive_loss_by_autograd(n: int, k_p: int, k_n: int) -> None:
    check_agrees_with_autograd(n=n, k_p=k_p, k_n=k_n)


def test_the_value_of_every_image_and_layer_equals_the_equations_as_loops() -> None:
    anchor, positives, negatives = random_maps()
    losses, sims = known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)
    assert losses.shape == (3, 3)
    assert sims.shape == (3, 3, 7)
    for i in range(3):
        for layer in range(3):
            one = [[maps[layer][..., i : i + 1, :, :, :].numpy()] for maps in (anchor, positives, negatives)]
            assert losses[i, layer].item() == pytest.approx(reference.contrastive_loss(*one, 0.4), rel=1e-10)
            samples = [*positives[layer][:, i], *negatives[layer][:, i]]
            expected = [reference.similarity(anchor[layer][i].numpy(), sample.numpy()) for sample in samples]
            assert sims[i, layer].tolist() == pytest.approx(expected, rel=1e-10)


def test_the_gradient_equals_finite_differences_where_every_image_weighs_differently() -> None:
    anchor, positives, negatives = random_maps()
    weights = rand(3, 3, seed=5)

    def loss(f: Tensor) -> Tensor:
        layers = [f, *anchor[1:]]
        return (known_contrastive_loss(layers, in_chunks(positives, negatives), 3, 0.4)[0] * weights).sum()

    anchor[0][0, :, 0, :2] = 0.3  # at a zero pixel the loss has no derivative
    check_gradient_by_finite_differences(loss, anchor[0])


def test_a_gradient_along_the_anchor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_known_gradient, "NORM_EPS", math.inf)  # nothing is projected out
    with pytest.raises(AssertionError):
        check_agrees_with_autograd()


def test_weights_of_the_wrong_image_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(*args: Tensor) -> tuple[Tensor, ...]:
        losses, *grads = info_nce_terms(*args)
        return losses, *(grad.roll(1, 0) for grad in grads)

    monkeypatch.setattr(_known_gradient, "info_nce_terms", rolled)
    with pytest.raises(AssertionError):
        check_agrees_with_autograd()


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_the_chunks_of_the_samples_do_not_matter(size: int) -> None:
    maps = random_maps()
    for ours, expected in zip(value_and_gradients(*maps, size=size), value_and_gradients(*maps), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("scale", [1e-14, 1e-6, 1e6])
def test_maps_of_any_magnitude_have_autograds_gradient(scale: float) -> None:
    maps = random_maps(scale=scale)
    for ours, expected in zip(value_and_gradients(*maps), autograds(*maps), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_maps_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    maps = random_maps(dtype=dtype)
    in_float32 = [[f.float() for f in layers] for layers in maps]
    value, *grads = value_and_gradients(*maps)
    expected, *expected_grads = autograds(*in_float32)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for grad, f in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, f.to(dtype), rtol=2e-2, atol=1e-5)


def test_a_gradient_may_be_taken_twice_and_one_of_a_gradient_is_refused() -> None:
    anchor, positives, negatives = random_maps()
    anchor = [f.requires_grad_() for f in anchor]
    value = known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)[0].mean()
    first, second = (torch.autograd.grad(value, anchor, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, anchor[0], create_graph=True)


def test_nothing_of_the_samples_is_kept_for_the_backward_pass() -> None:
    anchor, positives, negatives = random_maps()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        anchor = [f.requires_grad_() for f in anchor]
        known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)
    # One map of each anchor's size.
    assert sorted(t.numel() for t in saved) == sorted(f.numel() for f in anchor)


def test_without_a_gradient_to_give_none_is_prepared() -> None:
    anchor, positives, negatives = random_maps()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("a tensor was kept"), lambda t: t):
        losses, sims = known_contrastive_loss(anchor, in_chunks(positives, negatives), 3, 0.4)
    assert not losses.requires_grad
    assert not sims.requires_grad


@pytest.mark.parametrize("k_n", [0, 3])
def test_info_nce_terms_are_info_nce_and_its_derivatives(k_n: int) -> None:
    pos, neg = randn(5, 2).requires_grad_(), randn(5, k_n, seed=1).requires_grad_()
    losses, grad_pos, grad_neg = info_nce_terms(pos, neg, 0.3)
    value = info_nce(pos, neg, 0.3)
    torch.testing.assert_close(losses.mean(), value)
    expected = torch.autograd.grad(value, (pos, neg))
    torch.testing.assert_close(grad_pos / 5, expected[0])
    torch.testing.assert_close(grad_neg / 5, expected[1])
