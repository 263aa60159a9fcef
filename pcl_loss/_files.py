"""Files of a run: written all or nothing, and read with an error that names them."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from . import _distributed

TEMPORARY = ".tmp-"  # a leading dot also hides it from BasicSR's scan of a folder


class UnreadableFileError(ValueError):
    """A file is no checkpoint, or not a whole one."""


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end of the block, all or nothing, also if the process is
    killed, or, with `sync`, if the machine stops. What was there keeps its mode, and a link stays one.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}{path.suffix}")
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
        reason = f"is no readable checkpoint: not written by torch.save, or incomplete ({type(error).__name__})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            reason = (
                "holds Python objects, not only tensors (a whole module, as torch.save(net) writes it?); it is not "
                "loaded, since that could run any code in it. Have it saved as torch.save(net.state_dict(), ...)"
            )
        raise UnreadableFileError(f"{path} {reason}") from error


def check_pixels(name: str, pixels: Any, num_bits: int) -> None:
    """Raise `ValueError` unless a decoded image, None or a NumPy array, has 8 bits per channel, or 16 of which it uses
    more than `num_bits`: below, it would keep few grey levels in 8 bits, or none.
    """
    if pixels is None:
        raise ValueError(f"{name} is no image that can be read; give a PNG or a JPEG")
    if str(pixels.dtype) not in ("uint8", "uint16"):
        values = f"pixels of type {pixels.dtype} from {pixels.min():g} to {pixels.max():g}"
        raise ValueError(f"{name} has {values}; save it with 8 or 16 bits per channel")
    if str(pixels.dtype) == "uint16" and pixels.max() < 2**num_bits:
        raise ValueError(
            f"{name} has 16 bits, but its largest value is {pixels.max()} of 65535; scale it to that range"
        )


def save(content: Any, path: Path) -> None:
    """As `torch.save`, all or nothing."""
    with replacing(path) as file:
        torch.save(content, file)


def keep_with_checkpoints(
    base_model: Any,
    find: Callable[[Any], Mapping[str, Any]],
    folder: Callable[[Any], str],
    get_root_logger: Callable[[], Any],
    save: Callable[[Any, Path], None] = save,
) -> None:
    """Let every model of a trainer of BasicSR's kind save what `find` gives by name, each with a `state_dict`, as
    `NAME_ITER.pth` in `folder`, and take it up when it resumes; calling it twice is harmless.
    """
    if getattr(base_model, "keeps_pcl", False):
        return
    base_model.keeps_pcl = True
    save_training_state, resume_training = base_model.save_training_state, base_model.resume_training

    @functools.wraps(save_training_state)
    def save_with_ours(self: Any, epoch: int, current_iter: int) -> None:
        # Before the state: a run that is killed in between resumes from the state before.
        for name, stateful in find(self).items() if _distributed.rank() == 0 else ():
            iteration = "latest" if current_iter == -1 else current_iter
            save(stateful.state_dict(), Path(folder(self), f"{name}_{iteration}.pth"))
        save_training_state(self, epoch, current_iter)

    @functools.wraps(resume_training)
    def resume_with_ours(self: Any, resume_state: dict[str, Any]) -> None:
        resume_training(self, resume_state)
        for name, stateful in find(self).items():
            file = Path(folder(self), f"{name}_{resume_state['iter']}.pth")
            if file.is_file():
                stateful.load_state_dict(load(file))
                get_root_logger().info(f"Loading {type(stateful).__name__} from {file}.")
            else:
                get_root_logger().warning(f"There is no {file}: the {type(stateful).__name__} starts anew.")

    base_model.save_training_state, base_model.resume_training = save_with_ours, resume_with_ours
