"""An option file and `--force_yml` become options, by YAML's safe loader: BasicSR's own runs the code in them."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from basicsr.utils import options as basicsr_options

from .yaml_values import Options, OptionsError


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses what YAML would take without a word: a key that stands twice, of which it
    keeps the last, and integers of another base, since 064 is 52 and 5:00 is 300.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_scalar = isinstance(node, yaml.ScalarNode)
        try:
            value = super().construct_object(node, deep)
        except (LookupError, ValueError, OverflowError) as error:
            text = f"{node.value!r} is no {node.tag.rpartition(':')[2]}" if is_scalar else str(error)
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from error
        if is_scalar and type(value) in (int, float) and re.match(r"[-+]?(0\d|0_|.*:)", node.value):
            problem = f"YAML reads {node.value} as {value}; write a decimal number, or quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in one block; delete one", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_options(file: str | Path, overrides: Iterable[str] = ()) -> Options:
    """The options in a YAML file.

    Args:
        file: its path.
        overrides: `--force_yml`'s entries, `block:key=value`, each value in YAML.

    Raises:
        OptionsError: there is no such file, it is not YAML or no block of keys, it holds a tag that asks for code, or
            an override names a block that there is not.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionsError(f"{file} cannot be read: {error.strerror}; give -opt the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise OptionsError(f"{file} is no text in UTF-8; give -opt the path of a YAML file") from error
    options = _parse(text, str(file))
    if not isinstance(options, dict):
        found = "is empty" if options is None else f"holds {type(options).__name__}, not a block of keys"
        raise OptionsError(f"{file} {found}; `pcl-loss options` writes out working option files")
    for override in overrides:
        _override(options, override)
    return options


def _parse(text: str, source: str) -> Any:
    try:
        value = yaml.load(text, Loader=_Loader)
        json.dumps(value, default=str, skipkeys=True)  # raises where an alias stands inside its own anchor
        return value
    except yaml.YAMLError as error:
        raise OptionsError(_where(error, source)) from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise OptionsError(f"{source}: {error}") from error


def _where(error: yaml.YAMLError, source: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = source if mark is None else f"{source}, line {mark.line + 1}, column {mark.column + 1}"
    if problem and "could not determine a constructor" in problem:
        tag = problem.rsplit("'", 2)[1].removeprefix("tag:yaml.org,2002:")
        return f"{place}: the tag !!{tag} is not allowed: an option file holds plain values and runs no code; drop it"
    return f"{place} is not YAML: {problem or ' '.join(str(error).split())}"


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
def loaded_options(check: Callable[[Options], None]) -> Iterator[None]:
    """While open, BasicSR's `parse_options` is handed what `load_options` reads, once `check` has passed it.

    Raises:
        OptionsError: as `load_options` and `check`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-opt")
    parser.add_argument("--force_yml", nargs="+", default=[])
    flags, others = parser.parse_known_args(sys.argv[1:])
    if flags.opt is None:  # BasicSR's own parser says so, or prints its help
        yield
        return
    options = load_options(flags.opt, flags.force_yml)
    check(options)

    class Loaded(yaml.SafeLoader):
        def get_single_data(self) -> Options:
            return options

    argv, ordered_yaml = sys.argv, basicsr_options.ordered_yaml
    sys.argv = [argv[0], "-opt", flags.opt, *others]
    basicsr_options.ordered_yaml = lambda: (Loaded, yaml.SafeDumper)
    try:
        yield
    finally:
        sys.argv, basicsr_options.ordered_yaml = argv, ordered_yaml
