from __future__ import annotations

import pytest
import pywt
import torch
from helpers import rand, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_loss import haar_dwt

SIZES = st.integers(2, 19)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), SIZES, SIZES, st.integers(0, 1000))
def test_haar_equals_pywavelets_and_pads_odd_sizes_by_reflection(n: int, c: int, h: int, w: int, seed: int) -> None:
    x = randn(n, c, h, w, seed=seed)
    ll, (lh, hl, hh) = pywt.dwt2(x.numpy(), "haar", mode="reflect")
    for ours, theirs in zip(haar_dwt(x), (ll, lh, hl, hh), strict=True):
        assert ours.shape == (n, c, -(-h // 2), -(-w // 2))
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (5, 3)])
def test_gradient_equals_finite_differences(size: tuple[int, int]) -> None:
    x = randn(2, 2, *size).requires_grad_()
    assert torch.autograd.gradcheck(haar_dwt, (x,))


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_half_precision_is_that_of_its_dtype(size: tuple[int, int], dtype: torch.dtype, unit: float) -> None:
    x = rand(2, 3, *size, dtype=dtype)
    for band, exact in zip(haar_dwt(x), haar_dwt(x.double()), strict=True):
        assert band.dtype == dtype
        # Two roundings of sums of up to 4, each by half a unit in the last place.
        assert (band.double() - exact).abs().max() <= 4 * unit


def test_a_too_small_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1x4.*at least 2x2"):
        haar_dwt(torch.zeros(1, 1, 1, 4))
