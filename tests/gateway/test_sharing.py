from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.gateway.sharing import shared_store_of
from llama_gguf.net.clock import Clock

_LOADED = """
import sys
import llama_gguf.gateway.server, llama_gguf.cli.check, llama_gguf.supervisor.app
print([name for name in sys.modules if "hiredis" in name or name.endswith("shared_store")])
"""


def test_without_the_setting_nothing_is_shared() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert shared_store_of(Settings.of().shared, loop, Clock()) is None
    finally:
        loop.close()


@pytest.mark.processes
def test_without_the_setting_nothing_of_redis_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADED], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_without_its_packages_the_gateway_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_gguf.net.store_checks.find_spec", lambda _: None)
    settings = Settings.of(shared_limits="redis://:s3cret@host").shared
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(UserError, match=r"\[redis\]") as caught:
            shared_store_of(settings, loop, Clock())
    finally:
        loop.close()

    assert caught.value.exit_status == 2
    assert "s3cret" not in str(caught.value)


def test_certificates_that_cannot_be_read_prevent_the_start(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    settings = Settings.of(shared_limits="rediss://host", shared_limits_ca_file=missing).shared
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(UserError, match="SHARED_LIMITS_CA_FILE"):
            shared_store_of(settings, loop, Clock())
    finally:
        loop.close()
