"""The GPU report has what every command said, also where it failed."""

from __future__ import annotations

import sys
from pathlib import Path

import gpu_report
import pytest


def run(tmp_path: Path, code: str) -> tuple[int, str]:
    return gpu_report.section("A title", [sys.executable, "-c", code], tmp_path)


def test_a_command_that_fails_is_in_the_report_with_its_status(tmp_path: Path) -> None:
    status, text = run(tmp_path, "import sys; print('out'); sys.exit('err')")
    assert status == 1
    assert text.startswith("## A title\n\n`python")
    assert "ended with status 1 after" in text
    assert "```\nout\nerr\n```" in text


def test_a_command_that_is_not_there_is_a_failure_too(tmp_path: Path) -> None:
    status, text = gpu_report.section("nvidia-smi", ["no-such-command"], tmp_path)
    assert status == 127
    assert "no-such-command" in text


def test_output_with_a_fence_stays_inside_its_own(tmp_path: Path) -> None:
    _, text = run(tmp_path, "print('```')")
    assert "\n````\n```\n````\n" in text


def test_of_a_long_output_the_end_is_shown_and_of_a_progress_bar_the_last_state(tmp_path: Path) -> None:
    _, text = run(tmp_path, "print(*range(1000), sep='\\n'); print('10 %\\r90 %')")
    lines = text.splitlines()
    assert lines[-2] == "90 %"
    assert f"({1001 - gpu_report.LAST_LINES} lines left out)" in lines
    assert "999" in lines
    assert "1" not in lines


@pytest.mark.parametrize(("gpus", "trainings"), [(0, 2), (1, 2), (2, 3), (8, 3)])
def test_two_gpus_train_together(tmp_path: Path, gpus: int, trainings: int) -> None:
    commands = [command for _, command, _ in gpu_report.commands(False, gpus, tmp_path)]
    options = [command for command in commands if "--force_yml" in command]
    assert len(options) == trainings
    assert all("train:total_iter=500" in command for command in options)
    assert sum("train:compile=true" in command for command in options) == trainings - 1
    assert (["nvidia-smi"] in commands) == (gpus > 0)
