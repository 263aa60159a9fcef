"""On a GPU: the values of the CPU, and no hidden wait. Run by `make test-gpu`; skipped without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import photograph_crops, tiny_discriminator
from torch import Tensor

from pcl_loss import PCLCriterion, PCLLoss

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def images(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """sr, which requires a gradient, hr and lq."""
    hr = photograph_crops(64)[::3]
    lq = torch.nn.functional.interpolate(hr, (16, 16), mode="area")
    sr = torch.nn.functional.interpolate(lq, (64, 64), mode="bicubic")
    return sr.to(device).requires_grad_(), hr.to(device), lq.to(device)


def test_value_and_gradient_are_those_of_the_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        sr, hr, lq = images(device)
        net = tiny_discriminator(num_feat=8, dtype=torch.float32).to(device)
        value = PCLLoss(negatives=("blur", "lq", "batch"))(sr, hr, net, lq)
        results.append((value.detach().cpu(), torch.autograd.grad(value, sr)[0].cpu()))
    (value, grad), (on_gpu, grad_on_gpu) = results
    torch.testing.assert_close(on_gpu, value, rtol=1e-3, atol=0)
    assert torch.nn.functional.cosine_similarity(grad.flatten(), grad_on_gpu.flatten(), 0) > 0.999


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
def test_a_training_step_never_waits_for_the_gpu(amp: torch.dtype | None) -> None:
    sr, hr, lq = images("cuda")
    criterion = PCLCriterion(num_feat=8, negatives=("blur", "lq", "batch"), update_every=2).cuda()
    for _ in range(2):  # what is made at the first steps may wait
        criterion(sr, hr, lq).backward()
    with waits_are_errors(), torch.autocast("cuda", amp, enabled=amp is not None):
        for _ in range(2):
            criterion(sr, hr, lq).backward()
