"""Where a gateway alone has no control socket; what it does is in test_serve_operated.py."""

from __future__ import annotations

import contextlib
from typing import cast

import pytest

from llama_gguf.cli import gateway_operations
from llama_gguf.config.settings import Settings
from llama_gguf.gateway.server import Gateway


def test_without_the_names_of_peers_there_is_no_control_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_operations, "CAN_NAME_PEERS", False)

    made = gateway_operations.control_socket(Settings.of(), cast("Gateway", None))

    assert isinstance(made, contextlib.nullcontext)
