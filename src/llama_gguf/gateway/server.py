"""The life of one gateway: listen, tick, reload, drain. Its states are in ``lifecycle.py``.

The engine's status comes over the supervisor's channel, or, for a gateway on its own, from a probe.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.access import budget_ledger
from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.config.schema import TlsSettings, UpstreamSettings
from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.probe import Probe
from llama_gguf.errors import ReloadFailed, UserError
from llama_gguf.events import EventLog
from llama_gguf.files.instance_file import path_of
from llama_gguf.gateway.client_connection import ClientConnection
from llama_gguf.gateway.control import Control
from llama_gguf.gateway.dashboard import take_reading
from llama_gguf.gateway.lifecycle import Event, Lifecycle
from llama_gguf.gateway.peers import Peers
from llama_gguf.gateway.services import Services
from llama_gguf.net.connector import Dial, Dialer, TlsDialer
from llama_gguf.net.listener import Listener
from llama_gguf.net.poller import poller
from llama_gguf.net.sockets import places_within_limits
from llama_gguf.net.terminal import Terminal
from llama_gguf.net.threads import run_detached
from llama_gguf.net.transport import LoopTransport, SocketTransport
from llama_gguf.telemetry.history_store import FOLDER as HISTORY
from llama_gguf.telemetry.history_store import HistoryStore
from llama_gguf.telemetry.usage_store import USAGE, Kind, T, UsageStore
from llama_gguf.wall_clock import wall_now

if TYPE_CHECKING:
    import ssl

    from llama_gguf.net.tls import ServerContext

_log: Final = EventLog(__name__)

TICK_SECONDS: Final = 0.5
MOST_SECONDS_BETWEEN_TICKS: Final = 4 * TICK_SECONDS
LAST_LINES_SECONDS: Final = 2.0
"""To write the end of the access log and the usage; a disk that hangs delays the exit no longer."""
BUDGETS: Final = Kind(
    budget_ledger.FOLDER, 1.0, lambda _: BudgetLedger(has_changes=True), BudgetLedger.load
)


class Gateway:
    """One gateway from start to end.

    Args:
        settings: with directories filled in.
        listener: a listening socket; the gateway closes it.
        channel: on which the supervisor sends the engine's status; None = probe the engine.

    Raises:
        UserError: the TLS files cannot be used.
    """

    def __init__(
        self, settings: Settings, listener: socket.socket, channel: socket.socket | None = None
    ) -> None:
        self._settings = settings
        self._tls = _server_context(settings.tls)
        self._certificate_lock = asyncio.Lock()
        self._listener = listener
        self.life = Lifecycle()
        self._stop_requested = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._ticked_at = 0.0
        self._was_late = False
        self._most_open = 0
        """Connections of clients, handshakes included."""
        self._has_failed = False
        self._terminal = Terminal()
        loop = asyncio.get_running_loop()
        self._poller = poller(loop)
        self._peers_tls = _peers_context(settings.upstream)
        self.services = Services(
            settings,
            loop,
            self._dial_to,
            probe_of=self._probe_of,
            is_supervised=channel is not None,
        )
        self._control = None if channel is None else Control(self.services, channel)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain.

        Returns:
            The exit status: 1 when a task of the gateway's own has failed, else 0.
        """
        services = self.services
        loop = services.loop
        services.access_log.start()
        if services.traces is not None:
            services.traces.start()
        usage_store, budget_store = self._store(USAGE), self._store(BUDGETS)
        budgets = services.authenticator.budgets
        services.usage.rebase(usage_store.load(wall_now()), wall_now())
        budgets.rebase(budget_store.load(wall_now()), wall_now())
        history_store = HistoryStore(self._path_of(HISTORY))
        history_store.load(services.history)
        self._load_keys_at_start()
        self._apply_file_limit()
        for number, handler in self._signal_handlers().items():
            loop.add_signal_handler(number, handler)
        await self._share_limits()
        server = self._listen()
        self.life.on(Event.LISTENS)
        url = f"{self._settings.tls.scheme}://{_address(self._listener)}"
        _log.info("gateway_listens", "The gateway listens on {url}", url=url)
        self._follow_engines()
        self._start(usage_store.keep(services.usage), "keep the usage")
        self._start(budget_store.keep(budgets), "keep what is used of budgets")
        self._start(history_store.keep(services.history), "keep the history")
        if self._settings.auth.auth_enabled:
            services.key_store.watch()
        self._ticked_at = services.clock.now()
        self._ticking = loop.call_later(TICK_SECONDS, self._tick)
        try:
            await self._stop_requested.wait()
            self.life.on(Event.STOP)
            await self._drain(server)
            self.life.on(Event.DRAINED)
        finally:
            services.key_store.watch_no_more()
            self._ticking.cancel()
            for task in (*self._tasks, *self._handshakes):
                task.cancel()
            services.recorder.settle()
            await self._share_no_more()
            until = services.clock.now() + LAST_LINES_SECONDS
            last_write = budget_store.begin_last(budgets)
            usage_store.write_last(services.usage, within_seconds=LAST_LINES_SECONDS)
            budget_store.end_last(last_write, max(until - services.clock.now(), 0.0))
            history_store.write_last(services.history, max(until - services.clock.now(), 0.0))
            services.access_log.stop(within_seconds=LAST_LINES_SECONDS)
            if services.traces is not None:
                services.traces.stop(max(until - services.clock.now(), 0.0))
            self._poller.close()
        return int(self._has_failed)

    def _store(self, kind: Kind[T]) -> UsageStore[T]:
        # Shared budgets have what all gateways have used, in memory and in the file.
        has_all = kind is BUDGETS and self.services.shared is not None
        return UsageStore(kind, self._path_of(kind.name), has_all=has_all)

    def _path_of(self, folder: str) -> str:
        data_dir, instance = self._settings.model.data_dir, self._settings.logs.instance_id
        return path_of(data_dir, folder, instance)

    async def _share_limits(self) -> None:
        """Share them with other gateways; before the first request, if the server responds."""
        shared = self.services.shared
        if shared is not None:
            self._start(shared.follow(), "share the limits")
            self._start(shared.follow_keys(self.services.authenticator), "share the limits of keys")
            await shared.wait_for_first()

    async def _share_no_more(self) -> None:
        if self.services.shared is not None:
            await self.services.shared.leave()

    # Connections --------------------------------------------------------------------------------

    def _probe_of(self, engine: EngineAddress) -> Probe:
        is_peer = bool(self._settings.upstream.peers)
        return Probe(engine, tls=self._peers_tls, is_peer=is_peer)

    def _dial_to(self, engine: EngineAddress) -> Dial:
        if engine.has_tls:
            return TlsDialer(
                asyncio.get_running_loop(),
                engine.host,
                engine.port,
                context=self._peers_tls,
                server_name=engine.server_name,
            ).dial
        return Dialer(self._poller, engine.host, engine.port, engine.socket).dial

    def _listen(self) -> Listener:
        let_in = self._let_in_plain if self._tls is None else self._let_in_tls
        return Listener(self._poller, self._listener, let_in, self._has_room)

    def _has_room(self) -> bool:
        return len(self.services.connections) + len(self._handshakes) < self._most_open

    def _let_in_plain(self, sock: socket.SocketType, peer: Any) -> None:
        SocketTransport(self._poller, sock, peer).attach(ClientConnection(self.services))

    def _let_in_tls(self, sock: socket.SocketType, peer: Any) -> None:
        del peer  # which the loop's transport finds out
        owned = socket.socket(fileno=sock.detach())
        task = self.services.loop.create_task(self._shake_hands(owned), name="TLS handshake")
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _tls_protocol(self) -> Any:  # an asyncio.Protocol by its methods
        return LoopTransport(ClientConnection(self.services))

    async def _shake_hands(self, sock: socket.socket) -> None:
        """Accept a client by TLS. A failed handshake ends its connection, without a log line."""
        seconds = self._settings.limits.client_header_timeout
        # The shutdown timeout limits how long a slow reader may take for the rest of its response:
        # as long as without TLS (ClientConnection._close), since the rest is lost then.
        with suppress(OSError):  # ssl.SSLError and TimeoutError are two
            await self.services.loop.connect_accepted_socket(
                self._tls_protocol,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )

    def _signal_handlers(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR1: self.services.access_log.reopen,
        }

    def _on_hangup(self) -> None:
        """Stop if the terminal was closed, else reload. Under `serve` there is no terminal."""
        if not self._terminal.is_gone():
            self._reload()
        elif not self._stop_requested.is_set():  # the shell and the kernel may send a signal each
            _log.info("terminal_closed", "The terminal was closed")
            self.stop()

    def stop(self) -> None:
        """Drain and exit; a second call cuts the requests that are still open."""
        if self._stop_requested.is_set():
            self.services.connections.idle.set()
        self._stop_requested.set()

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self.services.loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """A task that fails would be missing unnoticed: the gateway ends, and is restarted."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error(
                "bug",
                "The gateway stops because of a bug: its task '{task}' failed. Please report it",
                exc_info=error,
                task=task.get_name(),
            )
            self._has_failed = True
            self.stop()

    def _apply_file_limit(self) -> None:
        wanted = self._settings.limits.max_connections
        places = places_within_limits(wanted)
        allowed = self.services.connections.limit = places.served
        self._most_open = places.open
        if allowed < wanted:
            _log.warning(
                "file_limit_low",
                "The limit on open files allows {connections} connections instead of "
                "MAX_CONNECTIONS={max_connections}; raise it with `ulimit -n {files}`",
                connections=allowed,
                max_connections=wanted,
                files=3 * wanted + 100,
            )

    # Keys ---------------------------------------------------------------------------------------

    def _load_keys_at_start(self) -> None:
        """Load the keys. Without keys every request is refused, which is logged as a warning."""
        if not self._settings.auth.auth_enabled:
            _log.warning(
                "auth_disabled",
                "AUTH_ENABLED is false: any client that can reach this port can use the model",
            )
            return
        with suppress(ReloadFailed):  # which is logged already
            self.services.key_store.load()
        if not self.services.authenticator.ring:
            _log.warning(
                "keys_missing",
                "No API keys: every request will be rejected. Create one with "
                "`llama-gguf keys generate --file {file}`",
                file=self._settings.auth.auth_keys_file,
            )

    def _reload(self) -> None:
        self.services.access_log.reopen()
        self._start(self._reload_keys(), "reload keys")
        if self._tls is not None:
            self._start(self._reload_certificate(self._tls), "reload the certificate")

    async def _reload_keys(self) -> None:
        with suppress(ReloadFailed):  # which is logged already
            await self.services.key_store.reload()

    # TLS ----------------------------------------------------------------------------------------

    async def _reload_certificate(self, tls: ServerContext) -> None:
        """In a thread, since a disk may hang; one at a time, so that the last one read is used."""
        async with self._certificate_lock:
            try:
                await run_detached(tls.reload)
            except UserError as error:
                _log.error(
                    "certificate_not_loaded",
                    "The TLS certificate was not reloaded: {reason}",
                    reason=str(error),
                )

    # The engine ---------------------------------------------------------------------------------

    def _follow_engines(self) -> None:
        self._start(self._follow_engine(), "follow the engine")
        self._start(self._follow_peers(), "follow the peers")
        self._start(self.services.engine_reader.run(), "read the engine's metrics")

    async def _follow_engine(self) -> None:
        if self._control is not None:
            await self._control.follow(self._on_supervisor_gone)

    async def _follow_peers(self) -> None:
        """Probe the engines without a supervisor."""
        services = self.services
        peers = Peers(services.fleet, services.peers, probe_of=self._probe_of, start=self._start)
        if self._control is None:
            for replica in services.fleet.replicas.values():
                peers.watch(replica)
        await peers.follow()

    def _on_supervisor_gone(self) -> None:
        _log.warning("supervisor_gone", "The supervisor is gone: draining")
        self.stop()

    # Time ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Twice a second: timeouts, then metrics, usage and log, then the supervisor."""
        services = self.services
        self._ticking = services.loop.call_later(TICK_SECONDS, self._tick)
        services.tick(is_late=self._is_late())
        services.recorder.settle()
        take_reading(services, services.clock.now())
        services.access_log.flush()
        if self._control is not None:
            self._control.tick()

    def _is_late(self) -> bool:
        """Whether the last tick is so long ago that the gateway did not run meanwhile.

        Input that arrived since then is not read yet, so no timeout is applied: that waits for the
        next tick, but not for the one after it, which may be late again.
        """
        now = self.services.clock.now()
        is_late = now - self._ticked_at > MOST_SECONDS_BETWEEN_TICKS and not self._was_late
        self._ticked_at, self._was_late = now, is_late
        return is_late

    # The end ------------------------------------------------------------------------------------

    async def _drain(self, server: Listener) -> None:
        """Refuse new requests, let open ones finish within DRAIN_TIMEOUT, then cut them."""
        services = self.services
        _log.info(
            "draining",
            "Draining: {connections} connections open",
            connections=len(services.connections),
        )
        services.connections.drain()
        try:
            async with asyncio.timeout(self._settings.process.drain_timeout):
                await services.connections.idle.wait()
        except TimeoutError:
            _log.warning(
                "drain_cut",
                "Requests cut after DRAIN_TIMEOUT: {requests}",
                requests=services.connections.busy(),
            )
        for connection in services.connections:
            connection.refuse_waiting(services.connections.draining())
        server.close()
        for connection in services.connections:
            connection.drain()  # an idle one is closed, with a TLS shutdown, and not cut
            connection.abort()
        # Turns of the loop, so that every connection_lost runs and its exchange is recorded.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self._control is not None:
            self._control.send_owners()  # of the last requests


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _server_context(settings: TlsSettings) -> ServerContext | None:
    """With which clients are accepted; None without TLS.

    Raises:
        UserError: the TLS files cannot be used.
    """
    if not settings.tls_cert_file:
        return None
    from llama_gguf.net.tls import ServerContext  # noqa: PLC0415  # most gateways have no TLS

    return ServerContext(settings.tls_cert_file, settings.tls_key_file)


def _peers_context(settings: UpstreamSettings) -> ssl.SSLContext | None:
    """With which https peers are connected to; None without one.

    Raises:
        UserError: PEERS_CA_FILE cannot be used.
    """
    if not settings.has_https_peers:
        return None
    from llama_gguf.net.tls import client_context  # noqa: PLC0415

    return client_context(settings.peers_ca_file)


def adopt(fd: int) -> socket.socket:
    """The socket inherited as *fd*: non-blocking, and not inherited by child processes."""
    inherited = socket.socket(fileno=fd)
    inherited.setblocking(False)
    os.set_inheritable(fd, False)
    return inherited
