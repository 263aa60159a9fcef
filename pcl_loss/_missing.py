"""What may be missing on a machine: libraries that an extra of the package brings, and weights to download."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

# By a library's import name.
EXTRAS = dict.fromkeys(("basicsr", "cv2", "skimage", "torchvision", "tqdm"), "basicsr")
EXTRAS |= {"lpips": "metrics", "matplotlib": "plots", "piq": "metrics"}


class MissingExtraError(ModuleNotFoundError):
    """A library is missing that an extra brings; the message names the pip line."""


def advice(library: str) -> str:
    """How to get a library of `EXTRAS`; goes on after '... is not installed: '."""
    pip = f"pip install 'pcl_loss[{EXTRAS[library]}]'"
    if library == "basicsr" and sys.version_info >= (3, 13):
        return f"its setup.py fails on Python {sys.version_info[0]}.{sys.version_info[1]}; on 3.11 or 3.12: {pip}"
    return pip


@contextlib.contextmanager
def named_in_errors() -> Iterator[None]:
    """Import libraries of `EXTRAS` in here; raises MissingExtraError if one of them is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        # An installed library that lacks a module is of another version, which the pip line would not mend.
        if library not in EXTRAS or find_spec(library):
            raise
        raise MissingExtraError(f"{library} is not installed: {advice(library)}", name=error.name) from error


def cached_file(url: str) -> Path:
    """Where the file of `url` lies or belongs."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def download(url: str, what: str) -> Path:
    """The cached file of `url`, whose name ends with a hash; if it is not there, says what it fetches, and fetches it.

    Raises FileNotFoundError, which says how to do it by hand.
    """
    path = cached_file(url)
    if path.is_file():
        return path
    by_hand = f"By hand: put {url} at {path}, or set TORCH_HOME to a folder that has it there."
    print(f"[pcl_loss] downloading {what} to {path}. {by_hand}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file gets its name only when it is complete and its hash is right.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{what} could not be downloaded ({error}). {by_hand}") from error
    return path
