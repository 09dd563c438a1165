"""Two gateways that share the limits of keys by a real Valkey."""

from __future__ import annotations

import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.certificates import CA_PEM, issue
from tests.support.gateways import GatewayProcess, Processes
from tests.support.messages import Response, code_of, request
from tests.support.processes import until
from tests.support.stores import Store, TlsFront, store

LIMIT: Final = 60
LIMITS: Final = {
    "admin": "",
    "crowd": f":{LIMIT}",
    "alone": f":{LIMIT}",
    "after": f":{LIMIT}",
    "daily": " tokens_per_day=1000",
    "spent": " tokens_per_day=1000",
}
KEYS: Final = "".join(f"{name}:{name}-0123456789abc{limit}\n" for name, limit in LIMITS.items())
BODY: Final = b'{"max_tokens": 60}'
"""Estimated as 64 tokens, which count since the engine reports no figures."""

Pair = tuple[GatewayProcess, GatewayProcess]


def start(processes: Processes, url: str, **env: object) -> Pair:
    """Two gateways that know of each other, in front of one engine."""
    engine = processes.fake_llama("--slots", "64").address
    shared: dict[str, Any] = {"SHARED_LIMITS": url, "ADMIN_KEY_IDS": "admin", **env}
    one, other = (processes.gateway(engine, keys=KEYS, **shared) for _ in range(2))
    until(lambda: facts(one)["gateways"] == facts(other)["gateways"] == 2, lambda: one.log)
    return one, other


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def gateways(shared_processes: Processes, server: Store) -> Pair:
    return start(shared_processes, server.url)


def post(gateway: GatewayProcess, name: str) -> Response:
    return gateway.send_request(request(body=BODY, key=key_of(name)))


def key_of(name: str) -> str:
    return f"{name}-0123456789abc"


def facts(gateway: GatewayProcess) -> dict[str, Any]:
    found: dict[str, Any] = gateway.health()["shared_limits"]
    return found


def until_up(gateways: Pair, *, is_up: bool = True) -> None:
    for gateway in gateways:
        until(lambda: facts(gateway)["up"] is is_up, lambda: gateway.log)  # noqa: B023


def usage(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    """What an administrator sees of the key *name*."""
    keys = gateway.send_request(request("GET", "/usage", key=key_of("admin"))).json["keys"]
    found: dict[str, Any] = next((k for k in keys if k["key_id"] == name), {})
    return found


def test_a_limit_holds_over_two_gateways_and_each_shows_the_usage_of_both(gateways: Pair) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(lambda n: post(gateways[n % 2], "crowd").status, range(160)))

    assert set(statuses) == {200, 429}
    assert LIMIT <= statuses[200] <= LIMIT + 6
    shown = {"limit": LIMIT, "used": LIMIT, "remaining": 0}
    for gateway in gateways:

        def is_sum(gateway: GatewayProcess = gateway) -> bool:
            found = usage(gateway, "crowd")
            return bool(
                found
                and found["total"]["requests"] == found["last_hour"]["requests"] == 160
                and found["requests_per_minute"] == shown
            )

        until(is_sum, "the sum of both gateways")


def test_one_gateway_admits_the_whole_limit_while_the_other_is_idle(gateways: Pair) -> None:
    one, other = gateways
    admitted = 0

    def is_used_up() -> bool:
        nonlocal admitted
        response = post(one, "alone")
        admitted += response.status == 200
        return response.status == 429 and int(response["retry-after"]) > 1

    until(is_used_up)

    assert admitted == LIMIT
    until(lambda: post(other, "alone").status == 429)
    assert code_of(post(other, "alone")) == "rate_limit_exceeded"


def test_a_budget_holds_over_two_gateways(gateways: Pair) -> None:
    statuses = [post(gateway, "daily").status for _ in range(20) for gateway in gateways]

    # By 64 tokens each, 16 use up the budget, and one more may be at the other gateway.
    assert 16 <= statuses.count(200) <= 17
    used = 64 * statuses.count(200)
    for gateway in gateways:
        until(lambda: usage(gateway, "daily")["budgets"]["tokens_per_day"]["used"] == used)  # noqa: B023
        assert code_of(post(gateway, "daily")) == "insufficient_quota"


def test_no_request_waits_for_a_server_that_stops_is_full_or_dies(
    gateways: Pair, server: Store
) -> None:
    for _ in range(40):
        for gateway in gateways:
            post(gateway, "spent")
    for begin, end in (
        (lambda: server.send(signal.SIGSTOP), lambda: server.send(signal.SIGCONT)),
        (
            lambda: server.do("CONFIG", "SET", "maxmemory", "1"),
            lambda: server.do("CONFIG", "SET", "maxmemory", "0"),
        ),
        (server.kill, server.start),
    ):
        until_up(gateways)
        begin()

        # The server cannot respond any more: these responses do not need it.
        statuses = Counter(post(gateway, "admin").status for gateway in gateways for _ in range(5))

        assert statuses == {200: 10}
        until_up(gateways, is_up=False)
        if begin == server.kill:
            _in_an_outage_each_gateway_admits_its_part(gateways)
        end()
    until_up(gateways)

    for gateway in gateways:
        assert gateway.log.count("SHARED_LIMITS_OUTAGE=local applies") >= 3
        text = gateway.send_request(request("GET", "/prometheus/metrics", key=None)).body
        assert b"llama_gguf_shared_limits_up 1.0" in text
        assert b"llama_gguf_shared_limits_outages_total 3.0" in text
        # It came back empty, and a budget that was used up stays so.
        until(lambda: facts(gateway)["gateways"] == 2)  # noqa: B023
        assert code_of(post(gateway, "spent")) == "insufficient_quota"


def _in_an_outage_each_gateway_admits_its_part(gateways: Pair) -> None:
    statuses = [Counter(post(gateway, "after").status for _ in range(50)) for gateway in gateways]

    assert statuses == [{200: LIMIT // 2, 429: 50 - LIMIT // 2}] * 2


def test_closed_refuses_with_tls_a_password_an_acl_user_and_a_database(
    processes: Processes, tmp_path: Path
) -> None:
    files = issue().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["TLS_CERT_FILE"], files["TLS_KEY_FILE"])
    (tmp_path / "ca.pem").write_bytes(CA_PEM)
    (tmp_path / "store").mkdir()
    with store(tmp_path / "store") as server, closing(TlsFront(server.path, context)) as front:
        server.do("ACL", "SETUSER", "gate", *acl_rules())
        server.do("ACL", "SETUSER", "default", "resetpass", ">another")
        gateways = start(
            processes,
            f"rediss://gate:s3cret@127.0.0.1:{front.port}/5",
            SHARED_LIMITS_CA_FILE=tmp_path / "ca.pem",
            SHARED_LIMITS_OUTAGE="closed",
        )
        statuses = Counter(post(g, "crowd").status for _ in range(80) for g in gateways)
        assert LIMIT <= statuses[200] <= LIMIT + 6
        assert facts(gateways[0])["up"] is True

        server.kill()
        until_up(gateways, is_up=False)
        refused = post(gateways[0], "admin")

    assert (refused.status, code_of(refused)) == (503, "limits_unavailable")
    assert refused["retry-after"] == "5"
    assert "s3cret" not in gateways[0].log + gateways[1].log


def acl_rules() -> list[str]:
    """Those that the page shows, with a password."""
    page = Path("docs/fleet.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("ACL SETUSER gate"))
    words = line.split()[3:]
    assert ">PASSWORD" in words
    return [">s3cret" if word == ">PASSWORD" else word for word in words]
