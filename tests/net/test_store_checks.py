from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.net import store_checks


def test_without_the_setting_nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_checks, "find_spec", lambda _: None)

    store_checks.check(Settings.of().shared)


def test_only_tls_needs_certificates(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    for url in ("redis://host", "unix:///run/s"):
        settings = Settings.of(shared_limits=url, shared_limits_ca_file=missing).shared
        store_checks.check(settings)
        assert store_checks.context_of(settings) is None

    with pytest.raises(UserError, match="SHARED_LIMITS_CA_FILE"):
        store_checks.check(
            Settings.of(shared_limits="rediss://host", shared_limits_ca_file=missing).shared
        )


def test_certificates_of_the_system_are_trusted_by_default() -> None:
    context = store_checks.context_of(Settings.of(shared_limits="rediss://host").shared)

    assert context is not None
    assert context.check_hostname
