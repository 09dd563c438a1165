from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.cli.main import main
from llama_gguf.cli.shared_limits import look
from llama_gguf.config.settings import Settings
from llama_gguf.net import store_checks
from tests.support.processes import free_port
from tests.support.stores import Store, store

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store(tmp_path_factory.mktemp("s"), "--requirepass", "s3cret") as running:
        with closing(running.client()) as client:
            client.do("AUTH", "s3cret")
            client.do("ACL", "SETUSER", "reader", "on", ">s3cret", "~*", "&*", "+@read", "+eval")
            client.do("ACL", "SETUSER", "reader", "+@connection")
        yield running


def found(url: str, **settings: object) -> Result:
    return look(Settings.of(shared_limits=url, **settings).shared)


def test_without_the_setting_limits_are_those_of_one_gateway() -> None:
    result = found("")

    assert result.level is Level.OK
    assert "this gateway alone" in result.text


def test_a_server_that_can_be_used_is_shown_with_its_version(server: Store) -> None:
    result = found(f"unix://:s3cret@{server.path}")

    assert result.level is Level.OK
    assert result.text.startswith("Valkey 9.")
    assert "s3cret" not in result.text


@pytest.mark.parametrize(
    ("login", "reason"),
    [("", "NOAUTH"), (":wrong-one@", "WRONGPASS"), ("reader:s3cret@", "permissions")],
)
def test_a_server_that_cannot_be_used_is_a_note_with_the_reason(
    server: Store, login: str, reason: str
) -> None:
    result = found(f"unix://{login}{server.path}", shared_limits_outage="closed")

    assert result.level is Level.NOTE
    assert reason in result.text
    assert "SHARED_LIMITS_OUTAGE=closed applies" in result.text
    assert "wrong-one" not in result.text
    assert "s3cret" not in result.text


def test_missing_packages_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_checks, "find_spec", lambda _: None)

    result = found("redis://host")

    assert result.level is Level.WRONG
    assert "[redis]" in result.text


def test_check_shows_the_server_and_masks_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    environ = {
        "DATA_DIR": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "SHARED_LIMITS": f"redis://gate:s3cret@127.0.0.1:{port}/2",
    }

    main(["check", "--json"], environ)

    text = capsys.readouterr().out
    shown = json.loads(text)
    assert "s3cret" not in text
    assert shown["settings"]["SHARED_LIMITS"]["value"] == "********"
    check = next(c for c in shown["checks"] if c["subject"] == "shared limits")
    assert f"redis://127.0.0.1:{port}/2 cannot be used: Connection refused" in check["text"]
