"""Which dtype to compute in, which order of the channels in memory, and how to reach a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def layout_of(images: Tensor) -> torch.memory_format:
    """`channels_last` for images that lie so and in no other way, else `contiguous_format`."""
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format


def fastest_layout(images: Tensor) -> torch.memory_format:
    """`channels_last` on a CPU, whose convolutions and channel norms are faster in it; elsewhere that of the images."""
    return torch.channels_last if images.device.type == "cpu" else layout_of(images)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if its dtype is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def move_without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. A GPU's queue is not waited for, as a plain copy from the CPU's pageable memory does."""
    if x.device.type == "cpu" and device.type == "cuda" and torch.cuda.is_available():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def match_double(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the dtype of a network's weight where one of the two is float64, which autocast does not look at."""
    return x.to(weight.dtype) if torch.float64 in (x.dtype, weight.dtype) else x
