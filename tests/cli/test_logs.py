from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_gguf
from llama_gguf.cli import logs
from llama_gguf.cli.log_events import EVENTS, WHOLE_SENTENCES

_log = logging.getLogger("llama_gguf.somewhere")


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_text_line_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    _log.warning("%d things are wrong", 2)

    told = capsys.readouterr()
    assert told.out == ""
    time, rest = told.err.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", time)
    assert rest == "WARNING 2 things are wrong\n"


def test_a_json_line_has_time_level_event_logger_and_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("json")
    _log.info("%d things are fine", 2)

    (line,) = json_lines(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "other",
        "logger": "llama_gguf.somewhere",
        "message": "2 things are fine",
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x0b", "\x85", "\x00"])
def test_a_message_cannot_forge_a_json_line(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    forged = f'an ending{end}{{"level": "error", "message": "forged"}}'
    _log.info("%s", forged)

    (line,) = json_lines(capsys.readouterr().err)
    assert line["level"] == "info"
    assert line["message"] == forged


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_logged_with_its_traceback(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format)
    try:
        raise ValueError("the reason")
    except ValueError:
        _log.exception("it failed")

    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "ValueError: the reason" in told
    if log_format == "json":
        assert len(json_lines(told)) == 1


def test_what_is_less_than_info_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    _log.debug("a detail")

    assert capsys.readouterr().err == ""


def test_to_configure_it_twice_does_not_say_everything_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("json")
    logs.configure("text")
    _log.info("once")

    assert capsys.readouterr().err.count("once") == 1


# The vocabulary -----------------------------------------------------------------------------------


def calls() -> Iterator[tuple[str, str, str]]:
    """Module, level and message of every call of a logger in our code."""
    for source in sorted(Path(llama_gguf.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="_log"), attr=level),
                    args=[ast.Constant(value=str(message)), *_],
                ):
                    yield source.stem, level, message
                case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
                    raise AssertionError(f"{source}: a message that is no plain text")
                case _:
                    pass


@pytest.mark.parametrize(("module", "level", "message"), sorted(set(calls())))
def test_every_line_of_ours_has_a_name(
    module: str, level: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json")
    number = getattr(logging, "ERROR" if level == "exception" else level.upper())
    record = logging.LogRecord(f"llama_gguf.x.{module}", number, "", 0, message, None, None)
    logging.getLogger().handle(record)

    (line,) = json_lines(capsys.readouterr().err)
    assert line["event"] != "other", "it is missing in cli/log_events.py"


def test_names_are_words() -> None:
    for name in (*EVENTS.values(), *WHOLE_SENTENCES.values()):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
