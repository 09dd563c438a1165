from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.http1.exchange_record import ExchangeRecord, Usage
from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind, Route
from llama_gguf.telemetry.access_log import (
    MAX_WAITING_BYTES,
    PIECE_BYTES,
    AccessLog,
    RequestLog,
    as_json,
    as_text,
)
from llama_gguf.telemetry.batch import Batch
from tests.support.exchanges import STARTED_AT, finished_exchange, request_for
from tests.support.fakes import Rig
from tests.support.messages import OK, request
from tests.support.processes import until

WALL_OFFSET = 1_700_000_000.1234 - STARTED_AT - 1.5
"""Moves the end of ``ENDED`` to 2023."""
ENDED = finished_exchange()


def fields_of(line: str) -> dict[str, str]:
    time, *pairs = line.split(" ")
    return {"time": time, **dict(pair.split("=", 1) for pair in pairs)}


def test_a_line_of_text_has_every_fact() -> None:
    assert as_text(ENDED, WALL_OFFSET) == (
        "2023-11-14T22:13:20.123Z request_id=req-1 key_id=alice client=203.0.113.9 "
        "method=POST path=/v1/chat/completions status=200 bytes_in=12 bytes_out=345 "
        "queue_ms=0.0 first_byte_ms=12.3 duration_ms=1500.0 outcome=done"
    )


def test_a_line_of_json_has_the_same_facts() -> None:
    facts = json.loads(as_json(ENDED, WALL_OFFSET))

    assert {k: str(v) for k, v in facts.items()} == fields_of(as_text(ENDED, WALL_OFFSET))


def test_a_line_has_the_number_of_replays_if_there_were_any() -> None:
    exchange = finished_exchange(usage=Usage(7, 5, None))
    exchange.replays = 2

    assert as_text(exchange, 0.0).endswith(
        " outcome=done replays=2 prompt_tokens=7 completion_tokens=5"
    )
    assert json.loads(as_json(exchange, 0.0))["replays"] == 2


@pytest.mark.parametrize("seconds", [0.01239, 0.00009, 59.99999])
def test_times_are_the_same_in_text_and_json(seconds: float) -> None:
    exchange = finished_exchange(first_byte=seconds, duration=seconds, queued=seconds)
    facts = json.loads(as_json(exchange, 0.0))

    assert {k: str(v) for k, v in facts.items()} == fields_of(as_text(exchange, 0.0))


@given(seconds=st.tuples(st.integers(0, 200_000), st.integers(0, 200_000), st.integers(0, 200_000)))
def test_times_are_milliseconds_with_one_decimal(seconds: tuple[int, int, int]) -> None:
    queued, first_byte, duration = (eighths / 8 for eighths in seconds)  # exact in a float
    exchange = finished_exchange(first_byte=first_byte, duration=duration, queued=queued)

    fields = fields_of(as_text(exchange, 0.0))

    assert fields["queue_ms"] == f"{queued * 1000:.1f}"
    assert fields["first_byte_ms"] == f"{first_byte * 1000:.1f}"
    assert fields["duration_ms"] == f"{duration * 1000:.1f}"


def test_phases_that_an_exchange_did_not_reach_have_times_of_zero() -> None:
    fields = fields_of(as_text(finished_exchange(first_byte=None), WALL_OFFSET))

    assert (fields["queue_ms"], fields["first_byte_ms"]) == ("0.0", "0.0")


def test_exchanges_side_by_side_do_not_mix_up_their_lines() -> None:
    bob = finished_exchange(request_for("GET", "/v1/models"), status=404)
    bob.key_id, bob.address, bob.id_bytes = "bob", "unix", b"req-2"
    lines = [fields_of(as_text(e, WALL_OFFSET)) for e in (ENDED, bob, ENDED, bob)]

    assert lines[:2] == lines[2:]
    assert lines[1] | {"request_id": "", "status": ""} == lines[0] | {
        "request_id": "",
        "status": "",
        "key_id": "bob",
        "client": "unix",
        "method": "GET",
        "path": "/v1/models",
    }
    assert (lines[1]["request_id"], lines[1]["status"]) == ("req-2", "404")


@given(st.text(alphabet=st.characters(max_codepoint=0xFF)))
def test_no_path_can_forge_a_field_or_a_line(path: str) -> None:
    exchange = finished_exchange(request_for(path=path))

    text, json_line = as_text(exchange, WALL_OFFSET), as_json(exchange, WALL_OFFSET)
    assert len(text.splitlines()) == 1
    assert len(json_line.splitlines()) == 1
    assert text.isascii()
    assert text.isprintable()
    assert fields_of(text).keys() == fields_of(as_text(ENDED, WALL_OFFSET)).keys()
    assert fields_of(text)["status"] == "200"
    assert json.loads(json_line)["path"] == path


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/x\nstatus=200 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/x%0astatus=200 HTTP/1.1\r\nHost: a\r\n\r\n",
        b'GET /v1/"x"=y HTTP/1.1\r\nHost: a\r\n\r\n',
        b"GET /v1/x\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        request("GET", "/v1/models", "x-request-id: r\tstatus=500"),
        request("GET", "/v1/models", 'x-request-id: r" status="500'),
        request("GET", "/v1/models", "x-request-id: r status=500"),
    ],
)
def test_nothing_that_a_client_sends_forges_a_line(raw: bytes, rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request(raw)
    (record,) = rig.records
    line = as_text(record, WALL_OFFSET)

    assert line.count(" status=") == 1
    assert fields_of(line).keys() == fields_of(as_text(ENDED, WALL_OFFSET)).keys()
    assert " " not in record.request_id
    assert '"' not in record.request_id


def lines_in(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.parametrize(("log_format", "write"), [("text", as_text), ("json", as_json)])
def test_lines_have_the_configured_format_and_the_wall_clock_time(
    log_format: str, write: Callable[[ExchangeRecord, float], str], tmp_path: Path
) -> None:
    log = AccessLog(str(tmp_path / "access.log"), log_format)
    log.wall_offset = WALL_OFFSET
    log.start()
    log.take(Batch([ENDED, finished_exchange(status=404)], 0.0))

    log.stop(within_seconds=30)

    expected = [write(ENDED, WALL_OFFSET), write(finished_exchange(status=404), WALL_OFFSET)]
    assert lines_in(tmp_path / "access.log") == expected


def test_a_line_is_written_when_its_exchange_is_taken_and_not_later(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"), "text")
    exchange = finished_exchange()
    log.take(Batch([exchange], 0.0))
    exchange.status = 500
    log.wall_offset = WALL_OFFSET
    log.start()

    log.stop(within_seconds=30)

    assert lines_in(tmp_path / "access.log") == [as_text(ENDED, 0.0)]


def test_everything_that_gathered_is_written_by_the_end(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"), "text")
    log.start()
    for status in (200, 404):
        log.take(Batch([finished_exchange(status=status)], 0.0))
        log.flush()
    log.take(Batch([finished_exchange(status=503)], 0.0))

    log.stop(within_seconds=30)

    lines = lines_in(tmp_path / "access.log")
    assert [fields_of(line)["status"] for line in lines] == ["200", "404", "503"]


def test_under_load_lines_are_written_in_pieces_before_the_next_flush(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), "text")
    log.start()
    batch = Batch([ENDED] * 64, 0.0)
    line_bytes = len(as_text(ENDED, 0.0)) + 1

    for _ in range(2 * PIECE_BYTES // (64 * line_bytes) + 2):
        log.take(batch)

    until(lambda: path.exists() and path.stat().st_size >= 2 * PIECE_BYTES)
    log.stop(within_seconds=30)


def test_the_file_is_reopened_after_the_queued_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), "text")
    log.start()
    log.take(Batch([ENDED], 0.0))
    log.flush()
    log.reopen()

    log.stop(within_seconds=30)

    assert len(lines_in(path)) == 1


def test_a_disk_that_hangs_costs_a_bounded_number_of_lines_which_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batch = [ENDED] * 5000
    batch_bytes = len(batch) * (len(as_text(ENDED, 0.0)) + 1)
    path = tmp_path / "access.log"
    log = AccessLog(str(path), "text")
    batches = MAX_WAITING_BYTES // batch_bytes + 3
    for _ in range(batches):  # the thread does not write yet, as if the disk hung
        log.take(Batch(batch, 0.0))
        log.flush()

    log.start()
    log.stop(within_seconds=30)

    written = len(lines_in(path))
    assert written <= MAX_WAITING_BYTES // batch_bytes * len(batch)
    lost = batches * len(batch) - written
    assert caplog.messages == [
        f"The access log {path} could not be written for a time: {lost} lines are lost"
    ]


# Tokens -------------------------------------------------------------------------------------------


def test_known_token_counts_are_in_the_line() -> None:
    exchange = finished_exchange(usage=Usage(33, 6, 32), first_token=0.25)
    known = {"first_token_ms": 250.0, "prompt_tokens": 33, "cached_tokens": 32}

    line = as_text(exchange, WALL_OFFSET)
    assert line.endswith(
        "first_token_ms=250.0 prompt_tokens=33 cached_tokens=32 completion_tokens=6"
    )
    assert known.items() <= json.loads(as_json(exchange, WALL_OFFSET)).items()


def test_unknown_token_counts_are_missing_and_not_zero() -> None:
    half = as_text(finished_exchange(usage=Usage(3, None, None)), WALL_OFFSET)
    none = json.loads(as_json(finished_exchange(), WALL_OFFSET))

    assert half.endswith("outcome=done prompt_tokens=3")
    assert not any("token" in name for name in none)


# A line per request in the program's own log ------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture, *exchanges: ExchangeRecord) -> list[str]:
    caplog.set_level("INFO")
    RequestLog().take(Batch(list(exchanges), 0.0))
    return [record.getMessage() for record in caplog.records]


def test_a_request_is_one_line_with_key_route_status_tokens_and_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exchange = finished_exchange(usage=Usage(31, 4, None), first_token=0.2)

    assert logged(caplog, exchange) == [
        "alice POST /v1/chat/completions 200 done in 1.50 s: 31 + 4 tokens, the first after 0.20 s"
    ]


def test_a_request_without_tokens_has_a_shorter_line(caplog: pytest.LogCaptureFixture) -> None:
    exchange = finished_exchange(status=429, first_byte=None)

    assert logged(caplog, exchange) == ["alice POST /v1/chat/completions 429 done in 1.50 s"]


def test_health_checks_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    checks = request_for("GET", "/health")
    checks = Request(checks.head, cors=b"", route=Route(Kind.HEALTH, "/health"))

    assert logged(caplog, finished_exchange(checks)) == []
