from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from helpers import rand
from torch import Tensor

from pcl_loss import haar_dwt, samples

SHARPNESS = (1.5, 3.0)
BLUR_SIGMA = (0.5, 1.5)
SEEDS = range(20)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_sharpened(images: Tensor, count: int, sharpness: tuple[float, float], generator: torch.Generator) -> Tensor:
    draw = samples.SampleDraw(count, 0, ["sharpen"], ["lq"], sharpness, BLUR_SIGMA)
    return draw.make(images, None, draw.draw(len(images), generator))


def draw_blurred(images: Tensor, count: int, blur_sigma: tuple[float, float], generator: torch.Generator) -> Tensor:
    draw = samples.SampleDraw(0, count, ["gt"], ["blur"], SHARPNESS, blur_sigma)
    return draw.make(images, None, draw.draw(len(images), generator))[1:]


def high_frequency_energy(images: Tensor) -> Tensor:
    """Energy of LH, HL and HH of every image of a `(..., C, H, W)` tensor."""
    bands = torch.cat(haar_dwt(images.flatten(0, -4))[1:], 1)
    return (bands**2).sum((1, 2, 3)).unflatten(0, images.shape[:-3])


def all_have(sign: int, draw: Callable[[torch.Generator], Tensor], images: Tensor) -> bool:
    """Whether each sample of 20 draws has more (1) or fewer (-1) high frequencies than its photograph."""
    own = high_frequency_energy(images)
    return all((sign * (high_frequency_energy(draw(generator(seed))) - own) > 0).all() for seed in SEEDS)


def test_every_sharpened_sample_has_more_high_frequencies_and_the_published_range_would_not(crops: Tensor) -> None:
    assert all_have(1, lambda g: draw_sharpened(crops, 4, SHARPNESS, g), crops)
    assert not all_have(1, lambda g: draw_sharpened(crops, 4, (0.5, 3.0), g), crops)


def test_every_blurred_sample_has_fewer_high_frequencies_and_the_published_range_would_not(crops: Tensor) -> None:
    assert all_have(-1, lambda g: draw_blurred(crops, 4, BLUR_SIGMA, g), crops)
    assert not all_have(-1, lambda g: draw_blurred(crops, 4, (0.1, 2.0), g), crops)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("size", [32, 320])  # kornia blurs large images by other code
def test_blur_of_an_impulse_is_a_gaussian(sigma: float, size: int) -> None:
    image = torch.zeros(1, 1, size, size, dtype=torch.float64)
    image[..., 16, 16] = 1
    blurred = samples.blur(image, torch.tensor([[sigma]], dtype=torch.float64), 1.5)[0]
    radius = math.ceil(3 * 1.5)
    line = np.array([math.exp(-(x**2) / (2 * sigma**2)) if abs(x) <= radius else 0.0 for x in range(-16, size - 16)])
    line /= line.sum()
    torch.testing.assert_close(blurred[0, 0], torch.from_numpy(np.outer(line, line)), rtol=0, atol=1e-12)


def test_a_blur_too_wide_for_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sigma 11.*33 pixels.*32x32; lower blur_sigma or use larger patches"):
        draw_blurred(rand(1, 3, 32, 32), 1, (10.5, 11.0), generator())


def test_samples_come_in_the_order_of_their_kinds_and_each_from_its_draw() -> None:
    gt, lq = rand(2, 3, 32, 32), rand(2, 3, 8, 8)
    draw = samples.SampleDraw(2, 1, ["sharpen", "gt"], ["lq", "batch", "blur"], SHARPNESS, BLUR_SIGMA)
    assert draw.kinds == ("gt", "sharpen", "sharpen", "blur", "lq")
    assert draw.total_positives == 3
    draws = draw.draw(2, generator())
    made = draw.make(gt, lq, draws)
    assert made.shape == (5, 2, 3, 32, 32)
    for i in range(2):
        image = gt[i].numpy()
        expected = [
            image,
            *(reference.sharpen(image, float(factor)) for factor in draws[:2, i]),
            reference.blur(image, float(draws[2, i]), 5),
            reference.bicubic(lq[i].numpy(), (32, 32)),
        ]
        for ours, other in zip(made[:, i], expected, strict=True):
            torch.testing.assert_close(ours, torch.from_numpy(other), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("untouched_global_rng")
def test_seeds_steps_and_ranks_all_give_different_streams_and_each_the_same_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first_numbers(seed: int, step: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=samples.seeded_generator(seed, step)).tolist())

    alone, streams = first_numbers(3, 3), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in range(4):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_, rank=rank: rank)
        streams += [first_numbers(seed, step) for seed in range(6) for step in range(6)]
    assert len(set(streams)) == 4 * 6 * 6
    assert alone == streams[3 * 6 + 3]
