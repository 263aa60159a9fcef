"""Images of a data set are read by name: what cannot be read, or would be read as another image, is refused."""

from __future__ import annotations

import functools
import os
from typing import Any

import cv2
import numpy as np

from .._files import check_pixels
from .options_basicsr import is_own
from .options_loading import OptionsError


class ImageError(OptionsError):
    """An image cannot be read as it is; the message names its file, or its key in an LMDB."""

    def __init__(self, message: str) -> None:
        # What a worker of a data loader hands over is its traceback, whose last line has the message.
        super().__init__(message.strip().splitlines()[-1].rpartition(f"{type(self).__name__}: ")[2])


def read_item(dataset: Any, index: int, where: str = "datasets.train") -> Any:
    """`dataset[index]`, of a data set of BasicSR's kind, which lists its images as `paths`.
    Raises ImageError if it cannot be read, or if a data set of BasicSR's own would garble its pixels.
    """
    paths = getattr(dataset, "paths", None)
    entry = paths[index] if isinstance(paths, list) else ()
    files = [str(file) for file in (entry.values() if isinstance(entry, dict) else [entry] if entry else [])]
    try:
        for file in files if is_own(type(dataset)) else ():
            _check_file(file)
        return dataset[index]
    except Exception as error:
        if not files:
            raise
        text = " ".join(str(error).split())[:300]
        raise ImageError(f"{where}, {' and '.join(files)}: {text}") from error


@functools.cache
def _check_file(file: str) -> None:
    """Look at the pixels of a file that may have more than 8 bits, once: of JPEGs and PNGs the header says."""
    if not os.path.isfile(file):
        return
    with open(file, "rb") as stream:
        head = stream.read(26)
    is_png = head.startswith(b"\x89PNG") and len(head) == 26
    if not (is_png and head[24] <= 8) and not head.startswith(b"\xff\xd8"):
        check_pixels(file, cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED), num_bits=12)
