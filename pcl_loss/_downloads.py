"""Files that PyTorch's hub cache may hold: pre-trained weights. Nothing is fetched without saying so."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def cached_file(url: str) -> Path:
    """Where the file of `url` lies or belongs: `$TORCH_HOME/hub/checkpoints/NAME`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def download(url: str, what: str) -> Path:
    """The cached file of `url`; if it is not there, says what it fetches and how to do it by hand, and fetches it.

    Args:
        url: of the file; its name ends with a hash, as those of torchvision's weights do.
        what: it is, for the messages.

    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded.
    """
    path = cached_file(url)
    if path.is_file():
        return path
    by_hand = (
        f"By hand: put {url} at {path}, or let TORCH_HOME name a folder that has it as hub/checkpoints/{path.name}."
    )
    print(f"[pcl_loss] downloading {what} to {path}. {by_hand}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file gets its name only when it is complete and its hash is right.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{what} could not be downloaded ({error}). {by_hand}") from error
    return path
