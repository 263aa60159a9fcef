import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pcl_loss import import_repair  # noqa: F401  (these files import basicsr)

Options = dict[str, Any]


@pytest.fixture(autouse=True)
def basicsr_knows_us(registered: None) -> None:
    pass


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """Parses options, or an option file's text, as `pcl-loss train` or `test` does."""
    from basicsr.utils import options as basicsr_options

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def parse(options: Options | str, *flags: str, is_train: bool = True) -> Options:
        text = options if isinstance(options, str) else yaml.safe_dump(options)
        Path("run.yml").write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["train", "-opt", "run.yml", *flags])
        opt: Options = basicsr_options.parse_options(str(folder), is_train=is_train)[0]
        return opt

    return parse


@pytest.fixture
def refused(parse: Callable[..., Options]) -> Callable[..., str]:
    """The one line with which options are refused, before anything is written."""

    def refused(options: Options | str, *flags: str, is_train: bool = True) -> str:
        from pcl_loss.basicsr_plugin import OptionsError

        with pytest.raises(OptionsError) as raised:
            parse(options, *flags, is_train=is_train)
        assert [path.name for path in Path().iterdir()] == ["run.yml"]
        (line,) = str(raised.value).splitlines()
        return line

    return refused


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    from basicsr.utils import get_root_logger

    monkeypatch.setattr(get_root_logger(), "propagate", True)
    return caplog
