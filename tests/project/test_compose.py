"""The Compose files: which settings a container gets, and what it may do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from llama_gguf.config import settings
from llama_gguf.config.load import load
from tests.support import compose
from tests.support.serve import Serve

ROOT: Final = Path(__file__).parents[2]
SERVER: Final = ("cpu", "gpu")
FILES: Final = ("compose.yaml", compose.MONITORING)


def services() -> dict[str, dict[str, Any]]:
    """The services of all files, by name."""
    documents = [yaml.safe_load((ROOT / name).read_text()) for name in FILES]
    return {name: s for document in documents for name, s in document["services"].items()}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of a clone that Compose reads, without `.env`."""
    for name in (*FILES, ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def real_compose() -> None:
    if not compose.command():
        pytest.skip("there is no Docker Compose 2.24 or later on this machine")


def write_env(clone: Path, **changed: str) -> None:
    """Follow the README: copy .env.example to .env, and remove the # before each changed line."""
    text = (clone / ".env.example").read_text()
    for name, value in changed.items():
        text, count = re.subn(rf"^#{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, name
    (clone / ".env").write_text(text)


CASES: Final[Mapping[str, tuple[dict[str, str], dict[str, str], str | None]]] = {
    "only in .env": ({"MODEL_NAME": "a.gguf"}, {}, "a.gguf"),
    "only in the shell": ({}, {"MODEL_NAME": "b.gguf"}, "b.gguf"),
    "in both": ({"MODEL_NAME": "a.gguf"}, {"MODEL_NAME": "b.gguf"}, "b.gguf"),
    "nowhere": ({}, {}, None),
    "a path instead of a name": ({"MODEL_PATH": "/data/c.gguf"}, {}, None),
}
cases: Final = pytest.mark.parametrize(("env", "shell", "model"), CASES.values(), ids=list(CASES))


@pytest.mark.parametrize("service", SERVER)
@cases
def test_a_container_gets_the_settings_of_env_and_the_model_of_the_shell(
    clone: Path, service: str, env: dict[str, str], shell: dict[str, str], model: str | None
) -> None:
    write_env(clone, CTX="4096", PORT="9", **env)

    variables = compose.environment(clone / "compose.yaml", service, shell)

    assert variables.get("MODEL_NAME") == model
    assert variables.get("MODEL_PATH") == env.get("MODEL_PATH")
    loaded = load(variables).settings
    assert (loaded.engine.ctx, loaded.listen.port, loaded.model.data_dir) == (4096, 8000, "/data")


@pytest.mark.usefixtures("real_compose")
@pytest.mark.processes
@cases
def test_compose_itself_gives_a_container_these_variables(
    clone: Path, env: dict[str, str], shell: dict[str, str], model: str | None
) -> None:
    write_env(clone, CTX="4096", PORT="9", **env)

    configured = compose.configured(clone / "compose.yaml", shell)

    for service in SERVER:
        given = configured[service]["environment"]
        # It lists a variable that it unsets, with the value null.
        assert {name: value for name, value in given.items() if value is not None} == (
            compose.environment(clone / "compose.yaml", service, shell)
        )
        assert given["MODEL_NAME"] == model
        assert given["CTX"] == "4096"


@pytest.mark.usefixtures("real_compose")
@pytest.mark.processes
def test_compose_reads_its_own_variables_from_env_too(clone: Path) -> None:
    (clone / ".env").write_text("GRAFANA_PASSWORD=secret\nPUBLISHED_PORT=9000\n")

    ports = compose.configured(clone / "compose.yaml", {})["cpu"]["ports"]
    grafana = compose.configured(clone / compose.MONITORING, {})["grafana"]

    assert [port["published"] for port in ports] == ["9000"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "secret"


@pytest.mark.processes
def test_the_server_of_the_readmes_steps_serves_the_model_of_env(clone: Path, serve: Serve) -> None:
    """Instead of a container: `serve` with its variables, in other folders and on other ports."""
    write_env(clone, MODEL_NAME=serve.model.name, MAX_QUEUE_SIZE="7")
    variables = compose.environment(clone / "compose.yaml", "cpu", {})
    ours = serve.environ | {"MODELS_DIR": str(serve.model.parent)}

    serve.start_command("serve", **(variables | ours)).until_ready()

    assert f"serves {serve.model.stem}" in serve.out
    assert serve.send_request("/health").json["queue"]["size"] == 7


# Privileges, logs, files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVER)
def test_a_server_has_minimal_privileges_and_time_to_drain(name: str) -> None:
    service = services()[name]

    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    drain = settings.Settings.of().process.drain_timeout
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain + 10


@pytest.mark.parametrize("name", list(services()))
def test_the_log_of_a_container_is_bounded(name: str) -> None:
    logging = services()[name]["logging"]

    assert logging["driver"] == "local"
    assert {"max-size", "max-file"} <= set(logging["options"])


def test_the_files_that_compose_mounts_and_builds_exist() -> None:
    volumes = {
        volume for name in FILES for volume in yaml.safe_load((ROOT / name).read_text())["volumes"]
    }
    for service in services().values():
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in volumes, source
    for name in SERVER:
        build = services()[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).exists()


def test_prometheus_scrapes_the_servers() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]

    assert set(lookup["names"]) == set(SERVER)
    assert lookup["port"] == settings.Settings.of().listen.port
