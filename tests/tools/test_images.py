"""Images are read as BasicSR's data sets read them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from pcl_loss.tools._images import read_image

COLOUR = np.ascontiguousarray(skimage.data.coffee()[60:100, 120:164, ::-1])


def test_other_pixel_formats_become_8_bit_colour(tmp_path: Path) -> None:
    grey = COLOUR[..., 1]
    # Rounded, not cut off.
    deep = COLOUR.astype(np.uint16) * 257 - 100 * (COLOUR > 0).astype(np.uint16)
    files = {
        "deep.png": (deep, COLOUR),
        "deep_grey.tif": (grey.astype(np.uint16) * 257, np.stack([grey] * 3, axis=2)),
        "grey.png": (grey, np.stack([grey] * 3, axis=2)),
        "opaque.png": (np.dstack([COLOUR, np.full(grey.shape, 255, np.uint8)]), COLOUR),
    }
    for name, (image, expected) in files.items():
        cv2.imwrite(str(tmp_path / name), image)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_an_image_is_read_the_way_up_that_its_exif_tag_says_as_basicsr_reads_it(tmp_path: Path) -> None:
    from basicsr.utils import imfrombytes

    image = Image.fromarray(COLOUR)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "cup.png", exif=exif)
    read = read_image(tmp_path / "cup.png")
    np.testing.assert_array_equal(read, imfrombytes((tmp_path / "cup.png").read_bytes()))
    assert read.shape[:2] == (44, 40)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("empty.png", b"", "is no image that can be read"),
        ("glass.png", np.dstack([COLOUR, np.full((40, 44), 200, np.uint8)]), "is transparent in places"),
        ("float.tif", COLOUR.astype(np.float32) / 255, "has pixels of type float32"),
        ("twelve.png", COLOUR.astype(np.uint16) * 16, "has 16 bits, but its largest value is 4080 of 65535"),
    ],
)
def test_what_cannot_be_read_as_8_bit_colour_is_named(
    name: str, image: bytes | np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        assert cv2.imwrite(str(path), image)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        read_image(path)
