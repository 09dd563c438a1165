"""The messages that the program can print, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ANYTHING: Final = "…"
"""The placeholder for values that are known only at run time."""
ENOUGH_LETTERS: Final = 6
"""The number of consecutive words that identify a message."""


class Messages:
    """The messages of one module: errors for people, warnings and errors in the log."""

    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)
        self._named: dict[str, list[ast.expr]] = {}  # of any scope
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        self._named.setdefault(target.id, []).append(node.value)
        self._functions = {
            node.name: node for node in ast.walk(self._tree) if isinstance(node, ast.FunctionDef)
        }

    def __iter__(self) -> Iterator[str]:
        """The first line of each, with … for inserted values."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and (printed := _printed(node)) is not None:
                for text in self._texts(printed):
                    line = text.partition("\n")[0]
                    if any(
                        map(is_telling, line.split(ANYTHING))
                    ):  # else it passes on another's message
                        yield line

    def _texts(self, node: ast.expr) -> Iterator[str]:
        match node:
            case ast.Constant(value=str(text)):
                yield re.sub(r"\{[^}]*\}", ANYTHING, text)
            case ast.JoinedStr(values=values):
                yield "".join(_piece(value) for value in values)
            case ast.Name(id=name):
                for value in self._named.get(name, ()):
                    yield from self._texts(value)
            case ast.IfExp(body=one, orelse=other):
                yield from self._texts(one)
                yield from self._texts(other)
            case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=[first, *_])]):
                yield from self._texts(first)
            case ast.Call(func=ast.Name(id=name)) if name in self._functions:
                for inner in ast.walk(self._functions[name]):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield from self._texts(inner.value)


def _piece(value: ast.expr) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else ANYTHING


def _printed(call: ast.Call) -> ast.expr | None:
    """The text that *call* prints: a message, or an event's text, which follows its name."""
    match call:
        case ast.Call(func=ast.Name(id="UserError"), args=[message, *_]):
            return message
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="_log"), attr="warning" | "error"), args=[_, text]
        ):
            return text
    return None


def anchor(message: str) -> str:
    """The text to search for: the first constant sentence of the message."""
    sentences = [s for piece in message.split(ANYTHING) for s in re.split(r"(?<=[.:?]) ", piece)]
    return next(s.strip(" :.,") for s in sentences if is_telling(s))


def is_telling(text: str) -> bool:
    return len(re.findall("[A-Za-z]", text)) > ENOUGH_LETTERS


def of(path: Path) -> list[str]:
    return list(dict.fromkeys(Messages(path.read_text("utf-8"))))
