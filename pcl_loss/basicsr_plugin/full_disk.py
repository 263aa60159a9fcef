"""What the log and TensorBoard cannot write, as on a full disk, ends no run: it is said once, and noted as failed."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .durable import DurableTorch
from .repairs import replaced


class Events:
    """TensorBoard's writer, of which no method raises an `OSError`; after the first one nothing more is written."""

    def __init__(self, build: Callable[[], Any], fail: Callable[[OSError], None]) -> None:
        self._fail = fail
        self._works = True
        self._writer = self._try(build)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **keywords: self._try(
            lambda: getattr(self._writer, name)(*arguments, **keywords) if self._works else None
        )

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            self._works = False
            self._fail(error)
            return None


@contextmanager
def lasting_logs(pipeline: ModuleType, files: DurableTorch) -> Iterator[None]:
    """While open, a run of a module like `basicsr.train` goes on where its log or TensorBoard's events cannot be
    written; `files.failed` then names them.
    """
    init, log_error, thread_error = pipeline.init_tb_loggers, logging.FileHandler.handleError, threading.excepthook

    def fail(name: str, error: OSError) -> None:
        if name not in files.failed:
            files.failed.append(name)
            print(f"{name} cannot be written: {error}. The run goes on; its exit status will be 1.", file=sys.stderr)

    def init_tb_loggers(opt: dict[str, Any]) -> Any:
        if opt["rank"] != 0 or not opt["logger"].get("use_tb_logger"):
            return init(opt)
        return Events(lambda: init(opt), lambda error: fail("TensorBoard's events", error))

    def handle_error(handler: logging.FileHandler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            fail(handler.baseFilename, error)
        else:
            log_error(handler, record)

    def excepthook(hook: Any) -> None:
        # TensorBoard's own thread, whose error the next call of the writer raises again.
        if not (isinstance(hook.exc_value, OSError) and type(hook.thread).__module__.startswith("tensorboard")):
            thread_error(hook)

    with (
        replaced(pipeline, init_tb_loggers=init_tb_loggers),
        replaced(logging.FileHandler, handleError=handle_error),
        replaced(threading, excepthook=excepthook),
    ):
        yield
