"""Compiles the gateway's hot modules with mypyc where a C compiler and Python's headers are there.

``pip install .`` builds a wheel for this machine's Python, with these modules as C extensions. If
that is not possible, the wheel is pure Python, and one line of the build's output gives the reason.
``LLAMA_GGUF_COMPILE=0`` leaves it out, and with ``=1`` a failure ends the build. Both forms behave
the same: docs/adr/0009-hot-modules-may-be-compiled.md.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE: Final = "LLAMA_GGUF_COMPILE"
BUILD_DEPENDENCIES: Final = ["mypy[mypyc]>=2", "setuptools>=78"]
# The modules that run for every request or event, and those they call.
MODULES: Final = [
    "llama_gguf/memo.py",
    *(
        f"llama_gguf/{folder}/{name}.py"
        for folder, names in {
            "access": (
                "attributes",
                "authenticator",
                "budget_ledger",
                "keys",
                "networks",
                "rate_limit",
                "share",
                "shared_rate",
                "token_budget",
            ),
            "gateway": (
                "attempt",
                "authorisation",
                "budget_sink",
                "budgets",
                "client",
                "client_connection",
                "connections",
                "endpoints",
                "engine_tracker",
                "fleet",
                "head_cache",
                "local_request",
                "pool",
                "proxied_request",
                "replay",
                "replica",
                "replica_sink",
                "request_ids",
                "response_events",
                "services",
                "sessions",
                "sse_keepalive",
                "upstream_connection",
            ),
            "http1": (
                "body",
                "chunked",
                "conversation",
                "exchange_record",
                "fields",
                "known_head",
                "local_response",
                "parser",
                "request",
                "request_reader",
                "response",
                "response_body",
                "routes",
                "sse",
                "stream_member",
            ),
            "net": ("clock", "connector", "listener", "poller", "sockets", "transport"),
            "scheduling": (
                "admission",
                "balancer",
                "body_memory",
                "crash_memory",
                "exchange",
                "failure_policy",
                "fair_queue",
                "replay_order",
                "sessions",
                "shares",
                "standing",
            ),
            "telemetry": (
                "access_log",
                "batch",
                "histogram",
                "metrics",
                "recent_requests",
                "recorder",
                "response_window",
                "token_usage",
                "usage_totals",
            ),
        }.items()
        for name in names
    ),
]
SMALL: Final = frozenset(
    (
        *("attributes", "budget_ledger", "keys", "networks", "share", "shared_rate"),
        *("budgets", "client", "endpoints", "engine_tracker", "fleet", "local_request", "replay"),
        *("replica", "response_events", "services", "sse_keepalive", "token_budget"),
        *("fields", "local_response", "parser", "routes", "stream_member"),
        *("connector", "listener", "sockets", "usage_totals"),
        *("body_memory", "crash_memory", "failure_policy", "replay_order", "shares", "standing"),
    )
)
"""Of these, the modules that neither a request on a kept connection nor an event runs: they are
compiled for size, since the pages of their code are half of what compiling adds in memory."""
_SETUP: Final = """
import os
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildOnAllCores(build_ext):
    def build_extension(self, extension):
        compile_files = self.compiler.compile

        def compile_one(source, options):
            if source.endswith({small!r}):
                options = options | {{"extra_postargs": [*options["extra_postargs"], "-Os"]}}
            return compile_files([source], **options)

        def compile_all(sources, **options):
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                done = pool.map(compile_one, sources, [options] * len(sources))
            return [path for paths in done for path in paths]

        self.compiler.compile = compile_all
        try:
            super().build_extension(extension)
        finally:
            self.compiler.compile = compile_files


# A file for each module, so that all cores have one to compile, and without debugging symbols.
extensions = mypycify(
    ["--ignore-missing-imports", *{modules!r}],
    opt_level="2",
    debug_level="0",
    multi_file=True,
    group_name="llama_gguf",
)
extensions.append(Extension("llama_gguf.net._socket_io", ["llama_gguf/net/_socket_io.c"]))
for extension in extensions:
    # Functions call each other directly, not by the name that another library might replace.
    extension.extra_compile_args += ["-fvisibility=hidden", "-fno-asynchronous-unwind-tables"]
    if {packs_relocations}:
        extension.extra_link_args.append("-Wl,-z,pack-relative-relocs")
setup(
    name="compiled",
    packages=[],
    ext_modules=extensions,
    cmdclass={{"build_ext": BuildOnAllCores}},
)
"""


class CompilationError(Exception):
    """The modules cannot be compiled."""


class CompileHook(BuildHookInterface[Any]):
    """The build hook, called by hatchling."""

    @property
    def _is_required(self) -> bool:
        return os.environ.get(VARIABLE) == "1"

    @property
    def _obstacle(self) -> str:
        """Why nothing is compiled; empty if it is."""
        if os.environ.get(VARIABLE) == "0":
            return f"{VARIABLE}=0"
        return "" if self._is_required else obstacle()

    def dependencies(self) -> list[str]:
        is_wanted = self.target_name == "wheel" and not self._obstacle
        return BUILD_DEPENDENCIES if is_wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        reason = self._obstacle
        folder = Path(tempfile.mkdtemp(prefix="llama-gguf-"))
        try:
            built = [] if reason else compile_modules(Path(self.root, "src"), folder)
        except CompilationError as error:
            if self._is_required:
                raise SystemExit(f"{error} {VARIABLE}=0 builds without it.") from None
            reason, built = str(error).splitlines()[-1], []
        if reason:
            self.app.display_warning(f"The gateway is not compiled, and slower: {reason}")
        if not built:
            shutil.rmtree(folder)
            return
        self._folder = folder
        for path in built:
            build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder)


def obstacle() -> str:
    """Why this machine cannot compile; empty if it can."""
    if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
        return "only CPython on Linux is supported"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"there is no C compiler ({compiler})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"there is no {header} (on Debian and Ubuntu: apt install python3-dev)"
    return ""


def _packs_relocations() -> bool:
    """Whether the C library reads packed relocations, which save 0.3 MB of each process.

    glibc does since 2.36, and a linker that does not know the option ignores it. The containers in
    which wheels for other machines are built have older ones.
    """
    name, version = platform.libc_ver()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return name == "glibc" and numbers is not None and (int(numbers[1]), int(numbers[2])) >= (2, 36)


def compile_modules(source: Path, folder: Path) -> list[Path]:
    """Compile ``MODULES`` of *source* in the empty *folder*.

    Returns:
        The extensions' paths, in the packages' directories below *folder*.

    Raises:
        CompilationError: its message ends with the compiler's output.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    script = folder / "setup.py"
    small = tuple(f"___{name}.c" for name in SMALL)
    text = _SETUP.format(modules=MODULES, small=small, packs_relocations=_packs_relocations())
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, script.name, "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CompilationError(f"mypyc failed.\n{done.stderr[-4000:]}")
    shutil.rmtree(folder / "build")
    return sorted(folder.rglob("*.so"))
