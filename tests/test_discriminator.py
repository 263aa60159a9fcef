from __future__ import annotations

from collections.abc import Callable

import pytest
import reference
import torch
from helpers import check_gradient_by_finite_differences, rand, randn, tiny_discriminator
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import WaveletDiscriminator, haar_dwt
from pcl_loss.discriminator import QuickStartBatchNorm2d, _Block
from pcl_loss.functional import contrastive_discriminator_loss

KINDS = [("batch", True), ("group", True), ("none", True), ("batch", False), ("none", False)]


def weights_of(net: nn.Module) -> Callable[[list[Tensor]], Tensor]:
    """A fixed random projection, so that a gradient of all maps can be checked as that of one number."""
    return lambda maps: torch.stack([(m * randn(*m.shape, seed=i)).mean() for i, m in enumerate(maps)]).sum()


def check_survives_a_training_step(net: WaveletDiscriminator) -> None:
    """Raise unless a step between forward and backward leaves the pending gradient as it was."""
    image = rand(2, 3, 32, 32).requires_grad_()
    project = weights_of(net)
    (expected,) = torch.autograd.grad(project(net.embed(image, 4)), image)

    pending = project(net.embed(image, 4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    contrastive_discriminator_loss(net(rand(4, 3, 32, 32, seed=1)), net(rand(4, 3, 32, 32, seed=2))).backward()
    optimizer.step()
    optimizer.zero_grad()
    (grad,) = torch.autograd.grad(pending, image)
    assert torch.equal(grad, expected)
    (moved,) = torch.autograd.grad(project(net.embed(image, 4)), image)
    assert not torch.equal(moved, expected), "the step changed nothing, so the check could not fail"


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_the_frozen_view_gives_a_gradient_to_the_image_alone(norm: str, wavelet: bool) -> None:
    net = tiny_discriminator(norm, wavelet)
    project = weights_of(net)
    check_gradient_by_finite_differences(lambda x: project(net.embed(x, 4)), rand(2, 3, 32, 32), eps=1e-7)
    image = rand(2, 3, 32, 32).requires_grad_()
    project(net.embed(image, 4)).backward()
    assert image.grad is not None
    for name, param in net.named_parameters():
        assert param.grad is None, f"{name} received a gradient"


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_an_optimizer_step_leaves_a_pending_backward_as_it_was(norm: str, wavelet: bool) -> None:
    check_survives_a_training_step(tiny_discriminator(norm, wavelet))


def test_detached_but_shared_weights_in_embed_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "clone", lambda x, **_: x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        check_survives_a_training_step(tiny_discriminator("none"))


@pytest.mark.parametrize(("norm", "wavelet"), KINDS)
def test_the_frozen_view_equals_a_recomputation_of_each_image_alone(norm: str, wavelet: bool) -> None:
    net = tiny_discriminator(norm, wavelet, num_feat=3)
    images = rand(3, 3, 32, 36)
    maps = net.embed(images, 4)
    for i, image in enumerate(images):
        for ours, theirs in zip(maps, reference.embed(net, image.numpy(), 4), strict=True):
            torch.testing.assert_close(ours[i], torch.from_numpy(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 4, 8])
def test_only_the_blocks_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch, num_layers: int) -> None:
    computed: list[_Block] = []
    original = _Block.frozen
    monkeypatch.setattr(_Block, "frozen", lambda self, *args: (computed.append(self), original(self, *args))[1])
    net = tiny_discriminator()
    maps = net.embed(rand(2, 3, 64, 64), num_layers)
    assert computed == list(net.blocks)[:num_layers]
    sizes, widths = [32, 16, 16, 8, 8, 4, 4, 2], [1, 1, 2, 2, 4, 4, 8, 8]
    expected = [(2, 2 * w, s, s) for w, s in zip(widths, sizes, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected[:num_layers]
    assert net.head.in_features == 16


def test_only_high_frequencies_are_seen() -> None:
    net = tiny_discriminator("none").eval()
    image, flat = rand(2, 3, 32, 32), torch.full((2, 3, 1, 1), 0.3, dtype=torch.float64)
    for a, b in zip(net.embed(image, 4), net.embed(image + flat, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # And the three bands enter in the order LH, HL, HH, by channel within each.
    weight = net.blocks[0].conv.weight
    expected = F.conv2d(torch.cat(haar_dwt(image)[1:], 1), weight, net.blocks[0].conv.bias, padding=1)
    torch.testing.assert_close(net.embed(image, 1)[0], F.leaky_relu(expected, 0.2))


def check_statistics_over_updates(norm: nn.BatchNorm2d) -> None:
    """Raise unless the statistics follow the recursion with momentum max(0.1, 1 / n) for 15 updates."""
    inputs = [(1 + n) * randn(2, 3, 4, 4, seed=n) + n for n in range(15)]
    for n, x in enumerate(inputs, 1):
        norm(x)
        mean, var = reference.running_statistics(inputs[:n])
        assert norm.num_batches_tracked.item() == n
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)


def test_statistics_follow_their_recursion_over_fifteen_updates() -> None:
    check_statistics_over_updates(QuickStartBatchNorm2d(3).double())


def test_pytorchs_fixed_momentum_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        check_statistics_over_updates(nn.BatchNorm2d(3).double())


def test_embed_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    net = tiny_discriminator()
    image = rand(2, 3, 32, 32).requires_grad_()
    compiled = torch.compile(net.embed, fullgraph=True, backend="aot_eager")
    project = weights_of(net)
    results = []
    for embed in (compiled, net.embed):
        value = project(embed(image, 4))
        results.append((value, *torch.autograd.grad(value, image)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in net.parameters())


def test_what_does_not_fit_is_refused() -> None:
    net = tiny_discriminator(dtype=torch.float32)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(tiny_discriminator(dtype=torch.float32))
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: WaveletDiscriminator(norm="instance"), r"norm must be one of .*, got 'instance'"),
        (lambda: WaveletDiscriminator(wavelet=1), "wavelet must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: net(torch.zeros(2, 1, 32, 32)), r"x has 1 channels, but 3 are expected.*num_in_ch=1"),
        (lambda: net.embed(torch.zeros(2, 3, 31, 64), 4), "31x64, but at least 32x32"),
        (lambda: net.embed(torch.zeros(1, 3, 32, 32), 9), "num_layers must be from 1 to 8, got 9"),
        (lambda: synced.embed(torch.zeros(1, 3, 32, 32), 1), "cannot freeze a SyncBatchNorm"),
    ]
    for call, message in refused:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
