"""Image files, and the bicubic that SR data sets are made with. OpenCV and BasicSR are imported where they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import import_repair  # noqa: F401  (resize imports basicsr)
from .._files import replacing

Image = NDArray[np.uint8]  # `(H, W, 3)`, in BGR as OpenCV's and BasicSR's images are

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
PNG_COMPRESSION = 3


def find_images(what: str, folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without the ending; `what` is the folder's name in the errors.

    Raises an OSError if there is no such folder or no image in it, ValueError if two differ in their ending alone.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{what}, {folder}, does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{what}, {folder}, is a file; name the folder of the images")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix.lower() in EXTENSIONS and path.is_file():
            other = found.setdefault(path.stem, path)
            if other is not path:
                raise ValueError(f"{other} and {path} would both become {path.stem}.png; rename or remove one of them")
    if not found:
        kinds = ", ".join(EXTENSIONS)
        raise FileNotFoundError(f"{what}, {folder}, holds no image ({kinds}); name the folder that holds them")
    return found


def read_image(path: Path) -> Image:
    """Read an image as 8-bit colour, as BasicSR's data sets do.

    Raises FileNotFoundError if there is no such file, ValueError if it is no image, or a broken one.
    """
    import cv2

    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    # Not cv2.imread, which cannot open every path on Windows.
    content = np.frombuffer(path.read_bytes(), np.uint8)
    image: Image | None = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise ValueError(f"{path} is no image that can be read; give a PNG or a JPEG")
    return image


def write_image(path: Path, image: Image, sync: bool = False) -> None:
    """Write a PNG as `write_file` does; without waiting for the disk, since most images can be made again."""
    import cv2

    content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])[1].tobytes()
    write_file(path, content, sync)


def write_file(path: Path, content: bytes | memoryview, sync: bool = True) -> None:
    """Write a file, all or nothing, also if the process is killed; makes its folder.

    With `sync` also if the machine stops: it waits until the content is on the disk, which takes far longer than to
    write a small file. What was there keeps its mode. A link stays one: the file that it names is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync) as file:
        file.write(content)


def resize(image: Image, scale: float) -> Image:
    """BasicSR's MATLAB-like bicubic, rounded to 8 bits; `(H, W, 3)` to `(H * scale, W * scale, 3)`."""
    from basicsr.utils.matlab_functions import imresize

    resized: NDArray[np.float32] = imresize(image.astype(np.float32) / 255, scale)
    return (resized.clip(0, 1) * 255).round().astype(np.uint8)
