"""What a run of `pcl-loss train` has that a mere `register()` does not bring: it changes a run's course."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import basicsr.train

from .._durable import UnreadableFileError
from . import durable, repairs
from .bad_steps import BadStepsError
from .data_order import placed_data
from .exact_resume import StoppedError, exact_resume
from .progress import progress_line
from .yaml_values import OptionsError

REPAIRS = ("end_warmup", "durable_files", "placed_data", "exact_resume")
"""What `whole_course` mends in BasicSR, by the functions' names."""


class NotSavedError(RuntimeError):
    """A run has ended, and files of it could not be saved."""


ERRORS = (OptionsError, BadStepsError, UnreadableFileError, NotSavedError, StoppedError)
"""What a run ends with where the message says all, in one line. The exit status is 1, or `.status` if it has one."""


@contextmanager
def whole_course() -> Iterator[None]:
    """While open, `basicsr.train.train_pipeline` shows its progress, saves durably, resumes exactly and from what is
    whole, ends with a checkpoint at a signal, and ends every model's warm-up at the full rate.

    Raises:
        NotSavedError: at the end, if a file could not be saved.
        StoppedError: a signal has ended the run.
    """
    load_resume_state = basicsr.train.load_resume_state
    with ExitStack() as stack:
        files = stack.enter_context(durable.durable_files())
        basicsr.train.load_resume_state = durable.load_resume_state
        stack.callback(setattr, basicsr.train, "load_resume_state", load_resume_state)
        stack.enter_context(placed_data())
        stack.enter_context(exact_resume(files))
        stack.enter_context(progress_line())
        stack.enter_context(repairs.end_warmup_of_every_model())
        yield
        if files.failed:
            names = ", ".join(files.failed)
            raise NotSavedError(f"{len(files.failed)} files could not be saved, the disk may be full: {names}")
