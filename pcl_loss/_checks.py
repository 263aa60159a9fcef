"""Checks of what a caller hands in: each error names the value and the fix."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

# Eight blocks, four of them strided, behind a wavelet level that halves the image: 2**5.
MIN_SIZE = 32


def check_images(name: str, images: Tensor, num_ch: int | None = None, min_size: int = 1) -> None:
    """Raise unless `images` is a float tensor `(N, C, H, W)`, with `num_ch` channels if that is given.

    Raises:
        TypeError: not a tensor, or not of a floating-point dtype.
        ValueError: not four-dimensional, empty, a wrong channel count, or a side below `min_size`.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (N, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"{name} has dtype {images.dtype}; pass a floating-point tensor, for example {name}.float() / 255"
        )
    if images.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(images.shape)}; expected (N, C, H, W): unsqueeze(0) a single image")
    if images.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(images.shape)}")
    if num_ch is not None and images.shape[1] != num_ch:
        raise ValueError(
            f"{name} has {images.shape[1]} channels, but {num_ch} are expected (shape {tuple(images.shape)}); "
            f"set num_in_ch={images.shape[1]} or convert the images"
        )
    if min(images.shape[-2:]) < min_size:
        raise ValueError(
            f"{name} is {images.shape[-2]}x{images.shape[-1]}, but at least {min_size}x{min_size} is needed; "
            "use larger patches"
        )


def check_white(knob: str, hr: Tensor, data_range: float) -> bool:
    """Whether the range of `hr` could be looked at; it costs one wait for the device.

    Args:
        knob: how the user calls `data_range`.
        hr: images in `[0, data_range]`.
        data_range: their white.

    Raises:
        ValueError: the images are plainly of another range.
    """
    if not isinstance(hr, Tensor) or not hr.is_floating_point() or not hr.numel():
        return False  # `check_images` says what is wrong
    if is_fake(hr):
        return True
    hr = hr.detach()
    black, white, between = torch.stack([hr.amin(), hr.amax(), (hr - hr.round()).abs().amax()]).tolist()
    if not math.isfinite(white - black):
        return False
    # Images in 0-255 that are black or nearly so hold whole numbers, images in 0-1 do not.
    if data_range >= 16 and white <= 1.5 and between > 1e-3:
        raise ValueError(
            f"{knob} is {data_range:g}, but the largest value of HR is {white:g}: images in 0-1; "
            f"train with {knob} 1, or with images in 0-{data_range:g}"
        )
    if white > 2 * data_range:
        raise ValueError(
            f"{knob} is {data_range:g}, but the largest value of HR is {white:g}; "
            f"train with {knob} 255, or with images in 0-{data_range:g}"
        )
    if black < -data_range / 4:
        raise ValueError(
            f"{knob} is {data_range:g}, but the smallest value of HR is {black:g}; train with images in "
            f"0-{data_range:g}, not shifted around 0"
        )
    return True


def check_pixels(name: str, pixels: Any, num_bits: int) -> None:
    """Raise `ValueError` unless a decoded image has 8 bits per channel, or 16 of which it uses more than `num_bits`.

    Args:
        name: the image's, for the message.
        pixels: a NumPy array; None for an image that could not be decoded.
        num_bits: 16-bit images that stay below `2**num_bits` would keep few grey levels in 8 bits, or none.
    """
    if pixels is None:
        raise ValueError(f"{name} is no image that can be read; give a PNG or a JPEG")
    if str(pixels.dtype) not in ("uint8", "uint16"):
        raise ValueError(
            f"{name} has pixels of type {pixels.dtype} from {pixels.min():g} to {pixels.max():g}; save it with 8 or 16 "
            "bits per channel"
        )
    if str(pixels.dtype) == "uint16" and pixels.max() < 2**num_bits:
        raise ValueError(
            f"{name} has 16 bits, but its largest value is {pixels.max()} of 65535; scale it to that range"
        )


def check_positive(name: str, value: float) -> float:
    """`value` as a float; raises `ValueError` unless it is finite and above 0, `TypeError` if it is no number."""
    number = check_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return number


def check_number(name: str, value: float) -> float:
    """`value` as a float; raises `TypeError` if it is no number, `ValueError` if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a number, got {value!r} of type {type(value).__name__} "
            "(in YAML write 1.0e-4, not 1e-4: the latter is read as text)"
        )
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_count(name: str, value: int, minimum: int, maximum: int | None = None) -> int:
    """`value`; raises unless it is an integer from `minimum` to `maximum` (no bound if None)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum or (maximum is not None and value > maximum):
        bound = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be {bound}, got {value}")
    return value


def check_range(name: str, value: Sequence[float], minimum: float) -> tuple[float, float]:
    """`value` as `(low, high)`; raises unless it is two numbers with `minimum <= low <= high`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers (low, high), got {value!r}")
    low, high = (check_number(f"{name}[{i}]", number) for i, number in enumerate(value))
    if not minimum <= low <= high:
        raise ValueError(f"{name} must satisfy {minimum} <= low <= high, got {tuple(value)}")
    return low, high


def check_sources(name: str, value: Iterable[str], allowed: Collection[str]) -> tuple[str, ...]:
    """`value` as a tuple; raises unless it is a non-empty list of distinct names out of `allowed`."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a list of names, got the string {value!r}; write [{value!r}]")
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of names, got {value!r}; allowed are {list(allowed)}")
    sources = tuple(value)
    unknown = [source for source in sources if not isinstance(source, str) or source not in allowed]
    if unknown:
        raise ValueError(f"{name} has unknown entries {unknown}; allowed are {list(allowed)}")
    if not sources:
        raise ValueError(f"{name} is empty; give at least one of {list(allowed)}")
    if len(set(sources)) != len(sources):
        raise ValueError(f"{name} names a source twice: {list(sources)}")
    return sources


def check_keys(name: str, keys: Iterable[str], allowed: Collection[str]) -> None:
    """Raise `ValueError` with the allowed names if `keys` holds another one."""
    unknown = sorted(set(keys) - set(allowed))
    if unknown:
        meant = nearest(unknown[0], allowed)
        raise ValueError(
            f"unknown key {', '.join(map(repr, unknown))} in {name}; allowed are: {', '.join(allowed)}"
            + (f"; did you mean {meant!r}?" if meant else "")
        )


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that `word` is a slip of: two edits away, or one if it has three letters or fewer."""
    slips = {other: distance(word, other) for other in known if abs(len(other) - len(word)) <= 2}
    best = min(slips, key=lambda other: slips[other], default=None)
    return best if best is not None and slips[best] <= (2 if len(best) > 3 else 1) else None


def distance(left: str, right: str) -> int:
    """How many letters to insert, delete, replace or swap with their neighbour lead from one word to the other."""
    rows = [list(range(len(right) + 1))]
    for i, a in enumerate(left, 1):
        row = [i]
        for j, b in enumerate(right, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b)))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
