from __future__ import annotations

from types import ModuleType

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.supervisor import checks


@pytest.mark.parametrize(("module", "name"), checks.NEEDED)
def test_a_system_without_something_of_linux_is_named_with_what_it_lacks(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks.system() == "Linux"
    monkeypatch.delattr(module, name)

    with pytest.raises(UserError, match=rf"needs Linux; .* has no {module.__name__}\.{name}\. Run"):
        checks.system()


@pytest.mark.parametrize(
    ("values", "replicas", "message"),
    [
        ({"port": 8082}, 3, "PORT=8082 is one of the ports of the replicas"),
        ({"port_health": 8081}, 2, "PORT_HEALTH=8081 is one of the ports of the replicas"),
        ({"port_backend": 65534}, 3, "leaves no ports"),
    ],
)
def test_the_ports_of_all_replicas_are_checked(
    values: dict[str, object], replicas: int, message: str
) -> None:
    chosen = Settings.of(**values)

    with pytest.raises(UserError, match=message):
        checks.ports(chosen.listen, chosen.upstream, replicas)
    assert checks.ports(chosen.listen, chosen.upstream, replicas - 1)


def test_replicas_on_unix_sockets_need_no_ports() -> None:
    chosen = Settings.of(port=8082, backend_socket="/run/llama.sock")

    assert "port_backend" not in checks.ports(chosen.listen, chosen.upstream, 3)


def test_settings_of_the_gateway_are_not_changed_by_a_rolling_restart() -> None:
    now = Settings.of(ctx=512, port=8000, backend_api_key="generated")
    then = Settings.of(ctx=1024, replicas=2, idle_stop=5.0, port=9000, max_queue_size=7)

    assert checks.fixed_changes(now, then) == ["port", "max_queue_size"]
    assert checks.fixed_changes(now, Settings.of(backend_api_key="other")) == ["backend_api_key"]
