"""A progress line for BasicSR's train loop, in a terminal."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from basicsr.utils.dist_util import get_dist_info
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .repairs import replaced

SHOWN = ("l_pix", "l_pcl", "margin")


@contextmanager
def progress_line(pipeline: ModuleType) -> Iterator[None]:
    """While open, every model that a module like `basicsr.train` builds shows iteration, rate, time left, and `l_pix`,
    `l_pcl` and `margin` where it logs them. It shows nothing where standard error is no terminal, nor on ranks other
    than 0.
    """
    build_model = pipeline.build_model
    with ExitStack() as open_lines:

        @functools.wraps(build_model)
        def build_with_line(opt: dict[str, Any]) -> Any:
            model = build_model(opt)
            if sys.stderr.isatty() and get_dist_info()[0] == 0:
                _show_iterations(model, int(opt["train"]["total_iter"]), open_lines)
            return model

        with replaced(pipeline, build_model=build_with_line):
            yield


def _show_iterations(model: Any, total: int, open_lines: ExitStack) -> None:
    optimize_parameters = model.optimize_parameters
    bar: tqdm[Any] | None = None

    def optimize_and_show(current_iter: int) -> None:
        nonlocal bar
        if bar is None:
            # Not earlier: only now is it known where a resumed run goes on.
            bar = open_lines.enter_context(tqdm(total=total, initial=current_iter - 1, unit="it", dynamic_ncols=True))
            # BasicSR's log lines then appear above the bar, not through it.
            open_lines.enter_context(logging_redirect_tqdm([logging.getLogger("basicsr")]))
        optimize_parameters(current_iter)
        # At most ten times a second, and at the end: reading the log waits for the GPU.
        if bar.update() or bar.n == total:
            log = model.get_current_log()
            bar.set_postfix({key: f"{log[key]:.3g}" for key in SHOWN if key in log})

    model.optimize_parameters = optimize_and_show
