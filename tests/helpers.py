"""What several test files share: tiny networks, photographs, and witnesses of what happens inside."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import skimage.data
import torch
from torch import Tensor, nn

from pcl_loss import WaveletDiscriminator


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Uniform numbers, from a generator of their own: tests also check that the global one is left alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@contextmanager
def ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """In here a process is started that obeys Ctrl-C: where tests run in the background of a shell, it is ignored, and
    a child inherits that.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def photograph(name: str) -> Tensor:
    """A free photograph of scikit-image's, `(3, H, W)`, float32 in [0, 1]."""
    return torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1).float() / 255


def photograph_crops(size: int) -> Tensor:
    """Three textured crops of each of four photographs, `(12, 3, size, size)`."""
    corners = {
        "astronaut": [(60, 180), (200, 100), (330, 200)],
        "chelsea": [(60, 120), (120, 200), (180, 300)],
        "coffee": [(100, 150), (150, 300), (250, 50)],
        "rocket": [(150, 280), (280, 250), (320, 120)],
    }
    return torch.stack(
        [photograph(name)[:, y : y + size, x : x + size] for name, places in corners.items() for y, x in places]
    )


def tiny_discriminator(
    norm: str = "batch",
    wavelet: bool = True,
    num_feat: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> WaveletDiscriminator:
    """A small E_D in training mode whose weights, biases and statistics all differ from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = WaveletDiscriminator(num_feat=num_feat, norm=norm, wavelet=wavelet).to(dtype)
        net(torch.rand(4, 3, 32, 32, dtype=dtype))
        with torch.no_grad():
            for block in net.blocks:
                for name, param in block.named_parameters():
                    if param.dim() == 1:
                        low = 0.5 if name == "norm.weight" else -0.2
                        param.uniform_(low, low + 0.4)
    return net


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def skip_kornias_sigma_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kornia's blur run on fake tensors.

    It reads its sigmas once, on the CPU where we draw them; that costs no sync, but a fake tensor has no value to read.
    """
    monkeypatch.setattr(importlib.import_module("kornia.filters.gaussian"), "is_compiling", lambda: True)


def check_gradient_by_finite_differences(
    loss: Callable[[Tensor], Tensor], at: Tensor, *, directions: int = 6, pixels: int = 6, eps: float = 1e-6
) -> None:
    """Raise AssertionError unless `loss` has a gradient at `at` that is not 0 and that finite differences confirm."""
    x = at.detach().clone().requires_grad_()
    value = loss(x)
    assert value.requires_grad, "the loss has no gradient at all"
    (grad,) = torch.autograd.grad(value, x)
    assert grad.abs().max() > 0, "the gradient is 0"

    steps = [randn(*x.shape, seed=seed) for seed in range(directions)]
    strongest = grad.abs().flatten().topk(pixels).indices
    for index in strongest:
        step = torch.zeros_like(x)
        step.view(-1)[index] = 1.0
        steps.append(step)
    for step in steps:
        with torch.no_grad():
            slope = (loss(x + eps * step) - loss(x - eps * step)) / (2 * eps)
        torch.testing.assert_close((grad * step).sum(), slope, rtol=1e-5, atol=1e-9)
