"""What a run of `pcl-loss train` and `run` has that a mere `register()` does not bring: it changes a run's course."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import basicsr.train

from .._durable import UnreadableFileError
from . import durable, repairs
from .bad_steps import BadStepsError
from .data_order import placed_data
from .exact_resume import StoppedError, exact_resume
from .full_disk import lasting_logs
from .guarded_models import guarded_models
from .options_loading import OptionsError
from .progress import progress_line

REPAIRS = (
    "end_warmup",
    "durable_files",
    "load_resume_state",
    "placed_data",
    "exact_resume",
    "take_schedule",
    "guarded_models",
)
"""What `whole_course` mends in BasicSR, by the functions' names."""


class NotSavedError(RuntimeError):
    """A run has ended, and files of it could not be saved."""


ERRORS = (OptionsError, BadStepsError, UnreadableFileError, NotSavedError, StoppedError)
"""What a run ends with where the message says all, in one line. The exit status is 1, or `.status` if it has one."""


PARTS = {
    "load_resume_state": ("opt",),
    "create_train_val_dataloader": ("opt", "logger"),
    "build_model": None,
    "build_dataset": None,
    "build_dataloader": None,
    "EnlargedSampler": None,
    "init_tb_loggers": ("opt",),
}
"""What of `basicsr.train` the whole course takes the place of, and the parameters where they matter."""


@contextmanager
def whole_course(pipeline: ModuleType = basicsr.train) -> Iterator[None]:
    """While open, `pipeline.train_pipeline` shows its progress, saves durably, resumes exactly and from what is whole,
    ends with a checkpoint at a signal, and ends every model's warm-up at the full rate.

    Args:
        pipeline: `basicsr.train`, or a module of its kind. Of one that is made in another way the files are saved
            durably and the warm-up is ended, and a line says what is missing.

    Raises:
        NotSavedError: at the end, if a file could not be saved; or the disk is full where the run cannot go on.
        StoppedError: a signal has ended the run.
    """
    with ExitStack() as stack:
        files = stack.enter_context(durable.durable_files())
        stack.enter_context(repairs.end_warmup_of_every_model())
        lacks = [name for name, parameters in PARTS.items() if not _has(pipeline, name, parameters)]
        if lacks and os.environ.get("RANK", "0") == "0":
            print(
                f"[pcl_loss] {pipeline.__file__} has no {lacks[0]} as that of BasicSR 1.3.4: what it resumes, and what "
                "a signal does, are its own. Its checkpoints are written whole or not at all.",
                flush=True,
            )
        if not lacks:
            stack.enter_context(lasting_logs(pipeline, files))
            stack.enter_context(guarded_models(pipeline))
            stack.enter_context(placed_data(pipeline))
            stack.enter_context(exact_resume(files, pipeline))
            stack.enter_context(progress_line(pipeline))
        try:
            yield
        except OSError as error:
            # What BasicSR says, where OpenCV does not say why.
            if "Failed in writing images" in str(error):
                raise NotSavedError(
                    "images of the validation could not be written, the disk may be full; make room, or set "
                    "val.save_img: false"
                ) from error
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NotSavedError(f"the disk is full: {error}") from error
        if files.failed:
            names = ", ".join(failed := list(dict.fromkeys(files.failed)))
            raise NotSavedError(f"{len(failed)} files could not be saved, the disk may be full: {names}")


def _has(pipeline: ModuleType, name: str, parameters: tuple[str, ...] | None) -> bool:
    part = getattr(pipeline, name, None)
    return callable(part) and (parameters is None or tuple(inspect.signature(part).parameters) == parameters)
