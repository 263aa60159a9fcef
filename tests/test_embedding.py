"""The fixed embedding is Haar bands beside a constant; VGG embeds as torchvision computes it and stays frozen."""

from pathlib import Path

import numpy as np
import pytest
import pywt
import torch
import torchvision
from helpers import rand
from torch import nn

from pcl_loss import FixedEmbedding, VGGEmbedding, functional


def test_the_fixed_maps_are_pywavelets_bands_of_every_phase_over_the_threshold_and_a_constant() -> None:
    x = rand(2, 3, 48, 40)
    (maps,) = FixedEmbedding(threshold=0.05).embed(x)
    assert maps.shape == (2, 10, 47, 39)
    for top, left in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        shifted = x.numpy()[..., top : 48 - top, left : 40 - left]
        low, bands = pywt.dwt2(shifted, "haar")
        expected = np.concatenate([*(band / 0.05 for band in bands), np.ones_like(low[:, :1])], 1)
        torch.testing.assert_close(maps[..., top::2, left::2], torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_a_coarser_scale_sees_the_smoothed_image_at_twice_the_distance() -> None:
    x = rand(1, 1, 40, 36)
    maps = FixedEmbedding(1, num_layers=2, threshold=0.05).embed(x)[1]
    smooth = np.zeros((39, 35))
    for i in range(39):
        for j in range(35):
            smooth[i, j] = x[0, 0, i : i + 2, j : j + 2].mean().item()
    for i, j in [(0, 0), (5, 7), (36, 32)]:
        a, b, c, d = smooth[i, j], smooth[i, j + 2], smooth[i + 2, j], smooth[i + 2, j + 2]
        bands = np.array([a + b - c - d, a - b + c - d, a - b - c + d]) / 2 / 0.05
        np.testing.assert_allclose(maps[0, :, i, j].numpy(), [*bands, 1], rtol=1e-10, atol=1e-12)
    assert maps.shape == (1, 4, 37, 33)


def test_noise_far_below_the_threshold_counts_little_and_an_edge_far_above_it_counts_much() -> None:
    def similarity_to_its_negative(size: float) -> float:
        """The bands of opposite images are opposite: the cosine at a pixel is (1 - b^2) / (1 + b^2)."""
        checks = (torch.arange(32) % 2).double().expand(1, 1, 32, 32) * 2 - 1
        f, g = (FixedEmbedding(1, 1).embed(0.5 + sign * size * checks)[0] for sign in (1, -1))
        return functional.similarity(f, g[None]).item()

    for size in (0.0005, 0.005, 0.2):
        b = 2 * size / 0.01  # an orthonormal Haar band of a checked line of +-size is twice that
        assert similarity_to_its_negative(size) == pytest.approx((1 - b**2) / (1 + b**2), rel=1e-6)
    assert similarity_to_its_negative(0.0005) > 0.97
    assert similarity_to_its_negative(0.2) < -0.99


def test_the_fixed_embedding_holds_no_number_and_gives_the_image_its_gradient() -> None:
    fixed = FixedEmbedding()
    assert not fixed.state_dict()
    x = rand(1, 3, 32, 32).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(fixed.embed(x)), (x,), fast_mode=True)


def maps_by_hooks(features: nn.Sequential, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The outputs of torchvision's own ReLUs, on the input normalised by hand."""
    found: list[torch.Tensor] = []
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.clone()))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features(torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1))
    return found[:count]


@pytest.mark.parametrize(("vgg", "count"), [("vgg19", 4), ("vgg11", 3)])
def test_the_maps_are_those_after_the_first_relus(vgg: str, count: int, tmp_path: Path) -> None:
    # torchvision's own layers, without the large classifier behind them.
    layers = {"vgg11": "A", "vgg19": "E"}[vgg]
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[layers]).eval()
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "vgg.pth")
    x = rand(2, 3, 48, 40, dtype=torch.float32)
    embedding = VGGEmbedding(vgg, count, tmp_path / "vgg.pth")
    maps = embedding.embed(x.requires_grad_(), count)
    (grad,) = torch.autograd.grad(maps[-1].square().sum(), x)
    assert grad.any()
    assert not any(p.requires_grad for p in embedding.parameters())
    for ours, theirs in zip(maps, maps_by_hooks(features, x, count), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vgg must be one of .*'vgg19'.*got 'vgg20'"):
        VGGEmbedding("vgg20", weights=None)
    with pytest.raises(ValueError, match="num_layers must be from 1 to 2, got 3"):
        FixedEmbedding(num_layers=2).embed(rand(1, 3, 32, 32), 3)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*features"):
        VGGEmbedding("vgg11", weights=tmp_path / "other.pth")
    vgg = VGGEmbedding("vgg11", 2, weights=None)
    with pytest.raises(ValueError, match="takes RGB, not 1 channels"):
        vgg.embed(torch.zeros(1, 1, 32, 32), 2)
