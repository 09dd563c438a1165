"""One engine on its machine: fetches the model, and runs llama-server as `serve` does.

It runs on a separate thread of the process that Ray has started for it. llama-server dies with
that process. Nothing here knows of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import random
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from llama_gguf import __version__
from llama_gguf.cluster.order import Identity, Order, Report
from llama_gguf.config.load import Loaded, load
from llama_gguf.config.platform import resolve
from llama_gguf.engines import locate
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.devices import Device
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.files.sizes import size_text
from llama_gguf.models.model_file import part_paths
from llama_gguf.models.progress import Meter
from llama_gguf.net.threads import run_detached
from llama_gguf.supervisor import plan
from llama_gguf.supervisor.checks import MAX_PORT
from llama_gguf.supervisor.engine_log import open_engine_log
from llama_gguf.supervisor.launch import Launch, check_address
from llama_gguf.supervisor.local_fleet import LocalFleet
from llama_gguf.supervisor.preparation import Preparation
from llama_gguf.values import replace

_log: Final = EventLog(__name__)

PORT_STRIDE: Final = 64
"""From a port that is taken to the next one to try: more than there are engines."""
PORT_TRIES: Final = 16
_SAMPLE_BYTES: Final = 1 << 20
_VULKAN: Final = "Vulkan"


class EngineHost:
    """Runs one engine.

    Args:
        version: of llama_gguf that has ordered it.
        order: as ``Order.to_fields`` has it.
        number: of the engine.
        machine: the address of this machine, on which it listens.
        gpu_ids: the GPUs that are reserved for it, by number; empty = none.
        environ: of this process.
    """

    def __init__(
        self,
        version: str,
        order: Mapping[str, Any],
        number: int,
        *,
        machine: str,
        gpu_ids: Sequence[str],
        environ: Mapping[str, str],
    ) -> None:
        self._version = version
        self._order = order
        self._number = number
        self._gpu_ids = gpu_ids
        # What is Ray's may contain the credentials of the cluster.
        self._environ = {name: v for name, v in environ.items() if not name.startswith("RAY_")}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested = asyncio.Event()
        self._ended = threading.Event()
        self._opened: LogWriter | None = None
        self.report = Report(machine, ChildState.STARTING)
        """Replaced at each change; any thread may read it."""

    # Any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def stop(self, within_seconds: float) -> bool:
        """Stop llama-server; False if it has not ended within this time."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._stop_requested.set)
        return self._ended.wait(within_seconds)

    # Its thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                runner.run(self._serve())
        except UserError as error:
            self._set(state=ChildState.FAILED, detail=str(error))
        except Exception as error:  # else it would seem to start forever
            _log.error("bug", "The engine has ended because of a bug", exc_info=error)
            self._set(state=ChildState.FAILED, detail=f"bug: {type(error).__name__}: {error}")
        finally:
            self._ended.set()

    def _set(self, **changes: Any) -> None:
        self.report = dataclasses.replace(self.report, **changes)

    async def _serve(self) -> None:
        """Run the engine until it is stopped or given up.

        Raises:
            UserError: it cannot be started here.
        """
        if self._version != __version__:
            raise UserError(
                f"llama-gguf {__version__} is installed there, and `llama-gguf ray up` has "
                f"{self._version}; install the same version on each machine"
            )
        order = Order.from_fields(self._order)
        loaded = self._load(order)
        preparation = await run_detached(lambda: self._prepared(order, loaded))
        settings = loaded.settings
        self._set(address=EngineAddress.of(settings.upstream).key)
        fleet = LocalFleet(
            settings,
            prepare=lambda: self._launches(preparation),
            open_log=lambda _: self._open_log(loaded),
            publish=self._publish,
            is_stopping=self._stop_requested.is_set,
            rng=random.SystemRandom().random,
        )
        loop = asyncio.get_running_loop()
        running = loop.create_task(fleet.run(), name="run the engine")
        stopping = loop.create_task(self._stop_requested.wait(), name="await a request to stop")
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            stopping.cancel()
            running.result()
            return
        await fleet.stop_idle()
        await fleet.stop(asyncio.Event())
        self._set(state=ChildState.STOPPED)

    def _load(self, order: Order) -> Loaded:
        """The settings for this machine: those of the order, else those of its environment.

        Raises:
            UserError: they are invalid, or no port is free.
        """
        fixed = {
            "replicas": "1",
            "idle_stop": "0",  # the cluster stops engines that are not needed
            "prompt_cache": "off",  # no gateway reports here which keys' prompts an engine has
            "backend_host": self.report.machine,
            "backend_socket": "",
            "backend_api_key": order.key,
        }
        without_gpu = {"ngl": "0", "threads": str(max(int(order.cpus), 1))}
        defaults = {} if order.gpus else without_gpu
        loaded = load(self._environ, {**defaults, **order.settings, **fixed})
        settings = resolve(
            loaded.settings,
            environ=self._environ,
            is_dir=os.path.isdir,
            is_writable=lambda folder: os.access(folder, os.W_OK | os.X_OK),
            host_name=socket.gethostname(),
        )
        port = free_port(self.report.machine, settings.upstream.port_backend + self._number)
        upstream = replace(settings.upstream, port_backend=port)
        return replace(loaded, settings=replace(settings, upstream=upstream))

    def _prepared(self, order: Order, loaded: Loaded) -> Preparation:
        """Find llama-server, and fetch the model if it is not here.

        Raises:
            UserError: one of them is missing.
        """
        settings = loaded.settings
        if plan.must_be_fetched(settings.model):
            self._set(detail="waiting until another engine of this machine has fetched the model")
            with _one_at_a_time(settings.model.models_dir):
                plan.fetch_model(settings.model, self._environ, self._meter)
            self._set(detail="", progress=None)
        found = locate.locate(
            settings.engine.llama_server,
            self._environ.get("PATH", os.defpath),
            environ=self._environ,
        )
        if order.gpus:
            flags = vulkan_flags(locate.devices_of(found, self._environ) or (), self._gpu_ids)
            extra = f"{settings.engine.extra_args} {flags}".strip()
            settings = replace(settings, engine=replace(settings.engine, extra_args=extra))
        preparation = Preparation(
            settings,
            environ=self._environ,
            sources=loaded.sources,
            download_meter=self._meter,
        )
        preparation.check()
        return preparation

    @contextmanager
    def _meter(self, label: str) -> Iterator[Meter]:
        def report(done: int, total: int | None) -> None:
            share = done / total if total else None
            amount = f"{share:.0%} of {size_text(total)}" if total else size_text(done)
            self._set(detail=f"fetching {label}: {amount}", progress=share)

        yield report

    async def _launches(self, preparation: Preparation) -> list[Launch]:
        launches = await preparation.prepare(lambda text, share: None)
        (launch,) = launches
        parts = part_paths(launch.model_path)
        identity = Identity(
            preparation.model_name,
            await run_detached(lambda: fingerprint(parts)),
            str(launch.facts.get("engine_version", "unknown")),
        )
        self._set(identity=identity)
        return launches

    def _open_log(self, loaded: Loaded) -> LogWriter:
        opened = open_engine_log(loaded.settings.logs, str(self._number))
        self._set(log_file=opened.file.path)
        return opened

    def _publish(self, status: EngineStatus) -> None:
        detail = status.detail
        if status.state is ChildState.FAILED:
            detail = f"{status.last_exit or status.detail} {status.last_advice}".strip()
        self._set(
            state=status.state,
            detail=detail,
            progress=status.progress,
            slots=status.slots,
            model=status.model,
        )


@contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Let the engines of one machine fetch the model one after the other: the first one does it."""
    with contextlib.ExitStack() as stack:
        # `pull` reports a folder that cannot be written; not every file system has locks.
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            file = stack.enter_context(
                open(os.path.join(folder, ".fetching"), "w", encoding="ascii")
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def free_port(host: str, first: int) -> int:
    """A port on which nothing listens: *first*, or one that is a multiple of the stride above.

    Raises:
        UserError: all are taken.
    """
    for port in range(first, min(first + PORT_TRIES * PORT_STRIDE, MAX_PORT), PORT_STRIDE):
        with contextlib.suppress(UserError):
            check_address(EngineAddress(host, port))
            return port
    raise UserError(f"no port is free there from PORT_BACKEND on, such as {first}")


def vulkan_flags(devices: Sequence[Device], gpu_ids: Sequence[str]) -> str:
    """Flags for the GPUs that are reserved for this engine, where no variable of Ray hides others.

    Ray sets the variables of CUDA and ROCm, which Vulkan ignores: without flags, each engine of a
    machine would use all of its GPUs.
    """
    names = [device.flag_name for device in devices]
    chosen = [f"{_VULKAN}{number}" for number in gpu_ids]
    is_needed = len(names) > len(chosen) and all(name.startswith(_VULKAN) for name in names)
    if not is_needed or not set(chosen) <= set(names):
        return ""
    return f"--device {','.join(chosen)}"


def fingerprint(parts: Sequence[str]) -> str:
    """Of the model's files: sizes, and the beginning and the end of each.

    The beginning has all metadata and tensors' types, so other quantisations differ there; the end
    is data, which differs between revisions. All of it would take minutes to read.
    """
    digest = hashlib.sha256()
    for part in parts:
        with open(part, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(b"%d " % size)
            for offset in (0, max(size - _SAMPLE_BYTES, 0)):
                file.seek(offset)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
