"""In a terminal, and only there, training shows how far it is."""

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

Options = dict[str, Any]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_shows_iteration_rate_time_left_and_the_losses(
    small: Options, run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run_pipeline(small)
    last = terminal.getvalue().split("\r")[-1]
    assert "4/4" in last
    assert "it/s" in last or "s/it" in last
    for shown in ("l_pix=", "l_pcl=", "margin="):
        assert shown in last


def test_a_resumed_run_goes_on_counting(
    small: Options, run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_pipeline(small)
    small["train"]["total_iter"] = 5
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run_pipeline(small, "--auto_resume")
    assert "5/5" in terminal.getvalue().split("\r")[-1]


def test_a_log_file_gets_no_line(
    baseline: Options, run_pipeline: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline(baseline)
    assert "it/s" not in capsys.readouterr().err
