"""`llama-gguf ray` without Ray: what it orders, refuses and shows. With Ray: `make test-ray`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from llama_gguf.cli import ray
from llama_gguf.cli.command import _arguments
from llama_gguf.cli.context import read, settings_in
from llama_gguf.cli.main import COMMANDS, main
from llama_gguf.cluster.order import Order
from llama_gguf.cluster.scaling import Bounds
from llama_gguf.errors import UserError
from tests.cluster.test_order import ORDER
from tests.support.keys import BACKEND_KEY

ENVIRON = {"BACKEND_API_KEY": BACKEND_KEY}


@dataclass
class Machine:
    address: str
    cpus: float
    gpus: float = 0.0


TWO = [Machine("10.0.0.1", 4.0), Machine("10.0.0.2", 8.0)]
GPUS = [Machine("10.0.0.1", 0.0), Machine("10.0.0.2", 8.0, 2.0)]


def placeable(machines: Sequence[Machine], *, gpus: float = -1.0, cpus: float = -1.0) -> Order:
    return ray._placeable(replace(ORDER, gpus=gpus, cpus=cpus), cast("Any", machines))


@pytest.mark.parametrize(
    ("machines", "needs", "expected"),
    [
        (TWO, {}, (0.0, 4.0)),  # one engine on each machine
        (TWO, {"cpus": 2.0}, (0.0, 2.0)),
        (GPUS, {}, (1.0, 1.0)),
        (GPUS, {"gpus": 0.5}, (0.5, 1.0)),
        (GPUS, {"gpus": 0.0}, (0.0, 8.0)),  # a head without CPUs gets no engine
    ],
)
def test_an_engine_gets_a_gpu_if_there_are_some_else_the_cpus_of_the_smallest_machine(
    machines: Sequence[Machine], needs: dict[str, float], expected: tuple[float, float]
) -> None:
    found = placeable(machines, **needs)

    assert (found.gpus, found.cpus) == expected


def test_engines_that_are_up_keep_what_they_have_when_machines_join() -> None:
    up = replace(ORDER, gpus=0.0, cpus=8.0)
    found = ray._placeable(replace(ORDER, gpus=-1.0, cpus=-1.0), cast("Any", GPUS + TWO), up)

    assert (found.gpus, found.cpus) == (0.0, 8.0)


@pytest.mark.parametrize(
    ("machines", "needs", "advice"),
    [
        (TWO, {"gpus": 1.0}, "--gpus 0 uses CPUs"),
        (TWO, {"cpus": 9.0}, "10.0.0.2: 8 CPUs, 0 GPUs"),
        (GPUS, {"gpus": 3.0}, "10.0.0.2: 8 CPUs, 2 GPUs"),
    ],
)
def test_what_no_machine_has_is_refused(
    machines: Sequence[Machine], needs: dict[str, float], advice: str
) -> None:
    with pytest.raises(UserError, match=advice):
        placeable(machines, **needs)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("3", Bounds(3, 3)), ("0..8", Bounds(0, 8)), ("1..1", Bounds(1, 1)), ("64", Bounds(64, 64))],
)
def test_replicas_are_one_number_or_two(text: str, bounds: Bounds) -> None:
    assert ray.bounds_in(text) == bounds
    assert Bounds(0, 8) == ray.bounds_in(str(Bounds(0, 8)))


@pytest.mark.parametrize("text", ["", "0", "0..0", "8..2", "65", "-1", "1..", "1...2", "auto"])
def test_other_replicas_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"0\.\.8"):
        ray.bounds_in(text)


@pytest.mark.parametrize(
    ("words", "environ", "message"),
    [
        (["up"], ENVIRON, "llama-gguf ray up smollm2"),
        (["up", "m"], {}, "export BACKEND_API_KEY="),
        (["up", "m", "--gpus", "1.5"], ENVIRON, "--gpus=1.5"),
        (["up", "m", "--cpus", "many"], ENVIRON, "--cpus=many"),
        (["up", "m", "--idle", "-1"], ENVIRON, "--idle=-1"),
        (["up", "m", "--controller-port", "0"], ENVIRON, "--controller-port=0"),
        (["up", "m", "--extra-args", "--api-key x"], ENVIRON, "EXTRA_ARGS"),
    ],
)
def test_wrong_use_is_refused_with_what_to_do(
    words: list[str], environ: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ray", *words], environ) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("action", ["up", "status", "down"])
def test_without_ray_the_advice_is_how_to_install_it(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["smollm2"] if action == "up" else []

    assert main(["ray", action, *words], ENVIRON) == 1
    assert "pip install 'llama-gguf-inference[ray,engine]'" in capsys.readouterr().err


def test_an_order_has_the_settings_that_are_set_and_a_path_that_each_machine_can_read(
    tmp_path: Path,
) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"")
    words = ["ray", "up", str(model), "--ctx", "4096", "--replicas", "0..2"]
    arguments = _arguments(words, COMMANDS)
    order = ray._order(
        arguments, read(settings_in(arguments), {**ENVIRON, "NGL": "5", "PORT": "1"})
    )

    assert order.settings == {"ctx": "4096", "ngl": "5", "model_path": str(model)}
    assert (order.bounds, order.key) == (Bounds(0, 2), BACKEND_KEY)


def test_what_is_up_can_be_scaled_and_not_become_something_else() -> None:
    scaled = replace(ORDER, bounds=Bounds(2, 2), idle_seconds=1.0, port=9, key="")
    ray._check_change(scaled, ORDER, has_key=True)
    other = replace(ORDER, model="n", settings={"ctx": "1", "ngl": "2"}, version="2")

    with pytest.raises(UserError, match=r"model, version, CTX, NGL, BACKEND_API_KEY") as refused:
        ray._check_change(ORDER, other, has_key=False)
    assert "llama-gguf ray down" in str(refused.value)


ENGINE: dict[str, Any] = {
    "number": 0,
    "state": "ready",
    "machine": "10.0.0.1",
    "address": "10.0.0.1:8080",
    "running": 1,
    "slots": 4,
    "model": "m",
    "engine_version": "1",
    "detail": "",
    "failures": 0,
    "log_file": "",
}
FACTS: dict[str, Any] = {
    "gateway_address": "ray://10.0.0.1:8002",
    "error": "",
    "model": "m",
    "version": "1",
    "least": 0,
    "most": 8,
    "wanted": 1,
    "idle_seconds": 300.0,
    "gpus": 1.0,
    "cpus": 1.0,
    "queued": 2,
    "engines": [ENGINE],
    "gateways": [{"address": "10.0.0.3", "version": "1"}],
}


def facts(**changes: Any) -> dict[str, Any]:
    """With *changes* of the engine, or of everything."""
    found = copy.deepcopy(FACTS)
    for name, value in changes.items():
        (found["engines"][0] if name in ENGINE else found)[name] = value
    return found


@dataclass
class FakeCluster:
    """Whose state is one after the other of ``history``."""

    history: list[dict[str, Any] | None]
    done: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any] | None:
        return self.history.pop(0) if len(self.history) > 1 else self.history[0]

    def take_down(self) -> None:
        self.done.append("take down")

    def wait_for_engines(self, seconds: float) -> None:
        self.done.append("wait")

    def end_controller(self) -> None:
        self.done.append("end controller")

    def kill_engines(self) -> None:
        self.done.append("kill engines")


def wait(cluster: FakeCluster, *, is_new: bool = True) -> Any:
    return ray._wait_until_up(cast("Any", cluster), is_new=is_new, sleep=lambda _: None)


def test_up_shows_each_step_once_until_the_first_engine_is_ready(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fetching = facts(state="starting", detail="fetching m: 10 % of 1 GB")
    history = [None, fetching, fetching, facts(state="loading"), facts()]
    wait(FakeCluster(history))

    assert capsys.readouterr().err.splitlines() == [
        "engine 0: starting on 10.0.0.1: fetching m: 10 % of 1 GB",
        "engine 0: loading on 10.0.0.1",
    ]


def test_scaling_what_is_up_does_not_wait_for_an_engine() -> None:
    assert wait(FakeCluster([facts(engines=[])]), is_new=False)["engines"] == []


def test_a_model_that_cannot_be_served_is_taken_down_with_its_reason() -> None:
    failed = facts(state="backoff", failures=1, detail="10.0.0.1: no such model")
    cluster = FakeCluster([failed, failed, facts(engines=[])])

    with pytest.raises(UserError, match=r"10\.0\.0\.1: no such model"):
        wait(cluster)
    assert cluster.done == ["take down", "wait", "end controller", "kill engines"]


def test_a_port_that_is_taken_ends_up_with_its_reason() -> None:
    cluster = FakeCluster([facts(error="port 8002 is taken")])

    with pytest.raises(UserError, match="port 8002 is taken"):
        wait(cluster)
    assert cluster.done == ["end controller"]


def test_status_is_a_table_with_what_gateways_need(capsys: pytest.CaptureFixture[str]) -> None:
    ray._print(facts(gateways=[{"address": "10.0.0.3", "version": "0.9"}]))
    text = capsys.readouterr().out

    assert "PEERS=ray://10.0.0.1:8002" in text
    assert "1 wanted, of 0..8" in text
    assert "there are gateways with 0.9" in text
    assert text.splitlines()[-1].split() == ["0", "ready", "10.0.0.1:8080", "1", "of", "4", "m"]


def test_status_shows_why_an_engine_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    waits = {"machine": "", "address": "", "slots": None, "detail": "Waiting for a GPU."}
    ray._print(facts(state="starting", **waits))

    assert "Waiting for a GPU." in capsys.readouterr().out
