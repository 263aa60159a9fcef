"""What a value in a YAML may be, as a vocabulary for tables; and the error that says so."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._checks import nearest

Options = dict[str, Any]


class OptionsError(ValueError):
    """A YAML asks for what cannot be; the message names the line and the fix."""


class Kind(NamedTuple):
    """A kind of value: how it is called, which values are of it, and what becomes of one."""

    words: str
    accepts: Callable[[Any], bool]
    take: Callable[[Any], Any] = lambda value: value

    def check(self, where: str, value: Any) -> Any:
        """The value as it is meant: whole floats such as 5e3 are integers.

        Raises:
            OptionsError: it is of another kind.
        """
        if not self.accepts(value):
            raise OptionsError(f"{where} must be {self.words}, got {shown(value)}{_hint(value)}")
        return self.take(value)


def warn(message: str) -> None:
    """Say something that the run goes on without, once: on the first process alone."""
    # `torch.distributed` may not have begun.
    if os.environ.get("RANK", "0") == "0":
        print(f"[pcl_loss] {message}", file=sys.stderr)


def shown(value: Any) -> str:
    """The value for a message of one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(low: int, high: int = 10**9) -> Kind:
    """Integers from `low` to `high`, also written as floats."""
    words = f"an integer of at least {low}" if high == 10**9 else f"an integer from {low} to {high}"
    return Kind(words, lambda value: _is_number(value) and low <= value <= high and value == int(value), int)


def number(low: float = -1e9, high: float = 1e9, *, above: bool = False, below: bool = False) -> Kind:
    """Numbers from `low` to `high`; `above` and `below` leave out the one and the other end."""
    words = f"a number {'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"

    def accepts(value: Any) -> bool:
        return (
            _is_number(value) and low <= value <= high and not ((above and value == low) or (below and value == high))
        )

    return Kind(words, accepts)


def choice(*names: str) -> Kind:
    """One of a few names."""
    return Kind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """Lists of a kind, of any length but 0, or of one length."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and (len(value) == length if length else bool(value))
            and all(kind.accepts(item) for item in value)
        )

    words = f"a list of {length or 'values, each'}{' values, each' if length else ''} {kind.words}"
    return Kind(words, accepts, lambda value: [kind.take(item) for item in value])


def either(first: Kind, second: Kind) -> Kind:
    """A value of either kind."""
    return Kind(
        f"{first.words}, or {second.words}",
        lambda value: first.accepts(value) or second.accepts(value),
        lambda value: first.take(value) if first.accepts(value) else second.take(value),
    )


NOTHING = Kind("~", lambda value: value is None)


def optional(kind: Kind) -> Kind:
    """The kind, or `~`."""
    return either(kind, NOTHING)


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable())
BLOCK = Kind("a block of keys", lambda value: isinstance(value, dict))
ANY = Kind("anything", lambda value: True)


def check_table(where: str, block: Any, table: Mapping[str, Kind], required: Collection[str] = ()) -> list[str]:
    """Check a block's keys and values, and write back what whole floats mean.

    Args:
        where: the block's name, dotted; empty for the file itself.
        block: the block.
        table: the kinds of its keys.
        required: those that must be there.

    Returns:
        The keys that are unknown and no slip of a known one, dotted.

    Raises:
        OptionsError: it is no block, a key is missing or the slip of a known one, or a value is of another kind.
    """
    BLOCK.check(where or "the option file", block)
    unknown = []
    for key, value in block.items():
        name = dotted(where, key)
        if not isinstance(key, str):
            raise OptionsError(f"{name}: a key must be text, got {shown(key)}; quote it, or delete the line")
        if key in table:
            block[key] = table[key].check(name, value)
        elif (meant := nearest(key, table)) is not None and not _is_read_by_basicsr(key):
            raise OptionsError(f"unknown key {name!r}; did you mean {meant!r}?")
        else:
            unknown.append(name)
    for key in required:
        if key not in block:
            raise OptionsError(f"{dotted(where, key)} is missing; it must be {table[key].words}")
    return unknown


@functools.cache
def _is_read_by_basicsr(key: str) -> bool:
    """Whether the BasicSR in use names a key that our tables do not know: codebases have copies of their own."""
    spec = importlib.util.find_spec("basicsr")
    folders = (spec.submodule_search_locations or []) if spec else []
    sources = (path.read_text(encoding="utf-8") for folder in folders for path in Path(folder).rglob("*.py"))
    return any(f"'{key}'" in source or f'"{key}"' in source for source in sources)


def dotted(where: str, key: object) -> str:
    """The name of a key in a block."""
    return f"{where}.{key}" if where else str(key)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value == value
        and abs(value) != float("inf")
    )


def _hint(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return " (YAML reads this as text: write numbers without quotes and with a point, as in 1.0e-4)"
