"""`python -m pcl_loss.train -opt FILE.yml`: BasicSR's training, with PCL known to it. For torchrun too."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from . import _missing, import_repair  # noqa: F401  (at module level: the workers of a spawning data loader need it too)


def main(verb: str = "train") -> None:
    """Train as BasicSR's own train.py does, with its flags; experiments go under the caller's folder. Test likewise."""
    with _missing.named_in_errors():
        pipeline = getattr(importlib.import_module(f"basicsr.{verb}"), f"{verb}_pipeline")
        from .basicsr_plugin import register
        from .basicsr_plugin.repairs import ERRORS, whole_runs

    register()

    def run() -> None:
        with whole_runs():
            pipeline(os.getcwd())

    end_in_one_line(verb, run, lambda: ERRORS)


def end_in_one_line(verb: str, run: Callable[[], None], errors: Callable[[], tuple[type[Exception], ...]]) -> None:
    """Call `run`; one of the `errors`, which are asked for only then, ends the process with its message in one line,
    and with its `.status` if it has one, else 1.
    """
    try:
        run()
        return
    except errors() as error:
        line, status = f"pcl-loss {verb}: {error}", getattr(error, "status", 1)
    # Only here: the error would keep alive what the run still holds, its data's workers among it.
    if status == 1:
        sys.exit(line)
    print(line, file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
