from __future__ import annotations

import pytest

from llama_gguf.config.schema import ClientLimits, RouteSettings
from llama_gguf.errors import HeadTooLarge, UriTooLong
from llama_gguf.http1.fields import presented_key
from llama_gguf.http1.parser import parse_request
from llama_gguf.http1.request_reader import RequestReader
from llama_gguf.http1.routes import Kind
from tests.support.keys import KEY
from tests.support.messages import request


def reader(limits: ClientLimits | None = None) -> RequestReader:
    return RequestReader(limits or ClientLimits(), RouteSettings(), keep_credentials=False)


def test_all_that_a_head_means_is_worked_out_at_once() -> None:
    found = reader().understand(parse_request(request(body=b"")), b"")

    assert found.route.label == "/v1/chat/completions"
    assert found.route.needs_slot
    assert presented_key(found.sorted_fields) == KEY.encode()


def test_the_number_of_fields_in_a_head_is_limited() -> None:
    limited = reader(ClientLimits(max_headers=3))
    few = parse_request(request("GET", "/ping", "a: b"))
    assert limited.understand(few, b"").route.kind is Kind.PING

    with pytest.raises(HeadTooLarge):
        limited.understand(parse_request(request("GET", "/ping", "a: b", "c: d")), b"")


def test_the_size_of_a_complete_head_is_limited() -> None:
    line = b"a: " + b"x" * 8000 + b"\r\n"
    reader().check_size(b"GET / HTTP/1.1\r\n" + line * 8)

    with pytest.raises(HeadTooLarge):
        reader().check_size(b"GET / HTTP/1.1\r\n" + line * 10)


def test_a_request_line_has_one_as_well() -> None:
    with pytest.raises(UriTooLong):
        reader().check_size(b"GET /" + b"x" * 9000)
