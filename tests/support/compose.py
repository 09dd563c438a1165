"""What a container started by Compose gets: from ``docker compose config``, or by the same rules.

Source of the rules: https://docs.docker.com/compose/how-tos/environment-variables/envvars-precedence/
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

MONITORING: Final = "compose.monitoring.yaml"


@functools.cache
def command() -> tuple[str, ...]:
    """The command of a Compose that can read our files; empty if there is none."""
    debian = "/usr/libexec/docker/cli-plugins/docker-compose"  # which works without Docker
    for argv in (("docker", "compose"), ("docker-compose",), (debian,)):
        if shutil.which(argv[0]):
            done = subprocess.run(
                [*argv, "version", "--short"], capture_output=True, text=True, check=False
            )
            version = re.match(r"v?(\d+)\.(\d+)", done.stdout)
            if done.returncode == 0 and version and (int(version[1]), int(version[2])) >= (2, 24):
                return argv
    return ()


def configured(compose_file: Path, shell: Mapping[str, str]) -> dict[str, Any]:
    """All services, as the real Compose reads *compose_file* in a shell with these variables."""
    ours = ("PATH", "HOME", "DOCKER_CONFIG")  # where its plugins are
    done = subprocess.run(
        [*command(), "-f", compose_file, "--profile", "*", "config", "--format", "json"],
        env={name: os.environ[name] for name in ours if name in os.environ} | dict(shell),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    return dict(json.loads(done.stdout)["services"])


def environment(compose_file: Path, service: str, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables of the container of *service*, by Compose's rules.

    1. Variables for ${...} are those of the ``.env`` beside the file and, before it, the shell's.
    2. A variable in ``environment`` overrides the one in ``env_file``, even if it has no value.
    3. A variable without a value gets that of rule 1, and is unset if there is none.
    """
    folder = compose_file.parent
    variables = {**_variables_of(folder / ".env"), **shell}
    declared = yaml.safe_load(compose_file.read_text())["services"][service]
    result: dict[str, str | None] = {}
    for entry in declared.get("env_file", []):
        result |= _variables_of(folder / entry["path"])
    for name, value in declared.get("environment", {}).items():
        result[name] = variables.get(name) if value is None else _expanded(value, variables)
    return {name: value for name, value in result.items() if value is not None}


def _variables_of(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip("'\"") for name, value in pairs}


def _expanded(value: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1]) or m[2], value)
