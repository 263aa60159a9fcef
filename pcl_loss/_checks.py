"""What a caller hands in: checks whose errors name the value and the fix, and the dtype and layout to compute in."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

# Eight blocks, four of them strided, behind a wavelet level that halves the image: 2**5.
MIN_SIZE = 32


def check_images(name: str, images: Tensor, num_ch: int | None = None, min_size: int = 1) -> None:
    """Raise TypeError or ValueError unless `images` is a float tensor `(N, num_ch, H, W)` with `H, W >= min_size`."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (N, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"{name} has dtype {images.dtype}; pass a floating-point tensor, such as {name}.float() / 255")
    shape = tuple(images.shape)
    if len(shape) != 4 or 0 in shape:
        fixes = {3: "unsqueeze(0) a single image", 4: "no side may be 0", 5: f"use {name}.flatten(0, 1)"}
        raise ValueError(f"{name} has shape {shape}; expected (N, C, H, W); {fixes.get(len(shape), '')}")
    if num_ch not in (None, shape[1]):
        raise ValueError(f"{name} has {shape[1]} channels, but {num_ch} are expected; set num_in_ch={shape[1]}")
    if min(shape[2:]) < min_size:
        size = f"{shape[2]}x{shape[3]}"
        raise ValueError(f"{name} is {size}, but at least {min_size}x{min_size} is needed; use larger patches")


def check_white(knob: str, hr: Tensor, data_range: float) -> bool:
    """Whether the range of images `hr` could be looked at; it costs one wait for the device.

    Raises ValueError if they are plainly not in `[0, data_range]`; `knob` is how the user calls it.
    """
    if is_fake(hr):
        return True
    black, white, between = torch.stack([hr.amin(), hr.amax(), (hr - hr.round()).abs().amax()]).tolist()
    if not math.isfinite(white - black):
        return False
    if black < -data_range / 4:
        raise ValueError(
            f"{knob} is {data_range:g}, but the smallest value of HR is {black:g}; train with images in "
            f"0-{data_range:g}: those in [-1, 1] become so by pcl((sr + 1) / 2, (hr + 1) / 2)"
        )
    # Images in 0-255 that are black or nearly so hold whole numbers, images in 0-1 do not.
    if white > 2 * data_range or (data_range >= 16 and white < data_range / 50 and between > 1e-3):
        fits = next((usual for usual in (1, 255, 1023, 4095, 16383, 65535) if usual / 16 < white <= usual), white)
        raise ValueError(
            f"{knob} is {data_range:g}, but the largest value of HR is {white:g}; "
            f"train with {knob} {fits:g}, or with images in 0-{data_range:g}"
        )
    return True


def check_number(name: str, value: float) -> float:
    """`value` as a float; raises `TypeError` if it is no number, `ValueError` if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """As `check_number`; raises `ValueError` unless it is above 0."""
    if not check_number(name, value) > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


def check_count(name: str, value: int, minimum: int, maximum: int | None = None) -> int:
    """`value`; raises unless it is an integer from `minimum` to `maximum` (no bound if None)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if not minimum <= value <= (value if maximum is None else maximum):
        bound = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be {bound}, got {value}")
    return int(value)


def check_switch(name: str, value: bool) -> bool:
    """`value`; raises `TypeError` unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_range(name: str, value: Sequence[float], minimum: float) -> tuple[float, float]:
    """`value` as `(low, high)`; raises unless it is two numbers with `minimum <= low <= high`."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError(f"{name} must be two numbers (low, high), got {value!r}")
    low, high = (check_number(f"{name}[{i}]", number) for i, number in enumerate(value))
    if not minimum <= low <= high:
        raise ValueError(f"{name} must satisfy {minimum} <= low <= high, got {tuple(value)}")
    return low, high


def check_sources(name: str, value: Iterable[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """`value` as a tuple; raises unless it is a non-empty list of distinct names out of `allowed`."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list such as [{allowed[0]!r}], got {value!r}")
    sources = tuple(value)
    if not sources or any(one not in allowed for one in sources) or len(set(sources)) < len(sources):
        raise ValueError(f"{name} must be some of {list(allowed)}, none of them twice, got {list(sources)}")
    return sources


def check_keys(name: str, keys: Iterable[str], allowed: Collection[str]) -> None:
    """Raise `ValueError` with the allowed names if `keys` holds another one."""
    if unknown := sorted(set(keys) - set(allowed)):
        close = difflib.get_close_matches(unknown[0], allowed, 1, 0.7)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown key {', '.join(map(repr, unknown))} in {name}; allowed are: {', '.join(allowed)}{hint}"
        )


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is if its dtype is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def match_double(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the dtype of a network's weight where one of the two is float64, which autocast does not look at."""
    return x.to(weight.dtype) if torch.float64 in (x.dtype, weight.dtype) else x


def layout_of(images: Tensor) -> torch.memory_format:
    """`channels_last` for images that lie so and in no other way, else `contiguous_format`."""
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if is_channels_last else torch.contiguous_format
