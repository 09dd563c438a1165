"""The templates in deploy/: valid, and in agreement with settings and each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from llama_gguf.config import settings
from llama_gguf.config.load import load
from llama_gguf.telemetry.metric_table import METRICS
from tests.support import compose

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
UNIT: Final = DEPLOY / "systemd" / "llama-gguf.service"
# The permitted exposure of a service with a GPU and a port: 0 is closed, 10 is open.
MAX_EXPOSURE: Final = 1.7


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


# Settings in templates ----------------------------------------------------------------------------


def environments() -> Iterator[tuple[str, Mapping[str, str]]]:
    yield "compose", compose.environment(ROOT / "compose.yaml", "cpu", {"MODEL_NAME": "m"})
    for template in sorted((DEPLOY / "runpod").glob("*.json")):
        yield template.name, json.loads(template.read_text())["env"]
    given = re.findall(r"-e (\w+)=(\S+?)[\s\"]", (DEPLOY / "vast" / "create.sh").read_text())
    yield "vast", dict(given)
    (cloud_init,) = documents(DEPLOY / "lambda" / "cloud-init.yaml")
    lines = cloud_init["write_files"][0]["content"].splitlines()
    yield "lambda", dict(line.split("=", 1) for line in lines)
    unit = re.findall(r"^Environment=(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE)
    yield "systemd", dict(unit)


@pytest.mark.parametrize(
    "environ", [e for _, e in environments()], ids=[name for name, _ in environments()]
)
def test_a_template_uses_existing_settings_with_valid_values(environ: Mapping[str, str]) -> None:
    known = {settings.variable(name) for name in settings.SETTINGS}

    assert environ
    assert set(environ) <= known
    load(environ)


def test_a_container_that_replaces_another_continues_its_usage_of_keys() -> None:
    """INSTANCE_ID names the file, and its default is the host name: a container's id."""
    environs = dict(environments())
    lambda_command = (DEPLOY / "lambda" / "cloud-init.yaml").read_text()
    server = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["cpu"]

    assert server["hostname"]
    assert " --hostname llama-gguf " in lambda_command
    assert environs["pod.template.json"]["INSTANCE_ID"] == "llama-gguf"


# Prometheus ---------------------------------------------------------------------------------------


def test_the_metric_to_scale_on_exists() -> None:
    pages = [*ROOT.glob("docs/deployment/*.md"), *(DEPLOY / "kubernetes").rglob("*.yaml")]
    named = {m for page in pages for m in re.findall(r"llama_gguf_\w+", page.read_text())}

    assert named
    assert named <= {metric.name for metric in METRICS}


# RunPod, Vast.ai, Lambda --------------------------------------------------------------------------


def runpod(kind: str) -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "runpod" / f"{kind}.template.json").read_text()))


def test_runpods_workers_have_explicit_ports_and_end_a_request_before_runpod() -> None:
    template = runpod("serverless")
    environ = template["env"]

    assert template["isServerless"]
    assert environ["HEALTH_MODE"] == "ready"
    assert template["ports"] == [f"{environ['PORT']}/http", f"{environ['PORT_HEALTH']}/http"]
    longest = float(environ["MAX_QUEUE_WAIT"]) + float(environ["MAX_REQUEST_DURATION"])
    assert longest + 15 < 5.5 * 60  # and the time until its body has arrived
    assert 0 < float(environ["SSE_KEEPALIVE"]) < 100
    assert environ["RESPONSES_KEEPALIVE"] == "events"


def test_runpods_pods_respond_within_the_time_of_their_proxy() -> None:
    environ = runpod("pod")["env"]

    assert float(environ["MAX_QUEUE_WAIT"]) < 100
    assert 0 < float(environ["SSE_KEEPALIVE"]) < 100
    assert environ["RESPONSES_KEEPALIVE"] == "events"


@pytest.mark.parametrize("kind", ["serverless", "pod"])
def test_runpods_containers_may_write_to_volumes_of_root(kind: str) -> None:
    assert re.search(r":v[\d.]+-cuda-root$", runpod(kind)["imageName"])


def test_every_template_names_a_version_of_the_image() -> None:
    for path in (p for p in DEPLOY.rglob("*") if p.is_file()):
        for tag in re.findall(r"(?:inference:|newTag: )(\S+?)\"?,?(?:\s|$)", path.read_text()):
            assert re.fullmatch(r"v\d+\.\d+\.\d+\w*-(cpu|cuda|cuda-root)", tag), (path, tag)


@pytest.mark.processes
def test_the_script_for_vast_rents_an_offer_with_the_images_entrypoint(tmp_path: Path) -> None:
    stand_in = tmp_path / "vastai"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)

    argv = [str(DEPLOY / "vast" / "create.sh"), "123", "image:cuda", "smollm2"]
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    result = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True).stdout

    words = result.splitlines()
    assert words[:3] == ["create", "instance", "123"]
    assert words[words.index("--image") + 1] == "image:cuda"
    assert "-e MODEL_NAME=smollm2" in words[words.index("--env") + 1]
    assert words[-2:] == ["--args", "--create-key"]


def test_the_lambda_container_has_the_restrictions_of_compose() -> None:
    (cloud_init,) = documents(DEPLOY / "lambda" / "cloud-init.yaml")
    words = shlex.split(cloud_init["runcmd"][-1])

    assert (DEPLOY / "lambda" / "cloud-init.yaml").read_text().startswith("#cloud-config\n")
    assert words[:2] == ["docker", "run"]
    assert {"--read-only", "no-new-privileges", "ALL"} <= set(words)
    assert words[words.index("--log-driver") + 1] == "local"
    assert cloud_init["write_files"][0]["path"] in words


# systemd ------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a command that exists on every machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze comes with systemd, which is not on this machine")
    text, count = re.subn(
        r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE
    )
    assert count == 1
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


def analyze(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *argv], capture_output=True, text=True, check=False, timeout=50
    )


@pytest.mark.processes
def test_systemd_accepts_every_line_of_the_unit(unit: Path) -> None:
    done = analyze("verify", unit)

    assert done.returncode == 0
    assert unit.name not in done.stdout + done.stderr


@pytest.mark.processes
def test_the_unit_has_access_to_network_and_gpu_only(unit: Path) -> None:
    output = analyze("security", "--offline=true", unit).stdout

    exposure = re.search(r"exposure level for \S+: ([\d.]+)", output)
    assert exposure
    assert float(exposure[1]) <= MAX_EXPOSURE, output


def directive(name: str) -> list[str]:
    """The words of all lines that set *name* in the unit."""
    lines = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def test_the_unit_survives_the_death_of_llama_server_for_its_memory() -> None:
    assert directive("OOMPolicy") == ["continue"]
    assert directive("KillMode") == ["mixed"]


def test_a_crash_writes_no_prompts_and_keys_to_the_disk() -> None:
    assert directive("LimitCORE") == ["0"]


def test_the_driver_is_loaded_before_its_devices_are_allowed() -> None:
    drivers = {"modprobe@nvidia_uvm.service", "nvidia-persistenced.service"}

    assert "char-nvidia-uvm" in directive("DeviceAllow")
    assert drivers <= set(directive("After"))
    assert drivers <= set(directive("Wants"))


def test_the_unit_has_time_to_drain() -> None:
    (limit,) = directive("TimeoutStopSec")

    assert int(limit) >= settings.Settings.of().process.drain_timeout + 10
