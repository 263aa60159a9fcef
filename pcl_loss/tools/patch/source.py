"""A Python file as lines and as a tree, and lines that go in and come out again. All in bytes, no file is touched."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

MARKER = "# pcl_loss"  # ends each line of ours; `--revert` goes by it
_MARKED = re.compile(rb"[ \t]*" + MARKER.encode() + rb"[ \t]*[\r\n]*\Z")


@dataclass(frozen=True)
class Insertion:
    """Lines that come into a file at one place, with indentation, marker and line end; `what` says what they do."""

    after: int  # the number of the line, from 1, behind which they go; 0 is the top of the file
    lines: tuple[bytes, ...]
    what: str


class Source:
    """A file: its `lines`, which keep their ends, and its `tree`. Raises `ValueError` if it does not parse."""

    def __init__(self, content: bytes) -> None:
        self.lines = split(content)
        self.tree = parse(content)

    def indent(self, node: ast.stmt) -> bytes:
        """The white space before a statement, which must be the first of its line."""
        line = self.lines[node.lineno - 1]
        indent = line[: len(line) - len(line.lstrip(b" \t"))]
        if len(indent) != node.col_offset:
            raise ValueError(f"line {node.lineno} holds more than one statement")
        return indent

    def inner_indent(self, outer: bytes, statements: Iterable[ast.stmt]) -> bytes:
        """One step further in than `outer`, as far as the first of the statements that begins its line."""
        for statement in statements:
            with contextlib.suppress(ValueError):
                return self.indent(statement)
        return outer + (b"\t" if outer.endswith(b"\t") else b"    ")

    def before(self, node: ast.stmt, what: str, *lines: tuple[bytes, str]) -> Insertion:
        """Lines, as (indent, code), that go before a statement."""
        return self._insertion(node.lineno - 1, what, lines)

    def behind(self, node: ast.stmt, what: str, *lines: tuple[bytes, str]) -> Insertion:
        """Lines, as (indent, code), that go behind a statement."""
        return self._insertion(node.end_lineno or node.lineno, what, lines)

    def _insertion(self, after: int, what: str, lines: Iterable[tuple[bytes, str]]) -> Insertion:
        end = re.search(rb"(\r\n|\r|\n)\Z", self.lines[max(after, 1) - 1])
        if end is None:
            raise ValueError(f"line {after} is the last and has no line end; add one")
        tail = b"  " + MARKER.encode() + end[0]
        return Insertion(after, tuple(indent + code.encode() + tail for indent, code in lines), what)

    def with_insertions(self, insertions: Iterable[Insertion]) -> bytes:
        """The content with the lines in it."""
        lines = list(self.lines)
        for insertion in sorted(insertions, key=lambda insertion: insertion.after, reverse=True):
            lines[insertion.after : insertion.after] = insertion.lines
        return b"".join(lines)


def parse(content: bytes) -> ast.Module:
    """The tree of a file; raises `ValueError` with the line if this Python does not take it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the codebase's own escapes
            tree = ast.parse(content)
            compile(tree, "file", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ValueError(
            f"it does not parse as Python {sys.version_info.major}.{sys.version_info.minor} "
            f"(line {error.lineno}: {error.msg})"
        ) from error
    return tree


def names_us(*nodes: ast.AST) -> bool:
    """Whether code below these nodes, and no comment or text, imports a module of ours."""
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        match node:
            case ast.Import(names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(str(module), level=0) | ast.Call(args=[ast.Constant(str(module)), *_]):
                modules = [module]
            case _:
                continue
        if any(module.partition(".")[0] == "pcl_loss" for module in modules):
            return True
    return False


def split(content: bytes) -> list[bytes]:
    """The lines with their ends, by Python's own idea of a line: CR, LF and CRLF, and no form feed."""
    return content.splitlines(keepends=True)


def without_marked(content: bytes) -> bytes:
    """The content without the lines that end in our marker."""
    return b"".join(line for line in split(content) if not _MARKED.search(line))
