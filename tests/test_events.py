from __future__ import annotations

import contextvars
import enum
import io
import json
import logging
import string
from pathlib import Path
from typing import Final

import pytest

import llama_gguf
from docs.reference import LoggedEvent, logged_events
from llama_gguf import events
from llama_gguf.events import EventLog, Fact, event_of, facts_of

NAME: Final = "llama_gguf.somewhere"
FIELDS: Final = {"time", "level", "event", "logger", "message", "exception"}
"""Those of every JSON line."""
EVENTS: Final = sorted(
    event
    for module in Path(llama_gguf.__file__).parent.rglob("*.py")
    for event in logged_events(module.read_text("utf-8"))
)

_log: Final = EventLog(NAME)


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


class Colour(enum.StrEnum):
    RED = "red"


# A record -----------------------------------------------------------------------------------------


def test_an_event_is_a_record_with_name_facts_and_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _log.warning("paint_low", "Only {litres:.1f} l of {colour} are left", litres=2, colour="red")

    (record,) = caplog.records
    assert (record.name, record.levelname) == (NAME, "WARNING")
    assert record.getMessage() == "Only 2.0 l of red are left"
    assert event_of(record) == "paint_low"
    assert facts_of(record) == {"litres": 2, "colour": "red"}
    assert record.filename == Path(__file__).name


def test_a_record_of_a_library_has_no_name_and_no_facts(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("asyncio").error("%s failed", "it")

    (record,) = caplog.records
    assert (event_of(record), facts_of(record)) == ("other", {})


@pytest.mark.parametrize("value", ["{value}", "{0}", "{", "%s", "%(name)s"])
def test_a_fact_is_never_interpreted_as_a_template(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    _log.info("painted", "It is now {value}", value=value)

    assert caplog.records[0].getMessage() == f"It is now {value}"


def test_a_list_is_shown_in_a_sentence_as_words(caplog: pytest.LogCaptureFixture) -> None:
    _log.info("mixed", "Mixed from {colours}", colours=("red", "blue"))

    assert caplog.records[0].getMessage() == "Mixed from red blue"
    assert facts_of(caplog.records[0]) == {"colours": ["red", "blue"]}


def strict(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        (Colour.RED, "red"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ("/models/\udcff.gguf", "/models/\\udcff.gguf"),
        (["\udcff"], ["\\udcff"]),
        (None, None),
        (True, True),
        (0.5, 0.5),
    ],
)
def test_every_fact_is_json_safe(
    fact: Fact, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    _log.info("painted", "It is now {fact}", fact=fact)

    written = json.dumps(dict(facts_of(caplog.records[0])))
    assert json.loads(written, parse_constant=strict) == {"fact": value}
    assert str(value) in caplog.records[0].getMessage() or isinstance(value, list)


def test_a_bad_template_does_not_raise_in_the_code_that_logs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = io.StringIO()
    events = EventLog(NAME)
    events._logger = logging.Logger(NAME)  # the handlers of pytest would raise
    events._logger.addHandler(logging.StreamHandler(written))

    events.info("painted", "It is now {colour:.1f}", colour="red")
    events.info("dried", "It is dry")

    assert written.getvalue() == "It is dry\n"
    assert "--- Logging error ---" in capsys.readouterr().err


# The events of this package -----------------------------------------------------------------------


def names_in(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_every_sentence_uses_exactly_the_facts_of_its_event(event: LoggedEvent) -> None:
    assert event.level in ("info", "warning", "error")
    assert event.name.replace("_", "").isalpha()
    assert event.name.islower()
    assert not FIELDS & {*event.facts}
    assert set().union(*map(names_in, event.texts)) == {*event.facts} - {"lines"}


def test_an_event_has_one_level_wherever_it_is_logged() -> None:
    assert len({event.name for event in EVENTS}) == len({(e.name, e.level) for e in EVENTS})


@pytest.mark.parametrize(
    "call",
    [
        '_log.info(name, "It is red")',
        '_log.info("painted", f"It is {colour}")',
        '_log.info("painted", "It is %s" % colour)',
        '_log.info("painted")',
    ],
)
def test_an_event_that_is_not_constant_at_its_call_is_an_error(call: str) -> None:
    with pytest.raises(ValueError, match=r"_log|constant"):
        list(logged_events(call))


def test_events_are_extracted_from_the_calls_that_log_them() -> None:
    source = """
if wet:
    _log.error("bug", "It is {colour}" if colour else "It is bare", exc_info=e, colour=colour)
self._log(one)
"""
    assert list(logged_events(source)) == [
        LoggedEvent("bug", "error", ("It is {colour}", "It is bare"), ("colour",))
    ]


def test_the_events_of_one_of_several_replicas_name_it(caplog: pytest.LogCaptureFixture) -> None:
    def log() -> None:
        events.replica.set("2")
        _log.info("engine_ready", "The model is ready after {seconds} s", seconds=4)

    contextvars.copy_context().run(log)

    (record,) = caplog.records
    assert record.getMessage() == "Replica 2: The model is ready after 4 s"
    assert facts_of(record) == {"seconds": 4, "replica": "2"}
