"""`make test-versions` is not green by testing nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import test_versions

PASSED = "passed: torch 1"


def main(monkeypatch: pytest.MonkeyPatch, found: set[str], result: str = PASSED, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["test_versions.py", *flags])
    monkeypatch.setattr(test_versions, "find_python", lambda version: Path(version) if version in found else None)
    monkeypatch.setattr(test_versions, "run", lambda version, python: result)
    return test_versions.main()


def test_two_pythons_that_pass_are_enough_and_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, {"3.11", "3.12"}) == 0
    out = capsys.readouterr().out
    assert "3.13-newest   not found" in out
    assert f"3.11-oldest   {PASSED}" in out


@pytest.mark.parametrize("found", [set(), {"3.11"}])
def test_one_python_alone_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: set[str]
) -> None:
    assert main(monkeypatch, found) == 1
    assert "was found; install another of 3.11, 3.12, 3.13" in capsys.readouterr().out


def test_a_version_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(monkeypatch, {"3.11", "3.12"}, "FAILED: torch 1") == 1


def test_one_version_may_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, {"3.11", "3.13"}, PASSED, "--only", "3.13-newest") == 0
    assert "3.11" not in capsys.readouterr().out


def test_a_python_is_found_only_if_it_is_of_that_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = "{}.{}".format(*sys.version_info)
    monkeypatch.setattr(test_versions, "PYENV", tmp_path)
    monkeypatch.setattr(test_versions.shutil, "which", lambda name: sys.executable)
    assert test_versions.find_python(version) == Path(sys.executable)
    assert test_versions.find_python("3.99") is None
