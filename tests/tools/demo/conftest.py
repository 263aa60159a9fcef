"""A run of the demo can be a few lines of Python."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pcl_loss.tools.demo import runs as demo_runs


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a run be a few lines of Python."""

    def set_program(program: str) -> None:
        monkeypatch.setattr(demo_runs, "train_command", lambda name: [sys.executable, "-c", program])

    return set_program
