from __future__ import annotations

from llama_gguf.http1.exchange_record import Usage
from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind, Route
from llama_gguf.telemetry.batch import counts_of
from tests.support.exchanges import finished_exchange, request_for


def test_exchanges_add_up_by_key() -> None:
    usage = Usage(prompt=10, completion=20, cached=5)
    refused = finished_exchange(status=429, first_byte=None)
    counts = counts_of(
        [
            finished_exchange(usage=usage),
            refused,
            finished_exchange(),
            finished_exchange(key_id="bob", usage=usage),
            finished_exchange(usage=usage),
        ]
    )

    assert counts == {"alice": [4, 1, 20, 40, 10, 1], "bob": [1, 0, 10, 20, 5, 0]}


def test_incomplete_usage_counts_as_far_as_it_is_known() -> None:
    half = Usage(None, 20, None, is_whole=False)

    assert counts_of([finished_exchange(usage=half)]) == {"alice": [1, 0, 0, 20, 0, 1]}


def test_a_route_without_tokens_has_no_unknown_usage() -> None:
    models = finished_exchange(request_for("GET", "/v1/models", label="/v1/models"))

    assert counts_of([models]) == {"alice": [1, 0, 0, 0, 0, 0]}


def test_without_a_key_id_only_responses_of_the_engine_count() -> None:
    refused = finished_exchange(key_id="-", status=401, first_byte=None)
    ui = finished_exchange(web_ui(), key_id="-")

    assert counts_of([refused, ui]) == {}
    assert counts_of([finished_exchange(key_id="-")]) == {"-": [1, 0, 0, 0, 0, 1]}


def test_local_responses_are_not_counted() -> None:
    ours = request_for("GET", "/usage", label="/usage")
    ours.route = Route(Kind.USAGE, "/usage")

    assert counts_of([finished_exchange(ours)]) == {}


def web_ui() -> Request:
    request = request_for("GET", "/", label="web_ui")
    request.route = Route(Kind.PROXIED, "web_ui", needs_no_key=True)
    return request
