from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.supervisor import start
from tests.support.displays import FakeDisplay


def settings(**values: object) -> Settings:
    return Settings.of(**{"host": "127.0.0.1", **values})


def serve(chosen: Settings, display: FakeDisplay) -> int:
    return start.serve(chosen, environ={"PATH": os.defpath}, sources={}, display=display)


@pytest.fixture
def _handlers_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers_as_they_were")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_early_stop_is_remembered_if_its_exception_is_lost_in_a_callback(
    number: signal.Signals,
) -> None:
    with start.early_stops() as is_stop_requested:
        assert not is_stop_requested()
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), number)
        assert is_stop_requested()


def test_after_an_early_stop_nothing_is_started(
    startable: dict[str, object],
    display: FakeDisplay,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(start, "early_stops", lambda: nullcontext(lambda: True))

    assert serve(settings(**startable), display) == 0

    assert display.calls == ["checked", "hidden"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"model_path": "/nowhere.gguf"}, "nowhere.gguf"),
        ({"llama_server": "/nowhere"}, "/nowhere"),
        ({"extra_args": "--port 1"}, "--port"),
        ({"port_backend": 1, "port": 1}, "same port"),
    ],
)
def test_a_fault_is_reported_before_anything_is_done_for_a_start(
    fault: dict[str, object], message: str, startable: dict[str, object], display: FakeDisplay
) -> None:
    with pytest.raises(UserError, match=message):
        serve(settings(**startable | fault), display)

    assert "checked" not in display.calls
