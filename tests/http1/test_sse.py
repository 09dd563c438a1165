from __future__ import annotations

import pytest

from llama_gguf.http1 import sse
from llama_gguf.http1.sse import has_final_event, outcome_of
from tests.support.messages import chunk

FINAL = [
    b"data: [DONE]\n\n",
    b"data:[DONE]\n\n",
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n',
    b'event: response.incomplete\ndata: {"type":"response.incomplete"}\n\n',
    b'data: {"index":0,"content":"","stop":true,"tokens":[]}\n\n',
]
NOT_FINAL = [
    b"",
    b"data: [DONE]\n",  # not whole
    b'data: {"content":"data: [DONE]"}\n\n',
    b'data: {"content":"\\ndata: [DONE]\\n\\n"}\n\n',
    b'data: {"content":"say \\"stop\\":true"}\n\n',
    b'data: {"content":"","stop":false}\n\n',
    b'event: message_delta\ndata: {"type":"message_stop"}\n\n',
    b"event: message_stop\n",
    b": [DONE]\n\n",
]
EVENT = chunk(b'data: {"choices":[{"index":0,"delta":{"content":" tok"}}]}\n\n')
ERRORS = [
    b'data: {"error":{"code":500,"message":"Context size has been exceeded."}}\n\n',
    b'error: {"error":{"code":500}}\n\n',
    b'event: error\ndata: {"type":"error"}\n\n',
    b'event: response.failed\ndata: {"type":"response.failed"}\n\n',
]


@pytest.mark.parametrize("event", FINAL)
def test_a_final_event_is_found_behind_others_and_in_chunks(event: bytes) -> None:
    for before in (b"", b'data: {"n":1}\n\n', chunk(b'data: {"n":1}\n\n')):
        assert has_final_event(before + event)
        assert has_final_event(before + chunk(event))
        assert outcome_of(before + event) == "done"


@pytest.mark.parametrize("ending", NOT_FINAL)
def test_text_of_the_model_is_no_final_event(ending: bytes) -> None:
    assert not has_final_event(ending)


@pytest.mark.parametrize("event", ERRORS)
def test_an_error_event_makes_the_outcome_an_error_of_the_engine(event: bytes) -> None:
    assert outcome_of(b'data: {"n":1}\n\n' + event) == "engine_error"
    assert outcome_of(chunk(event)) == "engine_error"


def test_text_about_an_error_is_none() -> None:
    assert outcome_of(b'data: {"content":"data: {\\"error\\":1}"}\n\ndata: [DONE]\n\n') == "done"


def test_a_stream_without_a_word_about_an_error_needs_no_expression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "_ERROR", None)

    assert outcome_of(EVENT * 70) == "done"
