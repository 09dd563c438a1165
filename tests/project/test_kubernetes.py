"""deploy/kubernetes, as Kustomize renders it: valid, and in agreement with the code and itself.

The schemas of KEDA's and the Prometheus operator's resources are in ``schemas``.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from llama_gguf.access.keys import KeyRing, hashed
from llama_gguf.config import settings
from llama_gguf.config.load import load
from llama_gguf.config.settings import Settings
from llama_gguf.http1.routes import Kind, Router
from llama_gguf.models.slots import slots_for
from llama_gguf.telemetry.metric_table import METRICS
from tests.support.clients import send_request
from tests.support.gateways import GatewayProcess, Processes
from tests.support.keys import BACKEND_KEY, KEY
from tests.support.kubectl import kustomize
from tests.support.messages import request
from tests.support.processes import free_port, until
from tests.support.serve import Serve

pytestmark = pytest.mark.processes

FOLDER: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
SCHEMAS: Final = {
    kind: json.loads((Path(__file__).parent / "schemas" / name).read_text())
    for kind, name in (
        ("ScaledObject", "scaled-object.json"),
        ("ServiceMonitor", "service-monitor.json"),
    )
}
KUBERNETES_VERSION: Final = "1.37"
OVERLAYS: Final = ("single", "fleet", "gateways")
COMPONENTS: Final = (
    (),
    ("gpu",),
    ("monitor",),
    ("network-policy",),
    ("fleet",),
    ("fleet", "shared-limits"),
    ("fleet", "scale-to-zero"),
    ("fleet", "scale-by-prometheus"),
    ("fleet", "gpu"),
)
"""Added to the base, each must result in valid manifests."""
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
GATEWAY: Final = {NAME: "llama-gguf", COMPONENT: "gateway", "llama-gguf/clients": "true"}
STRANGER: Final = {"app": "something"}

Document = dict[str, Any]


class Rendered:
    """The manifests of one kustomization."""

    def __init__(self, folder: Path) -> None:
        self.documents = kustomize(folder)

    def of_kind(self, kind: str) -> list[Document]:
        return [each for each in self.documents if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Document:
        (found,) = (d for d in self.of_kind(kind) if d["metadata"]["name"] == name)
        return found

    @property
    def workloads(self) -> list[Document]:
        return self.of_kind("StatefulSet")

    def ours(self) -> Iterator[tuple[Document, Document]]:
        """Each container that runs this program, with its pod."""
        for workload in self.workloads:
            pod = workload["spec"]["template"]
            for container in pod["spec"]["containers"]:
                if "llama-gguf" in container["image"]:
                    yield container, pod


@functools.cache
def overlay(name: str) -> Rendered:
    return Rendered(FOLDER / "overlays" / name)


def environment(container: Document) -> dict[str, str]:
    """Those of its variables that have a value here, and not in a Secret."""
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@functools.cache
def secrets() -> dict[tuple[str, str], str]:
    """The values in the examples, by the name of their Secret and their key."""
    examples = yaml.safe_load_all((FOLDER / "examples" / "keys.yaml").read_text())
    return {
        (each["metadata"]["name"], key): value
        for each in examples
        for key, value in each["stringData"].items()
    }


def settings_of(container: Document) -> Settings:
    """Those of its variables, with the example of a value that is in a Secret."""
    environ = environment(container)
    for each in container["env"]:
        if "valueFrom" in each:
            wanted = each["valueFrom"]["secretKeyRef"]
            environ[each["name"]] = secrets()[wanted["name"], wanted["key"]]
    return load(environ).settings


def port_of(container: Document, name: str | int) -> int:
    (port,) = (p["containerPort"] for p in container["ports"] if name in p.values())
    return int(port)


def kind_of(path: str) -> Kind:
    """What a GET of *path* is for the gateway."""
    return Router(expose_all=False).route(b"GET", path.encode()).kind


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


# Valid --------------------------------------------------------------------------------------------


def check_schema(document: Document) -> None:
    if schema := SCHEMAS.get(document["kind"]):
        jsonschema.Draft202012Validator(schema).validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_valid_and_names_a_version_of_the_image(name: str) -> None:
    found = overlay(name)

    for document in found.documents:
        check_schema(document)
        assert document["metadata"]["namespace"] == "llama-gguf"
    assert "NAMESPACE" not in str(found.documents)
    for container, pod in found.ours():
        kind = "cpu" if pod["metadata"]["labels"][COMPONENT] == "gateway" else "cuda"
        assert re.search(rf"/llama-gguf-inference:v[\d.]+\w*-{kind}$", container["image"])


@pytest.mark.parametrize("names", COMPONENTS, ids="+".join)
def test_components_can_be_combined(names: tuple[str, ...], tmp_path: Path) -> None:
    here = os.path.relpath(FOLDER, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "resources": [f"{here}/base"],
                "components": [f"{here}/components/{name}" for name in names],
            }
        )
    )

    for document in Rendered(tmp_path).documents:
        check_schema(document)


def test_every_component_is_in_an_overlay_and_tested_on_its_own() -> None:
    folders = {folder.name for folder in (FOLDER / "components").iterdir()}
    files = [(FOLDER / "overlays" / name / "kustomization.yaml").read_text() for name in OVERLAYS]
    used = {name for text in files for name in re.findall(r"components/([\w-]+)", text)}

    # scale-by-prometheus contains it.
    assert used | {"scale-to-zero"} == folders
    assert {name for names in COMPONENTS for name in names} == folders


def test_the_examples_of_secrets_are_valid() -> None:
    for document in yaml.safe_load_all((FOLDER / "examples" / "keys.yaml").read_text()):
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        if keys := document["stringData"].get("api_keys.txt"):
            ring = KeyRing.parse(keys)
            assert (len(ring), ring.problems) == (1, ())


# In agreement with the code -----------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_containers_have_existing_settings_with_valid_values(name: str) -> None:
    known = {settings.variable(each) for each in settings.SETTINGS}

    for container, _ in overlay(name).ours():
        assert {each["name"] for each in container["env"]} <= known
        settings_of(container)


@pytest.mark.parametrize("name", ["single", "fleet"])
def test_the_entrypoint_of_the_image_runs_the_right_command(name: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "llama-gguf"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for container, pod in overlay(name).ours():
        assert "command" not in container
        argv = [str(FOLDER.parents[1] / "scripts" / "start.sh"), *container.get("args", [])]
        command = subprocess.run(argv, env=path, capture_output=True, text=True, check=True).stdout
        is_gateway = pod["metadata"]["labels"][COMPONENT] == "gateway"
        assert command == ("gateway\n" if is_gateway else "serve\n")


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_and_ports_are_those_of_the_program(name: str) -> None:
    for container, _ in overlay(name).ours():
        listen = settings_of(container).listen
        is_gateway = container.get("args") == ["gateway"]
        ports = {"http": listen.port} | ({} if is_gateway else {"health": listen.port_health})

        assert {p["name"]: p["containerPort"] for p in container["ports"]} == ports
        probes = [probe for key, probe in container.items() if key.endswith("Probe")]
        assert len(probes) == (2 if is_gateway else 3)
        for probe in (each["httpGet"] for each in probes):
            assert probe["port"] == "health" or kind_of(probe["path"]) in (Kind.PING, Kind.HEALTH)
            assert probe["port"] in ports


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_time_to_drain(name: str) -> None:
    for container, pod in overlay(name).ours():
        (command, pause) = container["lifecycle"]["preStop"]["exec"]["command"]
        needed = float(pause) + settings_of(container).process.drain_timeout

        assert command == "sleep"
        assert pod["spec"]["terminationGracePeriodSeconds"] >= needed + 15


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_pod_has_minimal_privileges(name: str) -> None:
    for workload in overlay(name).workloads:
        spec = workload["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert not spec["automountServiceAccountToken"]
        for container in spec["containers"]:
            may = container["securityContext"]
            assert may["readOnlyRootFilesystem"]
            assert not may["allowPrivilegeEscalation"]
            assert may["capabilities"] == {"drop": ["ALL"]}
            written = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert written <= {"/data", "/tmp", "/dev/shm"}  # noqa: S108  # the container's
    for _, pod in overlay(name).ours():
        assert pod["spec"]["securityContext"]["runAsUser"] == 10001


def test_metrics_that_scale_exist_and_an_engine_has_as_many_slots_as_the_target() -> None:
    names = {metric.name for metric in METRICS}
    fleet, gateways = (overlay(n).one("ScaledObject", "llama-gguf") for n in ("fleet", "gateways"))
    modifiers = fleet["spec"]["advanced"]["scalingModifiers"]
    (prometheus,) = gateways["spec"]["triggers"]

    assert {t["metadata"]["valueLocation"] for t in fleet["spec"]["triggers"]} <= names
    assert {t["name"] for t in fleet["spec"]["triggers"]} == set(modifiers["formula"].split(" + "))
    queried = set(re.findall(r"llama_gguf_\w+", prometheus["metadata"]["query"]))
    assert len(queried) == 2
    assert queried <= names
    ((container, _),) = (
        (c, p) for c, p in overlay("fleet").ours() if p["metadata"]["labels"][COMPONENT] == "engine"
    )
    engine = settings_of(container).engine
    assert engine.parallel == 0
    slots = str(slots_for(engine.ctx, None))
    assert modifiers["target"] == prometheus["metadata"]["threshold"] == slots


# In agreement with each other ---------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_and_budgets_select_the_pods_of_one_workload(name: str) -> None:
    found = overlay(name)
    pods = [workload["spec"]["template"] for workload in found.workloads]

    for service in found.of_kind("Service"):
        (pod,) = (p for p in pods if selects(service["spec"]["selector"], p["metadata"]["labels"]))
        (container,) = pod["spec"]["containers"]
        for port in service["spec"]["ports"]:
            number = port_of(container, port["targetPort"])
            # A headless Service only has addresses: clients use the port of the pods.
            assert service["spec"].get("clusterIP") != "None" or port["port"] == number
    for budget in found.of_kind("PodDisruptionBudget"):
        wanted = budget["spec"]["selector"]["matchLabels"]
        assert sum(selects(wanted, pod["metadata"]["labels"]) for pod in pods) == 1
    for workload in found.workloads:
        spec = workload["spec"]
        assert selects(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])
        assert found.one("Service", spec["serviceName"])["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("name", OVERLAYS)
def test_prometheus_finds_the_metrics(name: str) -> None:
    found = overlay(name)
    for monitor in found.of_kind("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = (
            s for s in found.of_kind("Service") if selects(wanted, s["metadata"]["labels"])
        )
        ports = {port["name"] for port in service["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in ports
            assert kind_of(endpoint["path"]) is Kind.METRICS


def references(workload: Document) -> Iterator[tuple[str, str]]:
    """The names and keys of Secrets that it uses."""
    pod = workload["spec"]["template"]["spec"]
    for secret in (volume["secret"] for volume in pod["volumes"] if "secret" in volume):
        for item in secret.get("items", [{"key": "api_keys.txt"}]):
            yield secret["secretName"], item["key"]
    for variable in (each for c in pod["containers"] for each in c.get("env", [])):
        if "valueFrom" in variable:
            wanted = variable["valueFrom"]["secretKeyRef"]
            yield wanted["name"], wanted["key"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_and_volumes_exist(name: str) -> None:
    for workload in overlay(name).workloads:
        spec = workload["spec"]
        pod = spec["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
        volumes = {volume["name"] for volume in pod["volumes"]}

        assert set(references(workload)) <= secrets().keys()
        mounted = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert mounted == claims | volumes


@pytest.mark.parametrize("name", ["fleet", "gateways"])
def test_the_gateways_find_the_engines_with_their_key(name: str) -> None:
    found = overlay(name)
    by_component = {pod["metadata"]["labels"][COMPONENT]: (c, pod) for c, pod in found.ours()}
    (gateway, gateway_pod), (engine, engine_pod) = by_component["gateway"], by_component["engine"]
    peers = urlsplit(environment(gateway)["PEERS"])
    service = found.one("Service", str(peers.hostname))

    assert peers.scheme == "dns+http"
    assert service["spec"]["clusterIP"] == "None"
    assert selects(service["spec"]["selector"], engine_pod["metadata"]["labels"])
    assert peers.port == port_of(engine, "http")
    (key,) = (
        e["valueFrom"]["secretKeyRef"] for e in gateway["env"] if e["name"] == "BACKEND_API_KEY"
    )
    (keys,) = (v["secret"] for v in engine_pod["spec"]["volumes"] if v["name"] == "keys")
    assert key["name"] == keys["secretName"]
    clients = found.one("Service", "llama-gguf")["spec"]["selector"]
    assert selects(clients, gateway_pod["metadata"]["labels"])
    assert not selects(clients, engine_pod["metadata"]["labels"])


@pytest.mark.parametrize("name", ["fleet", "gateways"])
def test_keda_scales_the_engines_and_finds_the_gateway(name: str) -> None:
    found = overlay(name)
    scaled = found.one("ScaledObject", "llama-gguf")["spec"]
    target = found.one(scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"])

    assert scaled["minReplicaCount"] == 0
    assert target["metadata"]["labels"][COMPONENT] == "engine"
    assert "replicas" not in target["spec"]
    for trigger in scaled["triggers"]:
        if trigger["type"] == "metrics-api":
            url = urlsplit(trigger["metadata"]["url"])
            service, namespace, _ = str(url.hostname).split(".")
            assert found.one("Service", service)["metadata"]["namespace"] == namespace
            assert 80 in {port["port"] for port in found.one("Service", service)["spec"]["ports"]}
            assert kind_of(url.path) is Kind.METRICS
        else:
            assert f'namespace="{target["metadata"]["namespace"]}"' in trigger["metadata"]["query"]


def may_connect(found: Rendered, source: Mapping[str, str], pod: Document, port: int) -> bool:
    """Whether the policies let a pod with the labels *source* connect to *pod*."""
    policies = [
        policy["spec"]
        for policy in found.of_kind("NetworkPolicy")
        if "Ingress" in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
    ]
    assert policies, "a pod without a policy is open"
    return any(
        port in {each["port"] for each in rule["ports"]}
        and (
            "from" not in rule
            or any(selects(peer["podSelector"]["matchLabels"], source) for peer in rule["from"])
        )
        for policy in policies
        for rule in policy["ingress"]
    )


def test_only_gateways_may_connect_to_engines_and_valkey() -> None:
    found = overlay("gateways")
    pods = {
        workload["metadata"]["labels"][COMPONENT]: workload["spec"]["template"]
        for workload in found.workloads
    }

    assert may_connect(found, STRANGER, pods["gateway"], 8000)
    for component, port in (("engine", 8000), ("valkey", 6379)):
        assert may_connect(found, GATEWAY, pods[component], port)
        assert not may_connect(found, STRANGER, pods[component], port)
    assert selects(GATEWAY, pods["gateway"]["metadata"]["labels"])


def test_clients_may_connect_to_a_single_pod() -> None:
    found = overlay("single")
    ((container, pod),) = found.ours()

    assert may_connect(found, STRANGER, pod, port_of(container, "http"))
    assert not may_connect(found, STRANGER, pod, port_of(container, "health"))


def test_an_engine_waits_for_its_gpu() -> None:
    for name in OVERLAYS:
        for container, pod in overlay(name).ours():
            limits = container["resources"]["limits"]
            if pod["metadata"]["labels"][COMPONENT] == "engine":
                (toleration,) = pod["spec"]["tolerations"]
                assert toleration["key"] in limits
            else:
                assert "nvidia.com/gpu" not in limits


def test_the_page_about_inference_gateways_is_about_these_pods_and_metrics() -> None:
    page = (FOLDER.parents[1] / "docs" / "deployment" / "inference-gateway.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    picker, _, pool, _ = (each for block in blocks for each in yaml.safe_load_all(block))
    ((container, pod),) = overlay("single").ours()
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in picker["plugins"]}
    (engine,) = plugins["core-metrics-extractor"]["engineConfigs"]
    source = plugins["metrics-data-source"]

    assert selects(pool["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
    assert pool["spec"]["targetPorts"] == [{"number": port_of(container, "http")}]
    assert kind_of(source["path"]) is Kind.METRICS
    read = {metric for name, metric in engine.items() if name.endswith("Spec")}
    assert len(read) == 3
    assert set(source["families"]) == read
    assert read <= {metric.name for metric in METRICS}
    used = {each["pluginRef"] for each in picker["schedulingProfiles"][0]["plugins"]}
    assert used <= plugins.keys()


# What the probes and KEDA see ---------------------------------------------------------------------


def succeeds(probe: Mapping[str, Any], ports: Mapping[str, int], seconds: float = 30) -> bool:
    """Apply *probe* once, as the kubelet does, with this timeout."""
    wanted = probe["httpGet"]
    address = ("127.0.0.1", ports[wanted["port"]])
    try:
        response = send_request(address, wanted["path"], key="", seconds=seconds)
    except OSError:
        return False
    return 200 <= response.status < 400


def is_frozen(pid: int) -> bool:
    """Whether all threads of the process are stopped."""
    states = (stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return all(text.rpartition(")")[2].split()[0] == "T" for text in states)


def test_the_liveness_probe_fails_only_if_the_supervisor_is_frozen(
    serve: Serve, tmp_path: Path
) -> None:
    ((container, _),) = overlay("single").ours()
    probe = container["livenessProbe"]
    ports = {"health": serve.port_health, "http": serve.port}
    mode = environment(container)["HEALTH_MODE"]
    serve.start(engine=f"--load-until {tmp_path / 'loaded'}", HEALTH_MODE=mode)

    serve.until(lambda: serve.engine_state() == "loading")
    assert succeeds(container["startupProbe"], ports)
    assert succeeds(probe, ports)
    assert not succeeds(container["readinessProbe"], ports)
    (tmp_path / "loaded").touch()
    serve.until_ready()
    assert succeeds(probe, ports)
    assert succeeds(container["readinessProbe"], ports)
    serve.signal(signal.SIGSTOP)
    serve.until(lambda: is_frozen(serve.pid))  # its threads stop one after the other
    assert not succeeds(probe, ports, seconds=1)
    serve.signal(signal.SIGCONT)
    assert succeeds(probe, ports)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.close()


def test_clients_reach_the_engines_of_a_fleet_through_the_gateway_only(
    serve: Serve, processes: Processes
) -> None:
    by_component = {pod["metadata"]["labels"][COMPONENT]: c for c, pod in overlay("fleet").ours()}
    engine, gateway = (environment(by_component[name]) for name in ("engine", "gateway"))
    serve.keys_file.write_text(f"gateway:{hashed(BACKEND_KEY)}\n")
    serve.keys_file.chmod(0o600)
    own = {"MODEL_NAME", "AUTH_KEYS_FILE"}
    serve.start_ready(**{name: value for name, value in engine.items() if name not in own})
    own |= {"PEERS"}
    others: dict[str, Any] = {n: value for n, value in gateway.items() if n not in own}
    in_front = processes.gateway(("127.0.0.1", 1), PEERS=f"http://127.0.0.1:{serve.port}", **others)

    chat = "/v1/chat/completions"
    assert in_front.send_request(request("POST", chat, key=KEY, body=b"{}")).status == 200
    assert in_front.send_request(request("POST", chat, key=None, body=b"{}")).status == 401
    address = ("127.0.0.1", serve.port)
    assert send_request(address, chat, key=KEY, body=b"{}").status == 401
    probe = by_component["engine"]["readinessProbe"]
    assert succeeds(probe, {"http": serve.port})


def reported(gateway: GatewayProcess, trigger: Document) -> float:
    """What KEDA reads for *trigger*."""
    path = urlsplit(trigger["metadata"]["url"]).path
    facts = gateway.send_request(request("GET", path, key=None)).json
    return float(facts[trigger["metadata"]["valueLocation"]])


def test_without_engines_the_gateway_gets_requests_holds_them_and_reports_them_to_keda(
    processes: Processes,
) -> None:
    (container,) = (c for c, _ in overlay("fleet").ours() if "args" in c)
    queued, running = overlay("fleet").one("ScaledObject", "llama-gguf")["spec"]["triggers"]
    port = free_port()
    wait = environment(container)["MAX_QUEUE_WAIT"]
    gateway = processes.gateway(
        ("127.0.0.1", 1), wait_for=503, PEERS=f"http://127.0.0.1:{port}", MAX_QUEUE_WAIT=wait
    )

    assert succeeds(container["livenessProbe"], {"http": gateway.port})
    assert succeeds(container["readinessProbe"], {"http": gateway.port})
    waiting = gateway.connect()
    waiting.send(request("POST", "/v1/chat/completions", key=KEY, body=b"{}"))
    until(lambda: reported(gateway, queued) == 1, lambda: gateway.log)
    assert reported(gateway, running) == 0
    processes.fake_llama("--port", str(port))
    assert waiting.response().status == 200
    until(lambda: reported(gateway, queued) + reported(gateway, running) == 0, "it is idle again")
