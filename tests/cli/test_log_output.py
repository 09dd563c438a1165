from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from llama_gguf.cli import log_output
from llama_gguf.config.masking import Masker
from llama_gguf.config.schema import LogSettings
from llama_gguf.events import EventLog
from tests.cli.test_terminal import FakeStream
from tests.support.processes import DEADLINE_SECONDS

_log: Final = EventLog("llama_gguf.somewhere")
_library: Final = logging.getLogger("library")
ENDS: Final = ["\n", "\r\n", "\r", "\u2028", "\x0b", "\x0c", "\x1c", "\x85", "\x00", "\x1b[2K"]
"""Characters that end a line or move the cursor in some terminal or viewer."""
FORGED: Final = "2026-01-01T00:00:00.000+00:00 ERROR   forged"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root, engine = logging.getLogger(), logging.getLogger("llama-server")
    handlers, level, engine_level = root.handlers[:], root.level, engine.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    engine.setLevel(engine_level)


def configure(*, terminal: str = "xterm", no_color: str = "", **settings: Any) -> None:
    environ = {"TERM": terminal, "NO_COLOR": no_color}
    log_output.configure(LogSettings(**settings), environ)


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Text ---------------------------------------------------------------------------------------------


def test_a_text_line_has_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="text")
    _log.warning("paint_low", "{count} colours are missing", count=2)

    printed = capsys.readouterr()
    assert printed.out == ""
    time, rest = printed.err.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", time)
    assert rest == "WARNING 2 colours are missing\n"


def test_a_record_of_another_logger_has_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(log_format="text")
    _library.info("%d things", 2)

    assert capsys.readouterr().err.endswith(" INFO    library: 2 things\n")


def test_the_lines_of_an_event_follow_it_indented(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="text")
    _log.error("bug", "It died", lines=["one\ttab", "two\rx"])

    _, *lines = capsys.readouterr().err.splitlines()
    assert lines == ["    one\ttab", "    two\\rx"]


@pytest.mark.parametrize("end", ENDS)
def test_no_value_can_forge_or_hide_a_text_line(
    end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format="text")
    value = f"ä{end}{FORGED}"
    _log.info("painted", "It is {colour}", colour=value, lines=[value])
    _library.info("It is %s", value)
    try:
        raise ValueError(value)
    except ValueError as error:
        _log.error("bug", "It failed", exc_info=error)

    text = capsys.readouterr().err
    assert "ä" in text
    assert not any((c < " " and c != "\n") or c in "\x85\u2028" for c in text)
    at_the_margin = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(at_the_margin) == 3
    assert not any(line.startswith(FORGED) for line in at_the_margin)


# JSON ---------------------------------------------------------------------------------------------


def test_a_json_line_has_the_event_and_its_facts_as_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(log_format="json")
    _log.info("painted", "{count} things are {colour}", count=2, colour="red", lines=["a", "b"])

    (line,) = json_lines(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "painted",
        "logger": "llama_gguf.somewhere",
        "message": "2 things are red",
        "count": 2,
        "colour": "red",
        "lines": ["a", "b"],
    }


def test_a_json_line_of_a_library_has_the_same_fields_and_no_facts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(log_format="json")
    _library.info("%d things", 2)

    (line,) = json_lines(capsys.readouterr().err)
    assert line.pop("time")
    assert line == {
        "level": "info",
        "event": "other",
        "logger": "library",
        "message": "2 things",
    }


@pytest.mark.parametrize("end", ENDS)
def test_no_value_can_forge_a_json_line(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="json")
    forged = f'an ending{end}{{"level": "error", "message": "forged"}}'
    _log.info("painted", "It is {colour}", colour=forged)

    (line,) = json_lines(capsys.readouterr().err)
    assert line["level"] == "info"
    assert line["message"] == f"It is {forged}"
    assert line["colour"] == forged


# Both ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_logged_with_its_traceback(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format=log_format)
    try:
        raise ValueError("the reason")
    except ValueError as error:
        _log.error("bug", "It failed", exc_info=error)

    text = capsys.readouterr().err
    if log_format == "json":
        (line,) = json_lines(text)
        assert line["message"] == "It failed"
        text = line["exception"]
    assert "Traceback" in text
    assert "ValueError: the reason" in text


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("secret", ['sk"quoted"', "sk-\\back", "sk-ä-umlaut", "sk-plain"])
def test_a_secret_in_a_fact_can_be_masked(
    log_format: str, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format=log_format)
    _log.error("bug", "It is {colour}", colour=f"x {secret} y", lines=[f"x {secret} y"])

    masked = Masker([secret]).mask(capsys.readouterr().err)
    assert masked.count("x ******** y") == (2 if log_format == "text" else 3)


def test_records_below_info_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure(log_format="text")
    _library.debug("a detail")

    assert capsys.readouterr().err == ""


def test_configuring_twice_does_not_duplicate_records(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(log_format="json")
    configure(log_format="text")
    _log.info("painted", "once")

    assert capsys.readouterr().err.count("once") == 1


# Levels -------------------------------------------------------------------------------------------

_engine: Final = logging.getLogger("llama-server")
LEVELS: Final = ("debug", "info", "warning", "error")


def everything_logged() -> None:
    for logger in (logging.getLogger("llama_gguf.x"), _engine):
        name = "engine" if logger is _engine else "ours"
        for level in LEVELS:
            logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", f"{name}-{level}")


@pytest.mark.parametrize(
    ("level", "ours", "engine"),
    [
        ("debug", LEVELS, LEVELS),
        ("info", LEVELS[1:], LEVELS[2:]),
        ("warning", LEVELS[2:], LEVELS[2:]),
        ("error", LEVELS[3:], LEVELS[3:]),
    ],
)
def test_the_engine_is_quieter_than_we_are_unless_everything_is_wanted(
    level: str, ours: tuple[str, ...], engine: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_level=level)
    everything_logged()

    words = set(capsys.readouterr().err.split())
    assert words & {f"ours-{each}" for each in LEVELS} == {f"ours-{each}" for each in ours}
    assert words & {f"engine-{each}" for each in LEVELS} == {f"engine-{each}" for each in engine}


def test_other_handlers_get_our_records_at_any_level_of_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(log_level="error")
    seen: list[str] = []
    other = logging.Handler()
    other.emit = lambda record: seen.append(record.levelname)  # type: ignore[method-assign]
    logging.root.addHandler(other)

    _log.info("painted", "It is red")

    assert seen == ["INFO"]
    assert capsys.readouterr().err == ""


# Terminals ----------------------------------------------------------------------------------------


def as_terminal(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    stream = FakeStream(is_terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def test_on_a_terminal_a_line_has_the_time_of_day_and_a_coloured_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = as_terminal(monkeypatch)
    configure()
    _log.error("bug", "It failed", lines=["first", "second"])
    _log.info("painted", "It is red")

    error, first, second, info, _ = terminal.getvalue().split("\n")
    assert re.fullmatch(
        r"\x1b\[K\d\d:\d\d:\d\d \x1b\[31mERROR  \x1b\[0m It failed", error.lstrip("\r")
    )
    assert (first, second) == ("    first", "    second")
    assert re.fullmatch(r"\x1b\[K\d\d:\d\d:\d\d INFO    It is red", info.lstrip("\r"))


@pytest.mark.parametrize("settings", [{"no_color": "1"}, {"terminal": "dumb"}])
def test_a_terminal_without_colours_gets_none(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = as_terminal(monkeypatch)
    configure(**settings)
    _log.error("bug", "It failed")

    assert "\x1b[31m" not in terminal.getvalue()


def test_json_is_the_same_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch)
    configure(log_format="json")
    _log.error("bug", "It failed")

    assert json.loads(terminal.getvalue())["message"] == "It failed"


def test_a_file_that_has_the_same_records_gets_no_control_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_terminal(monkeypatch)
    configure()

    formatter = logging.root.handlers[0].formatter
    assert formatter is not None
    record = logging.LogRecord("llama_gguf.x", logging.ERROR, "", 0, "It failed", None, None)
    assert "\x1b" not in formatter.format(record)


# Without file descriptors -------------------------------------------------------------------------

WITHOUT_DESCRIPTORS: Final = """
import os, resource, sys
from llama_gguf.events import EventLog
from llama_gguf.cli import log_output
from llama_gguf.config.schema import LogSettings

log_output.configure(LogSettings(log_format=sys.argv[1]), {})
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError as error:
    EventLog("llama_gguf.x").error(
        "no_descriptors", "It failed\\nwith {names}", names="\\u2028", exc_info=error
    )
"""


@pytest.mark.processes
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_without_a_file_descriptor_an_exception_is_logged_in_one_line(log_format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DESCRIPTORS, log_format],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )

    assert "It failed\\nwith \\u2028" in done.stderr
    assert "OSError: [Errno 24] Too many open files: '/dev/null'" in done.stderr
