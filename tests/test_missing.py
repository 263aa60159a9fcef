"""What is missing is named with the way to get it: BasicSR, OpenCV and their kin, and weights to download."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from pcl_loss import _missing

# Verbs that need an extra, with flags that bring them as far as the import.
FLAGS = {"train": "-opt none.yml", "preview": "--image a.png --out preview.png"}
IMPORTS = ("from pcl_loss.train import main; main()", "import pcl_loss; pcl_loss.VGGEmbedding()")
# A library that stands in sys.modules as None is neither imported nor found.
PROGRAM = """
    import contextlib, io, json, sys
    from pcl_loss import _missing, cli

    flags, imports = json.loads(sys.argv[1])
    sys.modules |= dict.fromkeys(_missing.EXTRAS)
    said = {}
    for verb, text in flags.items():
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            status = cli.main([verb, *text.split()])
        said[verb] = [status, stderr.getvalue()]
    for line in imports:
        try:
            exec(line)
        except ImportError as error:
            said[line] = [1, str(error)]
    assert cli.main(["options", "--to", "options"]) == 0  # which needs none of them
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each verb and import says in a process that has the core alone: its exit status and its message."""
    folder: Path = tmp_path_factory.mktemp("core")
    (folder / "a.png").touch()
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps([FLAGS, IMPORTS])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", [*FLAGS, *IMPORTS])
def test_what_needs_an_extra_names_the_pip_line(said: dict[str, tuple[int, str]], name: str) -> None:
    status, message = said[name]
    assert status == 1
    assert "is not installed" in message
    assert "pip install 'pcl_loss[basicsr]'" in message


def test_a_module_that_an_installed_library_lacks_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"tqdm\.no_such") as raised, _missing.named_in_errors():
        import tqdm.no_such  # noqa: F401
    assert not isinstance(raised.value, _missing.MissingExtraError)


URL = "https://example.org/net-01234567.pth"


def test_the_hash_in_the_name_is_checked_and_offline_the_message_names_file_source_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(_url: str, _file: str, hash_prefix: str) -> None:
        assert hash_prefix == "01234567"
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError) as error:
        _missing.download(URL, "a net")
    for said in (str(error.value), capsys.readouterr().err):
        assert f"put {URL} at {tmp_path / 'hub/checkpoints/net-01234567.pth'}" in said


def test_from_python_3_13_on_it_says_why_basicsr_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_missing.sys, "version_info", (3, 13))
    assert "its setup.py fails on Python 3.13;" in _missing.advice("basicsr")
    assert "setup.py" not in _missing.advice("cv2")
