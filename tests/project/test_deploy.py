"""The templates in deploy/: valid, and in agreement with settings and each other."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from llama_gguf.config import settings
from llama_gguf.config.load import load
from llama_gguf.telemetry.metrics import METRICS
from tests.support import compose
from tests.support.clients import send_request
from tests.support.serve import Serve

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
KUBERNETES: Final = DEPLOY / "kubernetes"
UNIT: Final = DEPLOY / "systemd" / "llama-gguf.service"
KUBERNETES_VERSION: Final = "1.37"
# The permitted exposure of a service with a GPU and a port: 0 is closed, 10 is open.
MAX_EXPOSURE: Final = 1.7


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


# Settings in templates ----------------------------------------------------------------------------


def environments() -> Iterator[tuple[str, Mapping[str, str]]]:
    yield "compose", compose.environment(ROOT / "compose.yaml", "cpu", {"MODEL_NAME": "m"})
    (deployment,) = documents(KUBERNETES / "deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    yield "kubernetes", {e["name"]: e["value"] for e in container["env"]}
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
    for name in ("kubernetes", "pod.template.json"):
        assert environs[name]["INSTANCE_ID"] == "llama-gguf"


# Kubernetes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["deployment", "service", "storage", "budget", "secret.example"], ids=str
)
def test_a_manifest_is_valid_by_kubernetes_schema(name: str) -> None:
    for document in documents(KUBERNETES / f"{name}.yaml"):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.processes
def test_what_kustomize_renders_is_valid_and_has_the_image_of_a_version() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on PATH")
    argv = ["kubectl", "kustomize", str(KUBERNETES)]
    rendered = subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    by_kind = {document["kind"]: document for document in yaml.safe_load_all(rendered)}
    for kind, document in by_kind.items():
        if kind != "ServiceMonitor":  # its schema is the Prometheus operator's
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    (container,) = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert re.search(r"/llama-gguf-inference:v[\d.]+\w*-cuda$", container["image"])


def test_every_manifest_but_the_example_secret_is_applied() -> None:
    (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
    files = {p.name for p in KUBERNETES.glob("*.yaml")}

    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "secret.example.yaml"}


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    (deployment,) = documents(KUBERNETES / "deployment.yaml")
    return dict(deployment["spec"]["template"])


def test_references_between_manifests_resolve(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"].items()
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    (service,) = documents(KUBERNETES / "service.yaml")
    (monitor,) = documents(KUBERNETES / "monitor.yaml")
    (budget,) = documents(KUBERNETES / "budget.yaml")
    (claim,) = documents(KUBERNETES / "storage.yaml")
    (secret,) = documents(KUBERNETES / "secret.example.yaml")

    assert service["spec"]["selector"].items() <= labels
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volumes["keys"]["secret"]["secretName"] == secret["metadata"]["name"]
    assert "api_keys.txt" in secret["stringData"]
    # Its schema is the Prometheus operator's, so the test checks the names that it uses.
    assert (monitor["apiVersion"], monitor["kind"]) == (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
    )
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    served = {port["name"] for port in service["spec"]["ports"]}
    for endpoint in monitor["spec"]["endpoints"]:
        assert endpoint["port"] in served
        assert set(endpoint) <= {"port", "path", "interval", "authorization"}


def test_a_pod_has_time_to_drain(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    environ = {e["name"]: e.get("value") for e in container["env"]}
    (_, pause) = container["lifecycle"]["preStop"]["exec"]["command"]

    needed = float(pause) + float(environ["DRAIN_TIMEOUT"])

    assert pod["spec"]["terminationGracePeriodSeconds"] >= needed + 10


def test_a_pod_has_minimal_privileges(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    may = container["securityContext"]

    assert pod["spec"]["securityContext"]["runAsUser"] == 10001
    assert may["readOnlyRootFilesystem"]
    assert may["capabilities"] == {"drop": ["ALL"]}
    written = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert written == {"/data", "/tmp"}  # noqa: S108  # the container's


def test_the_probes_distinguish_running_from_serving(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]

    assert container["startupProbe"]["httpGet"]["port"] == "health"
    assert container["livenessProbe"]["httpGet"]["port"] == "health"
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}


def succeeds(probe: Mapping[str, Any], ports: Mapping[str, int], seconds: float = 30) -> bool:
    """Apply *probe* once, as the kubelet does, with this timeout."""
    wanted = probe["httpGet"]
    address = ("127.0.0.1", ports[wanted["port"]])
    try:
        response = send_request(address, wanted["path"], key="", seconds=seconds)
    except OSError:
        return False
    return 200 <= response.status < 400


@pytest.mark.processes
def test_the_liveness_probe_fails_only_if_the_supervisor_is_frozen(
    pod: dict[str, Any], serve: Serve, tmp_path: Path
) -> None:
    (container,) = pod["spec"]["containers"]
    (mode,) = (e["value"] for e in container["env"] if e["name"] == "HEALTH_MODE")
    probe = container["livenessProbe"]
    ports = {"health": serve.port_health, "http": serve.port}
    serve.start(engine=f"--load-until {tmp_path / 'loaded'}", HEALTH_MODE=mode)

    serve.until(lambda: serve.engine_state() == "loading")
    assert succeeds(probe, ports)
    assert not succeeds(container["readinessProbe"], ports)
    (tmp_path / "loaded").touch()
    serve.until_ready()
    assert succeeds(probe, ports)
    assert succeeds(container["readinessProbe"], ports)
    serve.signal(signal.SIGSTOP)
    assert not succeeds(probe, ports, seconds=1)
    serve.signal(signal.SIGCONT)
    assert succeeds(probe, ports)


def test_an_update_waits_for_the_gpu_and_the_model() -> None:
    (deployment,) = documents(KUBERNETES / "deployment.yaml")
    spec = deployment["spec"]

    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert spec["progressDeadlineSeconds"] > 20 * 60
    (toleration,) = spec["template"]["spec"]["tolerations"]
    (container,) = spec["template"]["spec"]["containers"]
    assert toleration["key"] in container["resources"]["limits"]


# Prometheus ---------------------------------------------------------------------------------------


def test_the_metric_to_scale_on_exists() -> None:
    pages = [*ROOT.glob("docs/deployment/*.md"), KUBERNETES / "deployment.yaml"]
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
