"""Files of a run: written all or nothing, and read with an error that names them."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

TEMPORARY = ".tmp-"  # a leading dot also hides it from BasicSR's scan of a folder


class UnreadableFileError(ValueError):
    """A file is no checkpoint, or not a whole one."""


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process uses, and short, as names have a maximal length."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}{path.suffix}")


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end of the block, all or nothing, also if the process is
    killed; after an exception `path` is as it was.

    With `sync` also if the machine stops: it waits until the content is on the disk. What was there keeps its mode. A
    link stays one: the file that it names is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU. Tensors and plain Python values alone: no code in the file is run.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        UnreadableFileError: the file is of another kind, or not whole.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # The unpickler fails on foreign bytes in a dozen ways.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UnreadableFileError(
                f"{path} holds Python objects, not only tensors (a whole module, as torch.save(net) writes it?); it is "
                "not loaded, since that could run any code in it. Have it saved as torch.save(net.state_dict(), ...)"
            ) from error
        raise UnreadableFileError(
            f"{path} is no readable checkpoint: not written by torch.save, incomplete, or a TorchScript archive "
            f"({type(error).__name__})"
        ) from error
