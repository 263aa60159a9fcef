"""Image files, and the bicubic that SR data sets are made with. OpenCV and BasicSR are imported where they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import import_repair  # noqa: F401  (resize imports basicsr)
from .._files import check_pixels, replacing

Image = NDArray[np.uint8]  # `(H, W, 3)`, in BGR as OpenCV's and BasicSR's images are

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
PNG_COMPRESSION = 3
# Of 16: a quarter of the grey levels or less would be left in 8 bits.
NUM_BITS = 14


def find_images(what: str, folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without the ending; `what` is the folder's name in the errors.

    Raises an OSError if there is no such folder or no image in it, ValueError if two differ in their ending alone.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{what}, {folder}, {'is a file' if folder.exists() else 'does not exist'}")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            other = found.setdefault(path.stem, path)
            if other is not path:
                raise ValueError(f"{other} and {path} would both become {path.stem}.png; rename or remove one of them")
    if not found:
        raise FileNotFoundError(f"{what}, {folder}, holds no image ({', '.join(EXTENSIONS)})")
    return found


def read_image(path: Path) -> Image:
    """Read an image as 8-bit colour, the way up that its EXIF tag says, as BasicSR's data sets do.

    Grey becomes colour, 16 bits are rounded to 8, an alpha channel is dropped where it is opaque. Raises
    FileNotFoundError if there is no such file, ValueError if it is broken, of another kind, or transparent.
    """
    import cv2

    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    # Not cv2.imread, which cannot open every path on Windows.
    content = np.frombuffer(path.read_bytes(), np.uint8)
    image, raw = (
        cv2.imdecode(content, flags) if content.size else None
        for flags in (cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, cv2.IMREAD_UNCHANGED)
    )
    check_pixels(str(path), None if image is None else raw, NUM_BITS)
    assert image is not None
    assert raw is not None
    if raw.ndim == 3 and raw.shape[2] == 4 and (raw[..., 3] != np.iinfo(raw.dtype).max).any():
        raise ValueError(f"{path} is transparent in places; flatten it onto a background")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
    return np.asarray(image, np.uint8)


def write_image(path: Path, image: Image) -> None:
    """Write a PNG as `write_file` does, but without waiting for the disk: most images can be made again."""
    import cv2

    content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])[1].tobytes()
    write_file(path, content, sync=False)


def write_file(path: Path, content: bytes | memoryview, sync: bool = True) -> None:
    """Write a file, all or nothing; makes its folder. With `sync` it waits until the content is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync) as file:
        file.write(content)


def resize(image: Image, scale: float) -> Image:
    """BasicSR's MATLAB-like bicubic, rounded to 8 bits; `(H, W, 3)` to `(H * scale, W * scale, 3)`."""
    from basicsr.utils.matlab_functions import imresize

    resized: NDArray[np.float32] = imresize(image.astype(np.float32) / 255, scale)
    return (resized.clip(0, 1) * 255).round().astype(np.uint8)
