"""Compiles the gateway's hot modules with mypyc if ``LLAMA_GGUF_COMPILE`` is set.

``LLAMA_GGUF_COMPILE=1 pip install .`` builds a wheel for this machine's Python, with these
modules as C extensions; it needs a C compiler. Without the variable the wheel is pure Python.
Both behave the same: docs/adr/0009-hot-modules-may-be-compiled.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
                "request_ids",
                "response_events",
                "services",
                "sse_keepalive",
                "upstream_connection",
            ),
            "http1": (
                "body",
                "chunked",
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
                "shares",
            ),
            "telemetry": (
                "access_log",
                "batch",
                "histogram",
                "metrics",
                "recorder",
                "response_window",
                "token_usage",
                "usage_totals",
            ),
        }.items()
        for name in names
    ),
]
_SETUP: Final = """
from mypyc.build import mypycify
from setuptools import setup

extensions = mypycify(
    ["--ignore-missing-imports", *{modules!r}], opt_level="3", group_name="llama_gguf"
)
setup(name="compiled", packages=[], ext_modules=extensions)
"""


class CompileHook(BuildHookInterface[Any]):
    """The build hook, called by hatchling."""

    @property
    def _is_wanted(self) -> bool:
        return self.target_name == "wheel" and os.environ.get(VARIABLE) == "1"

    def dependencies(self) -> list[str]:
        return BUILD_DEPENDENCIES if self._is_wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._is_wanted or version == "editable":
            return
        self._folder = tempfile.mkdtemp(prefix="llama-gguf-")
        for built in compile_modules(Path(self.root, "src"), Path(self._folder)):
            build_data["force_include"][str(built)] = str(built.relative_to(self._folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder)


def compile_modules(source: Path, folder: Path) -> list[Path]:
    """Compile ``MODULES`` of *source* in the empty *folder*.

    Returns:
        The extensions' paths, in the packages' directories below *folder*.

    Raises:
        SystemExit: they cannot be compiled; the compiler's output is printed.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    script = folder / "setup.py"
    script.write_text(_SETUP.format(modules=MODULES))
    done = subprocess.run(
        [sys.executable, script.name, "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mypyc failed; {VARIABLE}=0 builds without it.\n{done.stderr[-4000:]}")
    shutil.rmtree(folder / "build")
    return sorted(folder.rglob("*.so"))
