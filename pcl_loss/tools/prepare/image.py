"""One HR image becomes its pairs: read, cut, resized and written. Runs in a worker process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..._checks import MIN_SIZE
from ..._files import temporary_name
from .._files import Image, resize, write_image
from .._regions import Region, tiles


@dataclass(frozen=True)
class Cuts:
    """What to make of every image: HR and LR of each scale in `out`, whole or in squares of `crop` every `step`."""

    out: Path
    scales: tuple[int, ...]
    crop: int | None = None
    step: int | None = None

    @property
    def min_size(self) -> int:
        """What E_D needs of an HR patch, and imresize of an image (it mirrors about two LR pixels at each border)."""
        return self.crop or max(MIN_SIZE, 4 * max(self.scales))

    def regions(self, stem: str, height: int, width: int) -> dict[str, Region]:
        """File name and part of the image of each pair."""
        if self.crop is None or self.step is None:
            return {f"{stem}.png": Region(0, 0, height, width)}
        return {f"{stem}_s{i:03d}.png": tile for i, tile in enumerate(tiles(height, width, self.crop, self.step), 1)}


@dataclass
class Outcome:
    """What became of one HR image."""

    name: str
    skipped: str = ""
    converted: str = ""
    wrote: bool = False
    regions: dict[int, dict[str, Region]] = field(default_factory=dict)  # of each scale


def prepare_image(source: Path, cuts: Cuts) -> Outcome:
    """Write what is missing of one image's pairs."""
    outcome = Outcome(source.name)
    try:
        changed = source.stat().st_mtime
        hr, outcome.converted = _read(source, cuts.min_size)
    except (ValueError, OSError) as error:
        outcome.skipped = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        return outcome

    written: dict[tuple[str, Region], Path] = {}
    for scale in cuts.scales:
        folder = cuts.out / f"X{scale}"
        height, width = (side - side % scale for side in hr.shape[:2])
        outcome.regions[scale] = cuts.regions(source.stem, height, width)
        lr: Image | None = None
        for name, region in outcome.regions[scale].items():
            hr_path, lr_path = folder / "HR" / name, folder / "LR" / name
            twin = written.setdefault((name, region), hr_path)
            if not is_current(hr_path, changed):
                if twin == hr_path or not _link(twin, hr_path):
                    write_image(hr_path, region.cut(hr))
                outcome.wrote = True
            if not is_current(lr_path, changed):
                lr = resize(hr[:height, :width], 1 / scale) if lr is None else lr
                write_image(lr_path, region.cut(lr, scale))
                outcome.wrote = True
    return outcome


def is_current(path: Path, source_changed: float) -> bool:
    """Whether a file is there, and no older than this time.

    It is not if it is empty: images are not synced, and that is how one looks whose content a power cut took away.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_size > 0 and found.st_mtime >= source_changed


def _read(source: Path, min_size: int) -> tuple[Image, str]:
    """An image as 8-bit BGR, and what had to be changed for that; raises ValueError if it cannot be used."""
    import cv2

    data = np.frombuffer(source.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise ValueError("cannot be decoded: corrupt, cut short, or no image at all")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"has pixels of type {image.dtype}; save it with 8 or 16 bits per channel")
    height, width = image.shape[:2]
    if min(height, width) < min_size:
        raise ValueError(f"is too small: {height}x{width} pixels, but at least {min_size}x{min_size} are needed")

    changes = []
    image = image.reshape(height, width, -1)
    channels = image.shape[2]
    if channels == 4:
        if (image[..., 3] != np.iinfo(image.dtype).max).any():
            raise ValueError("is transparent in places; flatten it onto a background")
        image = image[..., :3]
        changes.append("opaque alpha channel dropped")
    elif channels == 1:
        image = np.repeat(image, 3, axis=2)
        changes.append("grey to colour")
    elif channels != 3:
        raise ValueError(f"has {channels} channels; save it as RGB")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
        changes.append("16 bits to 8")
    return image, ", ".join(changes)


def _link(source: Path, path: Path) -> bool:
    """Give a file a second name; False where the file system cannot."""
    temporary = temporary_name(path)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        # It stays where both names meant the same file already.
        temporary.unlink(missing_ok=True)
    return True
