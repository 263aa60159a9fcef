"""An option file and `--force_yml` become options, by YAML's safe loader: BasicSR's own runs the code in them."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

Options = dict[str, Any]


class OptionsError(ValueError):
    """An option file asks for what cannot be; the message is one line that names the key, the value and the fix."""


class _Loader(yaml.SafeLoader):
    """The safe loader; it also refuses a key that stands twice, and numbers that are not decimal: 064 would be 52."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if type(value) in (int, float) and re.match(r"[-+]?(0[\dbx_]|.*:)", node.value):
            problem = f"YAML reads {node.value} as {value}; write a decimal number, or quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, (key, _) in enumerate(node.value):
            if key.value in names[:position]:
                problem = f"the key {key.value!r} stands twice in one block; delete one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def load_options(file: str | Path, overrides: Iterable[str] = ()) -> Options:
    """The options in a YAML file in UTF-8, changed by `--force_yml`'s entries `block:key=value`.
    Raises OptionsError if it is no file, no YAML, no block of keys or asks for code, or if there is no such block.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{file} cannot be read: {error}; give -opt the path of a YAML file in UTF-8") from error
    options = _parse(text, str(file))
    if not isinstance(options, dict):
        raise OptionsError(f"{file} holds no block of keys; `pcl-loss options` writes out working option files")
    for override in overrides:
        _override(options, override)
    return options


def _parse(text: str, source: str) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
        json.dumps(value, default=str, skipkeys=True)  # raises where an alias stands inside its own anchor
    except (yaml.YAMLError, ValueError, LookupError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise OptionsError(f"{source} is not YAML that can be read: {reason}") from error
    return value


def _override(options: Options, override: str) -> None:
    path, equals, text = override.partition("=")
    *blocks, key = (part.strip() for part in path.split(":"))
    if not equals or not key:
        raise OptionsError(f"--force_yml takes block:key=value, for example train:ema_decay=0.99, got {override!r}")
    target: Any = options
    for block in blocks:
        target = target.get(block) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise OptionsError(f"--force_yml {override}: the option file has no block {':'.join(blocks)}")
    # BasicSR's own spelling, which YAML reads as text.
    target[key] = None if text.strip().lower() == "none" else _parse(text, f"--force_yml {override}")


@contextmanager
def named(where: str) -> Iterator[None]:
    """Whatever is raised in here becomes one line that names the block."""
    try:
        yield
    except OptionsError:
        raise
    except Exception as error:
        text = f"it has no key {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise OptionsError(f"{where}: {' '.join(text.split())[:400]}") from error
