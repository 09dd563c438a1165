from __future__ import annotations

import asyncio
import logging
import os
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_gguf.config import settings as settings_module
from llama_gguf.config.load import load
from llama_gguf.config.schema import LogSettings
from llama_gguf.config.settings import Settings
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.supervisor import app
from llama_gguf.supervisor.app import App
from llama_gguf.supervisor.boot_log import BootLog
from llama_gguf.supervisor.local_fleet import Setup
from tests.support.displays import FakeDisplay


def settings(**values: object) -> Settings:
    return Settings.of(**{"host": "127.0.0.1", **values})


# The gateway's settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"max_queue_wait": 2.5, "cors_origins": ("https://a.example", "https://b.example")},
        {"auth_enabled": False, "max_requests_per_minute": 1_000_000_000},
        {"max_queue_wait": 1_000_000.0},
        {"request_timeout": 86400.125},
        {"drain_timeout": 0.00001},
    ],
    ids=["defaults", "some", "limits", "long", "exact", "short"],
)
def test_the_gateway_gets_the_settings_of_serve(values: dict[str, object]) -> None:
    ours = settings(data_dir="/data", log_dir="/data/logs", **values)

    environ = app.gateway_environment(ours, {"PATH": "/bin", "PORT": "1"})

    assert environ["PATH"] == "/bin"
    theirs = load(environ).settings
    for name in settings_module.USED_BY["gateway"]:
        assert theirs.value(name) == ours.value(name), name


def test_the_gateway_does_not_read_the_configuration_file_again() -> None:
    ours = settings(data_dir="/data", config_file="/etc/c.toml", max_queue_size=7)

    theirs = load(app.gateway_environment(ours, {"CONFIG_FILE": "/etc/c.toml"})).settings

    assert theirs.process.config_file == ""
    assert theirs.queue.max_queue_size == 7


# What people see ----------------------------------------------------------------------------------


@pytest.fixture
def running(display: FakeDisplay, tmp_path: Path) -> Iterator[App]:
    with BootLog(LogSettings(log_dir=str(tmp_path))) as boot_log:
        made = App(settings(), environ={}, sources={}, display=display, boot_log=boot_log)
        made._supervisor = supervisor_with({"chat_key": "alice"})  # type: ignore[assignment]
        yield made


def supervisor_with(facts: dict[str, object] | None) -> types.SimpleNamespace:
    """One whose gateway reports *facts*; None if it does not respond."""

    async def report(*, within_seconds: float) -> dict[str, object] | None:
        assert within_seconds > 0
        return facts

    return types.SimpleNamespace(is_leaving=False, gateway=types.SimpleNamespace(facts=report))


async def take(running: App, *statuses: EngineStatus) -> None:
    for status in statuses:
        running._on_status(status)
    if running._showing is not None:
        await running._showing


def test_a_display_that_waits_for_a_disk_does_not_block_the_loop(
    running: App, display: FakeDisplay
) -> None:
    asyncio.run(take(running, EngineStatus(ChildState.READY, since=0.0)))

    assert display.calls == ["hidden"]
    display.may_show.set()
    assert display.is_shown.wait(30)


def test_a_load_is_shown_with_its_progress_and_readiness_only_once(
    running: App, display: FakeDisplay
) -> None:
    display.may_show.set()
    loading = EngineStatus(ChildState.LOADING, since=0.0, progress=0.5)
    ready = EngineStatus(ChildState.READY, since=0.0)
    asleep = EngineStatus(ChildState.ASLEEP, since=0.0)
    asyncio.run(take(running, loading, ready))
    assert display.is_shown.wait(30)
    asyncio.run(take(running, asleep, ready))

    assert display.calls == [0.5, "hidden", "ready alice", "hidden", "hidden"]


def test_it_is_shown_as_ready_although_the_gateway_does_not_respond(
    running: App, display: FakeDisplay
) -> None:
    display.may_show.set()
    running._supervisor = supervisor_with(None)  # type: ignore[assignment]

    asyncio.run(take(running, EngineStatus(ChildState.READY, since=0.0)))

    assert display.is_shown.wait(30)
    assert display.calls == ["hidden", "ready None"]


def test_a_server_that_is_stopping_is_not_shown_as_ready(
    running: App, display: FakeDisplay
) -> None:
    running._supervisor = types.SimpleNamespace(is_leaving=True)  # type: ignore[assignment]

    running._on_status(EngineStatus(ChildState.READY, since=0.0))

    assert not running._has_shown_ready


# A rolling restart --------------------------------------------------------------------------------


def again(
    startable: dict[str, object], display: FakeDisplay, changes: dict[str, object]
) -> list[Setup]:
    """What a rolling restart starts after *changes* to the settings."""
    chosen = settings(**startable)
    with BootLog(chosen.logs) as boot_log:
        made = App(
            chosen,
            environ={"PATH": os.defpath},
            sources={},
            display=display,
            boot_log=boot_log,
            load_again=lambda: (settings(**startable | changes), {}),
        )
        return list(asyncio.run(made._prepare_again(lambda text: None)))


@pytest.mark.processes
def test_a_rolling_restart_uses_the_present_settings_and_names_those_that_it_cannot_change(
    startable: dict[str, object], display: FakeDisplay, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, object] = {
        "ctx": 512,
        "replicas": 2,
        "idle_stop": 7.0,
        "port": 1,
        "max_queue_size": 3,
    }

    with caplog.at_level(logging.WARNING):
        setups = again(startable, display, changes)

    assert len(setups) == 2
    for setup in setups:
        argv = setup.launch.argv
        assert argv[argv.index("--ctx-size") + 1] == "512"
        assert setup.supervision.idle_stop == 7.0
    (message,) = caplog.messages
    assert message.endswith("`serve`: PORT MAX_QUEUE_SIZE")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"extra_args": "--port 1"}, "--port"),
        ({"model_path": "/nowhere.gguf"}, "nowhere.gguf"),
        ({"llama_server": "/nowhere"}, "/nowhere"),
        ({"port_backend": 20, "port": 21, "replicas": 2}, "ports of the replicas"),
    ],
)
def test_a_mistake_is_reported_before_a_rolling_restart_changes_anything(
    startable: dict[str, object],
    display: FakeDisplay,
    mistake: dict[str, object],
    message: str,
) -> None:
    if "port" in mistake:  # these two stay as they were at the start
        startable, mistake = startable | mistake | {"replicas": 1}, {"replicas": 2}

    with pytest.raises(UserError, match=message):
        again(startable, display, mistake)
