"""What a run of `pcl-loss train` has that a mere `register()` does not bring: it changes a run's course."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import basicsr.train

from .._durable import UnreadableFileError
from . import durable, repairs
from .bad_steps import BadStepsError
from .iterations import exactly_total_iter
from .progress import progress_line
from .yaml_values import OptionsError


class NotSavedError(RuntimeError):
    """A run has ended, and files of it could not be saved."""


ERRORS = (OptionsError, BadStepsError, UnreadableFileError, NotSavedError)
"""What a run ends with where the message says all: one line, exit status 1."""


@contextmanager
def whole_course() -> Iterator[None]:
    """While open, `basicsr.train.train_pipeline` shows its progress, saves durably, resumes from what is whole, and
    ends every model's warm-up at the full rate.

    Raises:
        NotSavedError: at the end, if a file could not be saved.
    """
    load_resume_state = basicsr.train.load_resume_state
    with ExitStack() as stack:
        failed = stack.enter_context(durable.durable_files())
        basicsr.train.load_resume_state = durable.load_resume_state
        stack.callback(setattr, basicsr.train, "load_resume_state", load_resume_state)
        stack.enter_context(exactly_total_iter())
        stack.enter_context(progress_line())
        stack.enter_context(repairs.end_warmup_of_every_model())
        yield
        if failed:
            raise NotSavedError(f"{len(failed)} files could not be saved, the disk may be full: {', '.join(failed)}")
