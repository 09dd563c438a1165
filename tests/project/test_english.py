"""Docs, messages and sources are plain, standard English: some words are rejected."""

from __future__ import annotations

import ast
import enum
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


class Part(enum.Flag):
    """The text of a file that is checked."""

    PROSE = enum.auto()  # Markdown without its code
    TEXT = enum.auto()  # the whole file: configuration with comments
    COMMENTS = enum.auto()  # of Python, like the following
    DOCSTRINGS = enum.auto()
    STRINGS = enum.auto()
    TEST_NAMES = enum.auto()


PYTHON: Final = Part.COMMENTS | Part.DOCSTRINGS | Part.STRINGS
TESTS: Final = Part.COMMENTS | Part.DOCSTRINGS | Part.TEST_NAMES

SCANNED: Final = {
    "*.md": Part.PROSE,
    "docs/**/*.md": Part.PROSE,
    "docs/cli.md": Part.TEXT,  # help texts are in code blocks
    "changes/*.md": Part.PROSE,
    ".github/*.md": Part.PROSE,
    ".github/ISSUE_TEMPLATE/*.yml": Part.TEXT,
    "deploy/**/*.*": Part.TEXT,
    "docker/Dockerfile": Part.TEXT,
    "docker/*.yaml": Part.TEXT,
    "docker/*.py": PYTHON,
    "hatch_build.py": PYTHON,
    "src/**/*.py": PYTHON,
    "tests/engines/*.py": Part.COMMENTS | Part.DOCSTRINGS,
    "tests/supervisor/*.py": TESTS,
    **dict.fromkeys(
        (
            *(f"tests/{room}/*.py" for room in ("access", "models", "scheduling")),
            *(f"tests/{room}/*.py" for room in ("fuzz", "hostile", "soak")),
            "tests/test_*.py",
        ),
        PYTHON,
    ),
    **dict.fromkeys(
        (f"tests/{room}/*.py" for room in ("config", "files", "http1", "telemetry")),
        Part.COMMENTS | Part.DOCSTRINGS,
    ),
    "tests/net/*.py": Part.COMMENTS | Part.DOCSTRINGS,
    "src/**/*.html": Part.TEXT,
    "src/**/*.js": Part.TEXT,
    "perf/*.py": PYTHON,
    "tests/bench/*.py": TESTS,
    "tests/cli/*.py": TESTS,
    "tests/cluster/*.py": TESTS,
    "tests/perf/*.py": TESTS,
    "tests/project/*.py": TESTS,
    "tests/prompt_cache/*.py": TESTS,
    "tests/project/release.py": PYTHON,
    "tests/conftest.py": Part.COMMENTS | Part.DOCSTRINGS,
    "tests/support/**/*.py": TESTS,
    "tests/wire/**/*.py": TESTS,
    "tests/e2e/**/*.py": Part.COMMENTS | Part.DOCSTRINGS,
    ".env.example": Part.TEXT,
    "docs/*.py": PYTHON,
    "scripts/**/*.sh": Part.TEXT,
    "api_keys.txt.example": Part.TEXT,
    "Makefile": Part.TEXT,
}
"""Globs, and the text that is checked; for a file that several match, the last one applies."""

INSTEAD: Final = {
    r"tell(?:s|ing)?|told": "report, show, return, determine, distinguish",
    r"says|said": "states, shows, reports, means",
    r"hears?|heard|heed(?:s|ed|ing)?": "receive, handle, respect",
    r"answer(?:s|ed|ing)?": "response, respond, return",
    r"ask(?:s|ed|ing)? for": "request, need, prompt for",
    r"who(?:m|so)?ever|whatever": "the subject itself: any client, all requests, regardless of",
    r"(?:no|any|some|every)body": "the subject itself: no client, all keys, the operator",
    r"anew": "again; restart",
    r"so many": "the number",
    r"on guard": "require a key",
    r"put(?:s|ting)? right": "fix",
    r"(?:go|goes|gone|going|went) on": "continue, resume",
    r"(?:take|takes|taken|took) up": "apply, reload, process",
    r"of (?:our|its|their|your) own": "its own X, separate, custom",
    r"besides": "also, in addition",
    r"newcomers?": "new connection, new client",
    r"for ever": "forever",
    r"borne": "tolerated",
    r"in place of": "instead of",
}
"""Patterns of words, and the words that a reader expects."""

ALLOWED: Final = frozenset(
    {
        ("perf/load.py", "tell"),  # in a chat prompt
        ("docs/benchmark.md", "tell"),  # a verdict of `bench compare`
        ("src/llama_gguf_bench/compare.py", "tell"),  # the same
    }
)
"""(file, word) where the word is a quotation or the correct term."""


@dataclass(frozen=True, slots=True)
class Finding:
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.word!r}, better: {self.instead}"


def findings(text: str, first_line: int = 1) -> Iterator[Finding]:
    """The words in *text* that have a usual term."""
    for words, instead in INSTEAD.items():
        pattern = words.replace(" ", r"\s+")  # a line may end between them
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
            line = first_line + text.count("\n", 0, match.start())
            yield Finding(line, " ".join(match[0].lower().split()), instead)


def without_code(text: str) -> str:
    """*text* without code blocks, code spans and link targets; lines keep their numbers."""
    code = r"^```.*?^```|(`+)(?:(?!\n\n).)*?\1|(?<=\])\([^)\s]*\)|^\[[^\]]*\]: .*?$"
    return re.sub(code, _blank, text, flags=re.DOTALL | re.MULTILINE)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n") or "`"


def python_texts(source: str, parts: Part) -> Iterator[tuple[int, str]]:
    """The first line and the text of each element of *parts*."""
    if Part.COMMENTS in parts:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    nodes = list(ast.walk(ast.parse(source)))
    if Part.TEST_NAMES in parts:
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.lineno, node.name.replace("_", " ")
    docstrings = {id(n.value) for n in nodes if isinstance(n, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            part = Part.DOCSTRINGS if id(node) in docstrings else Part.STRINGS
            # A single word in a string is the name of a field or an attribute.
            is_name = part is Part.STRINGS and node.value.isidentifier()
            if part in parts and not is_name:
                yield node.lineno, node.value


def _read(path: Path, parts: Part) -> Iterator[Finding]:
    source = path.read_text("utf-8")
    if parts & (PYTHON | TESTS):
        for line, text in python_texts(source, parts):
            yield from findings(without_code(text), line)
    else:
        yield from findings(source if Part.TEXT in parts else without_code(source))


@cache
def read(path: Path, parts: Part) -> tuple[Finding, ...]:
    return tuple(_read(path, parts))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES: Final = {
    name_of(path): parts
    for glob, parts in SCANNED.items()
    for path in sorted(ROOT.glob(glob))
    if path.is_file()
}


@pytest.mark.parametrize("name", FILES)
def test_a_page_uses_the_usual_terms(name: str) -> None:
    found = [f for f in read(ROOT / name, FILES[name]) if (name, f.word) not in ALLOWED]

    assert found == [], "\n" + "\n".join(f"{name}, {finding}" for finding in found)


def test_every_exception_is_needed() -> None:
    found = {(name, f.word) for name, parts in FILES.items() for f in read(ROOT / name, parts)}

    assert found >= ALLOWED


def test_prose_is_read_without_its_code() -> None:
    page = "It `told` us.\n```bash\ntold\n```\n[link](told.md) is\nTold, so\nmany.\n"

    assert [(f.line, f.word) for f in findings(without_code(page))] == [(6, "told"), (6, "so many")]


@pytest.mark.parametrize(
    ("part", "lines"),
    [
        (Part.COMMENTS, [2]),
        (Part.DOCSTRINGS, [1, 3]),
        (Part.STRINGS, [4]),
        (Part.TEST_NAMES, [2]),
        (PYTHON, [2, 1, 3, 4]),
    ],
)
def test_python_is_read_by_part(part: Part, lines: list[int]) -> None:
    source = '"""anew"""\ndef test_anew(): # anew\n    """anew"""\n    return f"anew {anew}"\n'
    source += 'NAMES = ("anew",)\n'

    found = [f.line for line, text in python_texts(source, part) for f in findings(text, line)]
    assert list(dict.fromkeys(found)) == lines
