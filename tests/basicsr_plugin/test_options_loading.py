"""Option files are read as UTF-8 by YAML's safe loader: no code runs, and what YAML would take silently is refused."""

import builtins
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pcl_loss.basicsr_plugin import OptionsError
from pcl_loss.basicsr_plugin.options_loading import load_options

Options = dict[str, Any]

NO_OPTIONS = [
    ("- a\n- b\n", "o.yml holds no block of keys"),
    ("name: tiny\n  scale: 4\n", "line 2, column 8"),
    ("name: tiny\nscale: 2\nname: other\n", "the key 'name' stands twice in one block; delete one"),
    ("name: &a [*a]\n", "Circular reference"),
    ("scale: 04\n", "YAML reads 04 as 4; write a decimal number"),
    ("scale: 0x10\n", "YAML reads 0x10 as 16"),
]


@pytest.mark.parametrize(("text", "words"), NO_OPTIONS)
def test_what_is_no_option_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "o.yml"
    file.write_text(text)
    with pytest.raises(OptionsError) as raised:
        load_options(file)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_numbers_are_those_that_one_writes(tmp_path: Path) -> None:
    file = tmp_path / "o.yml"
    file.write_text("a: 0.5\nb: -3\nc: 0\nd: 1.0e-4\ne: !!float 5e3\nf: '0x10'\n")
    assert load_options(file) == {"a": 0.5, "b": -3, "c": 0, "d": 1e-4, "e": 5000.0, "f": "0x10"}


@pytest.mark.parametrize("name", ["gone.yml", "bytes.yml"])
def test_a_missing_file_and_one_that_is_no_text_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionsError, match=f"{name} cannot be read: "):
        load_options(tmp_path / name)


def test_a_tag_that_asks_for_code_runs_nothing(refused: Callable[..., str]) -> None:
    assert "could not determine a constructor for the tag" in refused("name: !!python/object/apply:os.mkdir [owned]\n")


def test_force_yml_runs_nothing(small: Options, parse: Callable[..., Options]) -> None:
    for override in ("name=!!python/object/apply:os.mkdir [owned]", "name=[__import__('os').mkdir('owned')]"):
        with contextlib.suppress(OptionsError):
            parse(small, "--force", override)  # argparse takes an abbreviation
    assert [path.name for path in Path().iterdir()] == ["run.yml"]


def test_force_yml_sets_values_in_yaml(small: Options, parse: Callable[..., Options]) -> None:
    flags = ("train:ema_decay=0.5", "name=other", "path:pretrain_network_g=None", "train:optim_g:betas=[0.8, 0.9]")
    opt = parse(small, "--force_yml", *flags, "train:total_iter=!!float 3", "val:save_img=true")
    train = opt["train"]
    assert (train["ema_decay"], train["optim_g"]["betas"], train["total_iter"]) == (0.5, [0.8, 0.9], 3)
    assert (opt["name"], opt["path"]["pretrain_network_g"], opt["val"]["save_img"]) == ("other", None, True)
    assert opt["path"]["experiments_root"].endswith("other")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian:ema_decay=0.9", "has no block trian"),
        ("train:ema_decay", "takes block:key=value"),
        ("train:ema_decay=[1", "--force_yml train:ema_decay=[1 is not YAML"),
        ("train:ema_decay=2", "train.ema_decay should be less than 1, got 2"),
    ],
)
def test_force_yml_is_checked_as_the_file_is(
    small: Options, refused: Callable[..., str], override: str, words: str
) -> None:
    assert words in refused(small, "--force_yml", override)


def test_a_file_in_utf8_is_read_and_copied_under_any_default_encoding(
    small: Options, parse: Callable[..., Options], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from basicsr.utils import options as basicsr_options

    monkeypatch.setattr(basicsr_options, "open", partial(builtins.open, encoding="ascii"), raising=False)
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda file, encoding="ascii": read_text(file, encoding))
    assert parse(f"# 学习率\n{yaml.safe_dump(small)}")["name"] == "tiny"
    _, flags = basicsr_options.parse_options(str(tmp_path / "run"))
    basicsr_options.copy_opt_file(flags.opt, str(tmp_path))
    assert yaml.safe_load((tmp_path / "run.yml").read_text()) == small
