"""Without BasicSR, OpenCV and their kin, every verb and import that needs one of them names the pip line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from pcl_loss import _extras

# Each verb that needs an extra, with flags that bring it as far as the import.
FLAGS = {
    "train": "-opt none.yml",
    "test": "-opt none.yml",
    "demo": "--out demo",
    "prepare": "--hr . --out out --scale 4",
    "preview": "--image a.png --out preview.png",
    "report": "--net A=. --set S=. --scale 4 --out report",
}
IMPORTS = (
    "import pcl_loss.basicsr_plugin",
    "from pcl_loss.basicsr_plugin.model import PCLModel",
    "from pcl_loss.train import main; main()",
    "from pcl_loss.test import main; main()",
    "import pcl_loss; pcl_loss.VGGEmbedding()",
)
# A library that stands in sys.modules as None is neither imported nor found.
PROGRAM = """
    import contextlib, io, json, sys
    from pcl_loss import _extras, cli

    flags, imports = json.loads(sys.argv[1])
    sys.modules |= dict.fromkeys(_extras.EXTRAS)
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
    written = cli.main(["options", "--to", "options"])
    print(json.dumps(said | {"options": [written, ""]}))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each verb and import says in a process that has the core alone: its exit status and its message."""
    folder: Path = tmp_path_factory.mktemp("core")
    (folder / "a.png").touch()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps([FLAGS, IMPORTS])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", [*FLAGS, *IMPORTS])
def test_what_needs_an_extra_names_the_pip_line(said: dict[str, tuple[int, str]], name: str) -> None:
    status, message = said[name]
    assert status == 1
    assert "is not installed" in message
    assert "pip install 'pcl_loss[basicsr]'" in message


def test_options_are_written_by_the_core_alone(said: dict[str, tuple[int, str]]) -> None:
    assert said["options"][0] == 0


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_from_python_3_13_on_it_says_why_basicsr_is_missing(monkeypatch: pytest.MonkeyPatch, minor: int) -> None:
    version = NamedTuple("Version", [("major", int), ("minor", int)])(3, minor)
    monkeypatch.setattr(_extras.sys, "version_info", version)
    advice = _extras.advice("basicsr")
    assert "pip install 'pcl_loss[basicsr]'" in advice
    assert (f"its setup.py fails on Python 3.{minor};" in advice) == (minor >= 13)
    assert "setup.py" not in _extras.advice("cv2")


def test_a_module_that_an_installed_library_lacks_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"tqdm\.no_such") as raised, _extras.named_in_errors():
        import tqdm.no_such  # noqa: F401
    assert not isinstance(raised.value, _extras.MissingExtraError)


def test_every_extra_that_is_named_is_one_of_setup_py() -> None:
    setup = (Path(__file__).parent.parent / "setup.py").read_text()
    for extra in _extras.EXTRAS.values():
        assert f'"{extra}": ' in setup
