from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from llama_gguf.cli import logs

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


def test_a_json_line_has_time_level_logger_and_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("json")
    _log.info("%d things are fine", 2)

    (line,) = json_lines(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
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
