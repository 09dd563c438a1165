"""The start of `serve`: what must not wait for the imports of all else.

Platforms poll the health port from the first second, so the health server responds before
``app.py`` is imported, which takes longer than everything here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.net.binding import listen
from llama_gguf.supervisor import checks
from llama_gguf.supervisor.boot_log import BootLog
from llama_gguf.supervisor.health_server import HealthServer
from llama_gguf.values import replace

if TYPE_CHECKING:
    from llama_gguf.supervisor.app import App, Display, LoadAgain
    from llama_gguf.supervisor.prompts import Owners


def serve(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    sources: Mapping[str, str],
    display: Display,
    load_again: LoadAgain | None = None,
    owners: Owners | None = None,
) -> int:
    """Serve until a signal, or until a process is given up. Returns the exit status.

    Args:
        settings: with folders filled in.
        environ: our own environment.
        sources: the source of each setting, for the log.
        display: what people see.
        load_again: reads the settings again for a rolling restart; without, they stay.
        owners: whose prompts may be kept; without, none are.

    Raises:
        UserError: a setting is invalid, an address is taken, or model or engine is missing.
    """
    # Mistakes are reported before anything starts.
    checks.system()
    checks.check(settings)
    _check_certificates(settings)
    if not settings.upstream.backend_api_key:
        key = f"gateway-{os.urandom(32).hex()}"
        settings = replace(settings, upstream=replace(settings.upstream, backend_api_key=key))
    with (
        early_stops() as is_stop_requested,
        BootLog(settings.logs) as boot_log,
        contextlib.ExitStack() as open_until_end,
    ):
        at = settings.listen
        listener = open_until_end.enter_context(listen(at.host, at.port))
        app: App | None = None

        def health_status() -> int:
            if at.health_mode == "live":
                return 200
            return 204 if app is None else app.health_status

        health = HealthServer(listen(at.host, at.port_health, "PORT_HEALTH"), health_status)
        health.start()
        open_until_end.callback(health.stop)
        open_until_end.callback(listener.close)  # before that: no client connects any more
        from llama_gguf.supervisor.app import App  # noqa: PLC0415  # while it responds

        app = App(
            settings,
            environ=environ,
            sources=sources,
            display=display,
            boot_log=boot_log,
            is_stop_requested=is_stop_requested,
            load_again=load_again,
            owners=owners,
        )
        return app.run(listener)


def _check_certificates(settings: Settings) -> None:
    """Check the files of TLS, and what shared limits need.

    Raises:
        UserError: they cannot be used, or packages are missing.
    """
    upstream, ours = settings.upstream, settings.tls
    if settings.shared.shared_limits:
        from llama_gguf.net import store_checks  # noqa: PLC0415

        store_checks.check(settings.shared)
    if not (upstream.peers_ca_file or ours.tls_cert_file):
        return
    from llama_gguf.net import tls  # noqa: PLC0415  # most servers have neither

    if upstream.peers_ca_file:
        tls.client_context(upstream.peers_ca_file)
    if ours.tls_cert_file:
        tls.load(ours.tls_cert_file, ours.tls_key_file)


@contextlib.contextmanager
def early_stops() -> Iterator[Callable[[], bool]]:
    """Exit at SIGTERM and SIGINT, with cleanup, until the supervisor handles them.

    Yields whether one has arrived: Python discards its exception if it is raised in a callback
    during an import.
    """
    is_requested = False

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal is_requested
        is_requested = True
        sys.exit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: is_requested
    except UserError:
        for number, handler in before.items():
            signal.signal(number, handler)
        raise
