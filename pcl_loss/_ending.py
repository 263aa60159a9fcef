"""How the entry points end where an error's message says all."""

from __future__ import annotations

import sys
from collections.abc import Callable


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
