"""Which extra of the package brings a library: an import that fails for lack of it says so."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec

EXTRAS = {
    "basicsr": "basicsr",
    "cv2": "basicsr",
    "lpips": "metrics",
    "matplotlib": "plots",
    "piq": "metrics",
    "skimage": "basicsr",
    "torchvision": "basicsr",
    "tqdm": "basicsr",
}
"""A library's import name, and the extra."""


class MissingExtraError(ModuleNotFoundError):
    """A library is missing that an extra brings; the message names the pip line."""


def advice(library: str) -> str:
    """How to get a library of `EXTRAS`; goes on after '... is not installed: '."""
    pip = f"pip install 'pcl_loss[{EXTRAS[library]}]'"
    if library == "basicsr" and sys.version_info >= (3, 13):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"its setup.py fails on Python {version}; on 3.11 or 3.12: {pip}"
    return pip


@contextlib.contextmanager
def named_in_errors() -> Iterator[None]:
    """Import libraries of `EXTRAS` in here.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        # A library may be there and lack a module: another version of it is no matter of the extra's.
        if library not in EXTRAS or find_spec(library):
            raise
        raise MissingExtraError(f"{library} is not installed: {advice(library)}", name=error.name) from error
