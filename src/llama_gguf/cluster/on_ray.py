"""Engines as actors of Ray. The only module that imports Ray.

Ray's part is to find a machine with free GPUs for each engine, to start a process there, and to do
so again elsewhere when the machine dies. Requests never pass through Ray. All actors are detached
and have names, so that a controller that is started again finds the engines of the earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from llama_gguf import __version__
from llama_gguf.cluster.controller import Controller
from llama_gguf.cluster.engine_host import EngineHost
from llama_gguf.cluster.gateways import GatewayServer
from llama_gguf.cluster.order import Order, Report
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.cluster_source import HEAD_FILE
from llama_gguf.engines.roster import REPEAT_SECONDS
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog

_log: Final = EventLog(__name__)

NAMESPACE: Final = "llama-gguf"
CONTROLLER: Final = "controller"
_ENGINE: Final = "engine-"
_HEAD: Final = "node:__internal_head__"
"""The resource that only the head has: the controller dies with the cluster, and not before."""

STEP_SECONDS: Final = 0.5
SILENT_SECONDS: Final = 3.0
TERM_SECONDS: Final = 15.0
"""For llama-server to end, before Ray kills its process."""
LISTEN_TRIES: Final = 20
RESPONSE_SECONDS: Final = 20.0
CONNECT_SECONDS: Final = 5.0


# On the machines of the cluster -----------------------------------------------------------------


class EngineActor:
    """One engine, in a process that Ray starts on a machine with room for it."""

    def __init__(self, version: str, order: Mapping[str, Any], number: int) -> None:
        _log_to_ray()
        self._host = EngineHost(
            version,
            order,
            number,
            machine=ray.util.get_node_ip_address(),
            gpu_ids=[str(gpu) for gpu in ray.get_gpu_ids()],
            environ=os.environ,  # noqa: TID251  # Ray starts this process, and no command
        )
        self._host.start()

    def report(self) -> dict[str, Any]:
        return self._host.report.to_fields()

    def stop(self, within_seconds: float) -> bool:
        return self._host.stop(within_seconds)


class ControllerActor:
    """The controller, in a process on the head."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        _log_to_ray()
        self._order = Order.from_fields(order)
        self._loop = asyncio.new_event_loop()
        self._placement = RayPlacement(self._order, self._loop)
        self._server = GatewayServer(lambda: self._controller, self._order.key)
        self._controller = Controller(
            self._order,
            self._placement,
            on_roster=self._server.send_roster,
            adopted=self._placement.numbers,
            now=time.monotonic(),
        )
        self._error = ""
        threading.Thread(target=self._run, name="controller", daemon=True).start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            _log.error("bug", "The controller ends because of a bug", exc_info=error)
            os._exit(1)  # Ray starts it again; without its loop, it would be of no use

    async def _serve(self) -> None:
        self._placement.follow(self._controller)
        await self._listen()
        repeated_at = time.monotonic()
        while True:
            now = time.monotonic()
            self._controller.step(now)
            if now - repeated_at >= REPEAT_SECONDS:
                repeated_at = now
                self._server.send_roster()
            await asyncio.sleep(STEP_SECONDS)

    async def _listen(self) -> None:
        """Listen for gateways, also if the port is still that of a controller that has ended."""
        for _ in range(LISTEN_TRIES):
            try:
                await self._server.start(ray.util.get_node_ip_address(), self._order.port)
            except OSError as error:
                self._error = (
                    f"port {self._order.port} of the head cannot be used "
                    f"({error.strerror}); choose another with --controller-port"
                )
                await asyncio.sleep(STEP_SECONDS)
            else:
                self._error = ""
                return

    def order(self) -> dict[str, Any]:
        """What it was given, without the secret."""
        return {**self._order.to_fields(), "key": ""}

    def has_key(self, key: str) -> bool:
        return secrets.compare_digest(key.encode(), self._order.key.encode())

    def facts(self) -> dict[str, Any]:
        async def read() -> dict[str, Any]:
            host = ray.util.get_node_ip_address()
            return {
                "gateway_address": f"ray://{EngineAddress(host, self._order.port).key}",
                "error": self._error,
                **self._controller.facts(),
                "gateways": self._server.facts(),
            }

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(RESPONSE_SECONDS)

    def take_down(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._controller.take_down(time.monotonic()))


class RayPlacement:
    """A ``Placement`` by Ray.

    Args:
        order: what each engine needs.
        loop: of the controller.
    """

    def __init__(self, order: Order, loop: asyncio.AbstractEventLoop) -> None:
        self._order = order
        self._loop = loop
        self._controller: Controller
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._actors: dict[int, Any] = {}
        for name in _names():
            if name.startswith(_ENGINE):
                number = int(name.split("-")[1])
                self._actors[number] = ray.get_actor(name, namespace=NAMESPACE)

    @property
    def numbers(self) -> list[int]:
        """Of the engines that run already."""
        return sorted(self._actors)

    def follow(self, controller: Controller) -> None:
        """Report to *controller* from now on."""
        self._controller = controller
        for number in self._actors:
            self._start_following(number)

    def start(self, number: int) -> None:
        order = self._order
        options = {
            # Unique, since Ray frees the name of an engine that is stopped only later.
            "name": f"{_ENGINE}{number}-{secrets.token_hex(4)}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "num_gpus": order.gpus,
            "num_cpus": order.cpus,
            "scheduling_strategy": "SPREAD",
            "max_restarts": -1,
            "max_concurrency": 2,  # reports continue during a stop
        }
        remote = ray.remote(EngineActor).options(**options)
        self._actors[number] = remote.remote(order.version, order.to_fields(), number)
        self._start_following(number)

    def _start_following(self, number: int) -> None:
        self._tasks[number] = self._loop.create_task(
            self._follow(number, self._actors[number]), name=f"follow engine {number}"
        )

    def stop(self, number: int) -> None:
        self._tasks.pop(number).cancel()
        ending = self._loop.create_task(_end(self._actors.pop(number)), name=f"stop {number}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _follow(self, number: int, actor: Any) -> None:
        controller = self._controller
        while True:
            response = asyncio.wrap_future(actor.report.remote().future())
            while not (await asyncio.wait([response], timeout=SILENT_SECONDS))[0]:
                controller.on_silent(number)
            try:
                report = Report.from_fields(response.result())
            except ActorUnavailableError:
                controller.on_lost(number)
            except RayError as error:
                controller.on_failed(number, _explained(error), time.monotonic())
                return
            else:
                controller.on_report(number, report, time.monotonic())
            await asyncio.sleep(STEP_SECONDS)


async def _end(actor: Any) -> None:
    """Let llama-server end, then kill its process."""
    with contextlib.suppress(RayError, TimeoutError):
        async with asyncio.timeout(TERM_SECONDS + 1):
            await asyncio.wrap_future(actor.stop.remote(TERM_SECONDS).future())
    ray.kill(actor)


def _explained(error: RayError) -> str:
    text = str(error)
    if "No module named 'llama_gguf" in text:
        return (
            "llama-gguf is not installed there, in the Python that runs Ray: "
            f"pip install 'llama-gguf-inference[ray,engine]=={__version__}'"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"Ray could not start it: {lines[-1] if lines else type(error).__name__}"


def _log_to_ray() -> None:
    """Log to standard error, which Ray writes to the logs of its session."""
    text = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=text, force=True)
    # Its lines of each request are in its own log.
    logging.getLogger("llama-server").setLevel(logging.WARNING)  # noqa: TID251


def _names() -> list[str]:
    """Of all actors here that live."""
    every = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in every if each["namespace"] == NAMESPACE]


# For the commands -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster."""

    address: str
    cpus: float
    gpus: float


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A connection to the cluster; meanwhile, standard output goes to standard error.

    Ray prints what happens to machines there, also with ``log_to_driver=False``, and also between
    the lines of JSON.

    Args:
        address: HOST:PORT of its head; empty = the cluster of this machine.

    Raises:
        UserError: it cannot be reached.
    """
    _check_reachable(address)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise UserError(_unreachable(address, error)) from None
        try:
            yield Cluster()
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that something listens at *address*: Ray would wait for that without an end.

    Raises:
        UserError: nothing does.
    """
    is_own = address in ("", "auto")
    if is_own and not (address := _own_head()):
        return  # which Ray finds out at once
    host, _, port = address.rpartition(":")
    hosts = {host}
    if host in ("localhost", "127.0.0.1"):
        hosts.add(ray.util.get_node_ip_address())  # which Ray uses instead
    for each in hosts:
        try:
            socket.create_connection((each.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            where = f"{each}:{port}" if host else address
            raise UserError(_unreachable(where, error, is_own=is_own)) from None


def _own_head() -> str:
    """The head of this machine's cluster, which may have ended without removing the file."""
    try:
        with open(HEAD_FILE, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _unreachable(address: str, error: Exception, *, is_own: bool = False) -> str:
    if "Version mismatch" in str(error):
        return (
            "Python or Ray has another version here than on the cluster; Ray needs the same on "
            f"each machine.\n{str(error).strip()}"
        )
    if address.startswith("ray://"):
        return (
            f"{address} is an address for Ray's clients. Run this command on a machine of the "
            "cluster, or set --address=HEAD:6379."
        )
    where = f"No Ray cluster responds at {address}" if address else "This machine runs no Ray"
    before = "  on each machine          ray stop\n" if is_own else ""
    return (
        f"{where}. Start it:\n{before}"
        "  on the first machine     ray start --head\n"
        "  on each further machine  ray start --address=FIRST_MACHINE:6379\n"
        "Then run this command on one of them."
    )


class Cluster:
    """What the commands do with a cluster they are connected to."""

    @property
    def machines(self) -> list[Machine]:
        return [
            Machine(
                node["NodeManagerAddress"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def order(self) -> Order | None:
        """What is up; None if nothing is."""
        found = self._call("order")
        return None if found is None else Order.from_fields(found)

    def has_key(self, key: str) -> bool:
        """Whether *key* is that of what is up."""
        return bool(self._call("has_key", key))

    def facts(self) -> dict[str, Any] | None:
        """The state of everything; None if nothing is up."""
        found: dict[str, Any] | None = self._call("facts")
        return found

    def start(self, order: Order) -> None:
        """Start a controller with *order*; it takes over the engines that there are."""
        self.end_controller()
        options = {
            "name": CONTROLLER,
            "lifetime": "detached",
            "num_cpus": 0,
            "resources": {_HEAD: 0.001},
            "max_restarts": -1,
        }
        ray.remote(ControllerActor).options(**options).remote(order.to_fields())

    def take_down(self) -> None:
        """Stop all engines when they have no requests any more."""
        self._call("take_down")

    def end_controller(self) -> None:
        if (controller := self._controller()) is not None:
            ray.kill(controller)
            until = time.monotonic() + RESPONSE_SECONDS
            while time.monotonic() < until and CONTROLLER in _names():
                time.sleep(0.1)

    def wait_for_engines(self, seconds: float) -> None:
        """Wait until the processes of all engines have ended, or for *seconds*."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(name.startswith(_ENGINE) for name in _names()):
            time.sleep(0.1)

    def kill_engines(self) -> None:
        """Kill what is left without a controller."""
        for name in _names():
            if name.startswith(_ENGINE):
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    ray.kill(ray.get_actor(name, namespace=NAMESPACE))

    def _controller(self) -> Any:
        try:
            return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
        except ValueError:
            return None

    def _call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the controller; None if there is none.

        Raises:
            UserError: it does not respond.
        """
        controller = self._controller()
        if controller is None:
            return None
        try:
            reference = getattr(controller, method).remote(*arguments)
            return ray.get(reference, timeout=RESPONSE_SECONDS)
        except GetTimeoutError:
            raise UserError(
                "The controller does not respond: is the head of the cluster busy, or starting?"
            ) from None
        except RayActorError as error:
            raise UserError(f"The controller has ended. {_explained(error)}") from None
