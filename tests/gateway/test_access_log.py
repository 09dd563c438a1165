from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.gateway.access_log import MAX_BATCHES, AccessLog, LogFile, Record, as_json, as_text
from tests.fakes import OK, Rig, request

RECORD = Record(
    ended_at=1_700_000_000.1234,
    request_id="req-1",
    key_id="alice",
    address="203.0.113.9",
    method="POST",
    path="/v1/chat/completions",
    status=200,
    bytes_in=12,
    bytes_out=345,
    queued=0.0,
    first_byte=0.01234,
    duration=1.5,
    outcome="done",
)


def fields_of(line: str) -> dict[str, str]:
    time, *pairs = line.split(" ")
    return {"time": time, **dict(pair.split("=", 1) for pair in pairs)}


def test_a_line_of_text_has_every_fact() -> None:
    assert as_text(RECORD) == (
        "2023-11-14T22:13:20.123Z request_id=req-1 key_id=alice client=203.0.113.9 "
        "method=POST path=/v1/chat/completions status=200 bytes_in=12 bytes_out=345 "
        "queue_ms=0.0 first_byte_ms=12.3 duration_ms=1500.0 outcome=done"
    )


def test_a_line_of_json_has_the_same_facts() -> None:
    facts = json.loads(as_json(RECORD))

    assert {k: str(v) for k, v in facts.items()} == fields_of(as_text(RECORD))


@given(st.text(alphabet=st.characters(max_codepoint=0xFF)))
def test_no_path_can_forge_a_field_or_a_line(path: str) -> None:
    record = RECORD._replace(path=path)

    text, json_line = as_text(record), as_json(record)
    assert len(text.splitlines()) == 1
    assert len(json_line.splitlines()) == 1
    assert text.isascii()
    assert text.isprintable()
    assert fields_of(text).keys() == fields_of(as_text(RECORD)).keys()
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
    rig.answer_with(OK)
    rig.ask(raw)
    (record,) = rig.records

    assert as_text(record).count(" status=") == 1
    assert fields_of(as_text(record)).keys() == fields_of(as_text(RECORD)).keys()
    assert " " not in record.request_id
    assert '"' not in record.request_id


def test_lines_are_appended_to_a_file_whose_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "access.log"
    log = LogFile(str(path), "text")
    log.write([RECORD])
    log.write([RECORD, RECORD])
    log.close()

    assert path.read_text().splitlines() == [as_text(RECORD)] * 3
    assert path.stat().st_mode & 0o007 == 0, "nothing for others to read"


def test_json_lines_are_written_when_they_are_asked_for(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "access.log"), "json")
    log.write([RECORD])
    log.close()

    assert json.loads((tmp_path / "access.log").read_text())["key_id"] == "alice"


def test_no_file_is_made_before_there_is_something_to_write(tmp_path: Path) -> None:
    LogFile(str(tmp_path / "access.log"), "text").close()

    assert list(tmp_path.iterdir()) == []


def test_after_reopening_lines_go_to_whatever_has_the_name(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = LogFile(str(path), "text")
    log.write([RECORD])
    path.rename(tmp_path / "access.log.1")
    log.close()
    log.write([RECORD._replace(status=404)])
    log.close()

    assert "status=404" in path.read_text()
    assert "status=200" in (tmp_path / "access.log.1").read_text()


def test_everything_that_gathered_is_written_by_the_end(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"), "text")
    log.start()
    for status in (200, 404):
        log.pending.append(RECORD._replace(status=status))
        log.flush()
    log.pending.append(RECORD._replace(status=503))

    log.stop(within_seconds=30)

    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [fields_of(line)["status"] for line in lines] == ["200", "404", "503"]


def test_opening_anew_comes_behind_what_was_handed_over_before(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), "text")
    log.start()
    log.pending.append(RECORD)
    log.flush()
    log.reopen()

    log.stop(within_seconds=30)

    assert len(path.read_text().splitlines()) == 1


def test_a_disk_that_hangs_costs_a_bounded_number_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path), "text")
    for _ in range(10 * MAX_BATCHES):  # nobody writes yet, as when a disk hangs
        log.pending.append(RECORD)
        log.flush()

    log.start()
    log.stop(within_seconds=30)

    assert len(path.read_text().splitlines()) == MAX_BATCHES


def test_a_file_that_cannot_be_written_is_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    log = LogFile(str(tmp_path / "file" / "access.log"), "text")
    with caplog.at_level(logging.WARNING):
        log.write([RECORD])
        log.write([RECORD])

    assert caplog.text.count("cannot be written") == 1
