from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import MAX_SPARED, Finding, Probe, watch
from llama_gguf.engines.status import ChildState

LOADING = b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}"
HEALTHY = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
UNREACHABLE = Finding(ChildState.UNREACHABLE)
READY = Finding(ChildState.READY)


def props(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class Engine:
    """Responds to each path with the test's bytes, and then closes, unless it ``stays``."""

    def __init__(self, health: bytes, props: bytes = NOT_FOUND, *, stays: bool = False) -> None:
        self.responses = {b"/health": health, b"/props": props, b"/v1/models": NOT_FOUND}
        self.stays = stays
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with closing(writer):
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request)
            writer.write(self.responses[request.split(b" ")[1]])
            if self.stays:
                await reader.read()  # until the other side closes

    @property
    def paths(self) -> list[bytes]:
        return [r.split(b" ")[1] for r in self.requests]


Scenario = Callable[[Probe], Awaitable[None]]


def run(
    engine: Engine,
    scenario: Scenario,
    key: str = "",
    path: Path | None = None,
    *,
    is_peer: bool = False,
) -> None:
    async def both() -> None:
        if path is None:
            server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            address = EngineAddress("127.0.0.1", port, api_key=key)
        else:
            server = await asyncio.start_unix_server(engine.serve, path)
            address = EngineAddress("", 0, str(path), key)
        async with server, asyncio.timeout(20):
            await scenario(Probe(address, is_peer=is_peer))

    asyncio.run(both())


def look(engine: Engine) -> Finding:
    """The result of one probe of *engine*."""
    found: list[Finding] = []

    async def scenario(probe: Probe) -> None:
        found.append(await probe.look())

    run(engine, scenario)
    return found[0]


@pytest.mark.parametrize("stays", [False, True])
def test_an_engine_that_responds_503_is_loading(stays: bool) -> None:
    engine = Engine(LOADING, stays=stays)

    assert look(engine) == Finding(ChildState.LOADING)
    assert engine.paths == [b"/health"]


@pytest.mark.parametrize("stays", [False, True])
def test_a_ready_engine_reports_its_slots_and_its_model(stays: bool) -> None:
    body = b'{"total_slots":3,"model_alias":"tiny","model_path":"/m/x.gguf"}'

    assert look(Engine(HEALTHY, props(body), stays=stays)) == Finding(ChildState.READY, 3, "tiny")


def test_a_ready_engine_reports_the_context_of_one_request() -> None:
    body = b'{"default_generation_settings":{"n_ctx":2048,"params":{}},"total_slots":4}'

    assert look(Engine(HEALTHY, props(body))) == Finding(ChildState.READY, 4, request_tokens=2048)


def test_without_an_alias_the_file_is_the_model() -> None:
    body = b'{"total_slots":1,"model_path":"/models/x.gguf"}'

    assert look(Engine(HEALTHY, props(body))) == Finding(ChildState.READY, 1, "x.gguf")


def test_a_response_without_a_length_ends_with_its_connection() -> None:
    health = b'HTTP/1.0 200 OK\r\n\r\n{"status":"ok"}'
    body = b'HTTP/1.0 200 OK\r\n\r\n{"total_slots":2}'

    assert look(Engine(health, body)) == Finding(ChildState.READY, 2)


@pytest.mark.parametrize(
    "response",
    [
        NOT_FOUND,
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        props(b"not JSON"),
        props(b"\xff\xfe"),
        props(b"[]"),
        props(b"null"),
        props(b"{}"),
        props(b'{"total_slots":"4"}'),
        props(b'{"total_slots":null,"model_alias":null,"model_path":null}'),
        props(b'{"default_generation_settings":null}'),
        props(b'{"default_generation_settings":{"n_ctx":"2048"}}'),
        props(b'{"default_generation_settings":[2048]}'),
    ],
)
def test_an_engine_without_properties_is_ready_nevertheless(response: bytes) -> None:
    assert look(Engine(HEALTHY, response)) == READY


@pytest.mark.parametrize("body", [b'{"model_path":5}', b'{"model_path":["a"]}'])
def test_properties_of_odd_types_do_no_harm(body: bytes) -> None:
    assert look(Engine(HEALTHY, props(body))).state is ChildState.READY


def test_an_impossible_number_of_slots_is_ignored() -> None:
    # If it were used, no request would ever be granted a slot.
    assert look(Engine(HEALTHY, props(b'{"total_slots":-1}'))).slots is None


@pytest.mark.parametrize("status", [b"404 Not Found", b"200 OK", b"401 X", b"500 X"])
def test_another_engine_that_responds_at_all_is_ready(status: bytes) -> None:
    response = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"

    assert look(Engine(response)).state is ChildState.READY


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"no end",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"x" * 100_000,
        b"\x15\x03\x01\x00\x02\x02\x0a\r\n\r\n",
        b"garbage\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_garbage_is_unreachable(garbage: bytes) -> None:
    assert look(Engine(garbage)) == UNREACHABLE


def test_a_port_without_a_listener_is_unreachable() -> None:
    async def scenario(probe: Probe) -> None:
        del probe
        server = await asyncio.start_server(Engine(HEALTHY).serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        assert await Probe(EngineAddress("127.0.0.1", port)).look() == UNREACHABLE

    run(Engine(HEALTHY), scenario)


def test_a_missing_socket_is_unreachable(tmp_path: Path) -> None:
    probe = Probe(EngineAddress("", 0, str(tmp_path / "no.sock")))

    assert asyncio.run(probe.look()) == UNREACHABLE


def test_an_engine_on_a_unix_socket_is_probed_there(tmp_path: Path) -> None:
    engine = Engine(HEALTHY, props(b'{"total_slots":2}'))

    async def scenario(probe: Probe) -> None:
        assert await probe.look() == Finding(ChildState.READY, 2)

    run(engine, scenario, path=tmp_path / "llama.sock")


def test_a_probe_sends_the_key_and_closes_the_connection() -> None:
    engine = Engine(HEALTHY, props(b"{}"))

    async def scenario(probe: Probe) -> None:
        await probe.look()

    run(engine, scenario, key="the-engine-s-own")

    for request in engine.requests:
        assert b"\r\nAuthorization: Bearer the-engine-s-own\r\n" in request
        assert b"\r\nConnection: close\r\n" in request


def test_properties_are_requested_once_in_each_life_of_the_engine() -> None:
    engine = Engine(HEALTHY, props(b'{"total_slots":2}'))

    async def scenario(probe: Probe) -> None:
        for _ in range(3):
            assert (await probe.look()).slots == 2
        assert engine.paths.count(b"/props") == 1

        engine.responses[b"/health"] = LOADING
        assert (await probe.look()).state is ChildState.LOADING
        engine.responses |= {b"/health": HEALTHY, b"/props": props(b'{"total_slots":8}')}
        assert (await probe.look()).slots == 8
        assert engine.paths.count(b"/props") == 2

    run(engine, scenario)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (props(b'{"data":[{"id":"a"}]}'), {"data": [{"id": "a"}]}),
        (props(b"[]"), {}),
        (props(b"nonsense"), {}),
        (b"garbage\r\n\r\n", {}),
        (b"", {}),
    ],
)
def test_an_engine_reports_its_models_if_it_has_a_list(
    response: bytes, found: dict[str, object]
) -> None:
    engine = Engine(HEALTHY, props(b'{"total_slots":2}'))
    engine.responses[b"/v1/models"] = response

    assert look(engine) == Finding(ChildState.READY, 2, model_list=found)


def test_a_probe_never_wakes_a_sleeping_engine() -> None:
    engine = Engine(HEALTHY, props(b"{}"))

    async def scenario(probe: Probe) -> None:
        for _ in range(3):
            await probe.look()

    run(engine, scenario)

    assert set(engine.paths) == {b"/health", b"/props", b"/v1/models"}


def test_every_probe_closes_its_connections() -> None:
    engine = Engine(HEALTHY, props(b"{}"), stays=True)

    async def scenario(probe: Probe) -> None:
        for _ in range(20):
            await probe.look()

    run(engine, scenario)  # an open connection would cause a warning, and so an error

    assert engine.connections == 22


@pytest.mark.parametrize(
    ("response", "text"),
    [(props(b"n 1\n"), b"n 1\n"), (NOT_FOUND, None), (b"garbage\r\n\r\n", None)],
)
def test_a_text_is_the_body_of_a_200_or_none(response: bytes, text: bytes | None) -> None:
    engine = Engine(HEALTHY)
    engine.responses[b"/metrics"] = response
    found: list[bytes | None] = []

    async def scenario(probe: Probe) -> None:
        found.append(await probe.text("/metrics"))

    run(engine, scenario, key="secret")

    assert found == [text]
    assert b"Authorization: Bearer secret\r\n" in engine.requests[0]


def test_an_unreachable_engine_has_no_text() -> None:
    assert asyncio.run(Probe(EngineAddress("", 0, "/nowhere.sock")).text("/metrics")) is None


def looks(
    engine: Engine,
    count: int,
    on_look: Callable[[Finding], None],
    has_responded: Callable[[], bool] = lambda: False,
) -> None:
    """Watch *engine* until *on_look* has received *count* findings."""
    remaining = count

    async def scenario(probe: Probe) -> None:
        enough = asyncio.Event()

        def report(finding: Finding) -> None:
            nonlocal remaining
            if remaining:
                on_look(finding)
                remaining -= 1
            if not remaining:
                enough.set()

        watching = asyncio.get_running_loop().create_task(
            watch(probe, report, ready_every=0.001, else_every=0.001, has_responded=has_responded)
        )
        await enough.wait()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    run(engine, scenario)


def test_a_watch_reports_every_probe_until_it_is_cancelled() -> None:
    engine = Engine(LOADING)
    states: list[ChildState] = []

    def on_look(finding: Finding) -> None:
        states.append(finding.state)
        if len(states) == 2:
            engine.responses[b"/health"] = HEALTHY

    looks(engine, 4, on_look)

    assert states[:4] == [ChildState.LOADING] * 2 + [ChildState.READY] * 2


class Heard:
    """``has_responded``: true for the first *times* calls."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        self.left -= 1
        return self.left >= 0


def looks_while_heard(engine: Engine, has_responded: Heard, count: int) -> list[int]:
    """The number of calls of *has_responded* before each of *count* probes."""
    calls: list[int] = []
    looks(engine, count, lambda _: calls.append(has_responded.calls), has_responded)
    return calls


def test_an_engine_that_responds_to_requests_is_not_probed() -> None:
    assert looks_while_heard(Engine(HEALTHY), Heard(3), 3) == [0, 4, 5]


def test_an_engine_that_keeps_responding_is_probed_now_and_then() -> None:
    asked = looks_while_heard(Engine(HEALTHY), Heard(10**6), 3)
    assert asked == [0, MAX_SPARED, 2 * MAX_SPARED]


@pytest.mark.parametrize(
    "engine", [Engine(LOADING), Engine(HEALTHY, props(b'{"is_sleeping":true,"total_slots":1}'))]
)
def test_an_engine_that_is_not_ready_is_probed_regardless_of_responses(
    engine: Engine,
) -> None:
    assert looks_while_heard(engine, Heard(10**6), 3) == [0, 0, 0]


# Peers --------------------------------------------------------------------------------------------

OF_GATEWAY = (
    b'{"status":"%b","engine":{"state":"ready"},"model":{"name":"m.gguf","context":4096},'
    b'"slots":{"used":1,"total":6},"queue":{"length":0,"size":256}}'
)


def look_at_peer(engine: Engine) -> list[Finding]:
    found: list[Finding] = []

    async def both() -> None:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        address = EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        async with server, asyncio.timeout(20):
            probe = Probe(address, is_peer=True)
            found.extend([await probe.look() for _ in range(2)])

    asyncio.run(both())
    return found


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (b"ok", ChildState.READY),
        (b"asleep", ChildState.READY),
        (b"loading", ChildState.LOADING),
        (b"draining", ChildState.UNREACHABLE),
        (b"failed", ChildState.UNREACHABLE),
    ],
)
def test_another_gateway_is_recognised_by_its_health(status: bytes, state: ChildState) -> None:
    engine = Engine(props(OF_GATEWAY % status))
    first, _ = look_at_peer(engine)

    assert first == Finding(state, 6, "m.gguf", request_tokens=4096, is_gateway=True)
    assert b"/props" not in engine.paths


def test_the_models_of_a_peer_are_read_again_when_its_model_is_another() -> None:
    engine = Engine(HEALTHY, props(b'{"total_slots":4,"model_alias":"m"}'))
    engine.responses[b"/v1/models"] = props(b'{"data":[{"id":"m"}]}')

    async def both() -> list[Finding]:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        address = EngineAddress("127.0.0.1", server.sockets[0].getsockname()[1])
        async with server, asyncio.timeout(20):
            probe = Probe(address, is_peer=True)
            first = await probe.look()
            engine.responses[b"/props"] = props(b'{"total_slots":4,"model_alias":"n"}')
            engine.responses[b"/v1/models"] = props(b'{"data":[{"id":"n"}]}')
            return [first, await probe.look()]

    assert [each.model_list for each in asyncio.run(both())] == [
        {"data": [{"id": "m"}]},
        {"data": [{"id": "n"}]},
    ]


def test_the_model_of_a_peer_is_read_each_time_since_it_may_have_been_replaced() -> None:
    engine = Engine(HEALTHY, props(b'{"total_slots":4,"model_alias":"m"}'))
    first, second = look_at_peer(engine)

    assert first == second == Finding(ChildState.READY, 4, "m")
    assert engine.paths.count(b"/props") == 2


def test_the_list_of_models_is_read_again_when_the_model_is_another() -> None:
    engine = Engine(HEALTHY, props(b'{"model_alias":"a"}'))
    engine.responses[b"/v1/models"] = props(b'{"data":[{"id":"a"}]}')
    found: list[Finding] = []

    async def scenario(probe: Probe) -> None:
        found.append(await probe.look())
        engine.responses[b"/props"] = props(b'{"model_alias":"b"}')
        engine.responses[b"/v1/models"] = props(b'{"data":[{"id":"b"}]}')
        found.append(await probe.look())
        found.append(await probe.look())

    run(engine, scenario, is_peer=True)

    assert [each.model_list["data"] for each in found] == [[{"id": n}] for n in "abb"]
    assert engine.paths.count(b"/v1/models") == 2
