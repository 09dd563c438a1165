"""Run engines on the machines of a Ray cluster: `up`, `status`, `down`.

Ray finds a machine with a free GPU for each engine, and another one when it dies. Between
two numbers, there are as many engines as the requests need, also none. Gateways with
PEERS=ray://HOST:PORT follow them. Run these commands on a machine of the cluster. Each
machine needs the same versions of llama-gguf, Ray and llama-server.

Examples:
  llama-gguf ray up hf:OWNER/NAME:Q4_K_M --replicas 0..8 --gpus 1
  llama-gguf ray status
  llama-gguf ray down
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llama_gguf import __version__
from llama_gguf.cli.arguments import add_model
from llama_gguf.cli.context import Context
from llama_gguf.cli.help_format import HelpFormatter
from llama_gguf.cli.terminal import echo, print_table
from llama_gguf.cluster.order import Order
from llama_gguf.cluster.scaling import Bounds
from llama_gguf.config.parsers import as_text
from llama_gguf.config.schema import MAX_REPLICAS
from llama_gguf.config.settings import USED_BY
from llama_gguf.engines.command import extra_args
from llama_gguf.engines.roster import DEFAULT_PORT
from llama_gguf.errors import UserError
from llama_gguf.models.wanted import is_fetchable

if TYPE_CHECKING:
    from llama_gguf.cluster.on_ray import Cluster, Machine

NOTHING_UP: Final = 3
LOOK_SECONDS: Final = 0.5
EXTRA_SECONDS: Final = 20.0
"""After DRAIN_TIMEOUT, for the engines to end."""
DEFAULT_IDLE_SECONDS: Final = 300.0
_OWN: Final = frozenset({"backend_api_key", "config_file", "drain_timeout"})
"""Settings of the command, not of the engines."""
_INSTALL: Final = """\
Ray is not installed. On each machine of the cluster:
  pip install 'llama-gguf-inference[ray,engine]'"""
_KEY: Final = """\
BACKEND_API_KEY is not set. Engines listen on the network, so they need a key that their gateways
know:
  export BACKEND_API_KEY=$(openssl rand -hex 32)"""

_Actions = argparse._SubParsersAction  # argparse has no public name for it


def add_arguments(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    up = _add_action(actions, "up", _up, "start engines, or scale them between other numbers")
    add_model(up, "model: a name that `pull` accepts, or a path that each machine has")
    up.add_argument(
        "--replicas",
        default="1",
        metavar="N|LEAST..MOST",
        help=f"number of engines, or the numbers between which they scale, up to {MAX_REPLICAS} "
        "[1]",
    )
    up.add_argument(
        "--gpus",
        metavar="N",
        help="GPUs of each engine, or a part of one, such as 0.5 [1 if the cluster has GPUs]",
    )
    up.add_argument(
        "--cpus",
        metavar="N",
        help="CPUs of each engine [1; without GPUs, those of the smallest machine]",
    )
    up.add_argument(
        "--idle",
        default=f"{DEFAULT_IDLE_SECONDS:g}",
        metavar="SECONDS",
        help=f"seconds without need after which an engine is stopped [{DEFAULT_IDLE_SECONDS:g}]",
    )
    up.add_argument(
        "--controller-port",
        default=str(DEFAULT_PORT),
        metavar="PORT",
        help=f"port of the head to which gateways connect [{DEFAULT_PORT}]",
    )
    status = _add_action(actions, "status", _status, "show the engines, and where they run")
    status.add_argument("--json", action="store_true", help="print JSON")
    _add_action(actions, "down", _down, "stop all engines, when their requests have ended")
    return [up]  # the others have no settings of engines


def _add_action(
    actions: _Actions[Any], name: str, run: Callable[..., int], text: str
) -> argparse.ArgumentParser:
    action: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=HelpFormatter
    )
    action.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="head of the cluster [RAY_ADDRESS, else the cluster of this machine]",
    )
    action.set_defaults(action=run, parser=action)
    return action


def run(arguments: argparse.Namespace, context: Context) -> int:
    action: Callable[[argparse.Namespace, Context], int] = arguments.action
    return action(arguments, context)


@contextmanager
def _cluster(arguments: argparse.Namespace, context: Context) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        raise UserError(_INSTALL)
    from llama_gguf.cluster import on_ray

    address = arguments.address or context.environ.get("RAY_ADDRESS", "")
    with on_ray.connected(address) as cluster:
        yield cluster


# up ---------------------------------------------------------------------------------------------


def _up(arguments: argparse.Namespace, context: Context) -> int:
    order = _order(arguments, context)
    with _cluster(arguments, context) as cluster:
        present = cluster.order()
        order = _placeable(order, cluster.machines, present)
        if present is not None:
            _check_change(present, order, has_key=cluster.has_key(order.key))
        cluster.start(order)
        facts = _wait_until_up(cluster, is_new=present is None)
    echo(_up_text(facts, order))
    return 0


def _order(arguments: argparse.Namespace, context: Context) -> Order:
    """What is ordered, as far as it does not depend on the cluster.

    Raises:
        UserError: an argument is invalid, or something is missing.
    """
    settings = context.settings
    model = settings.model.model_path or settings.model.model_name
    if not model:
        raise UserError("Specify a model, as in `llama-gguf ray up smollm2`.", 2)
    if not settings.upstream.backend_api_key:
        raise UserError(_KEY, 2)
    extra_args(settings.engine)  # mistakes are reported here
    chosen = {
        name: as_text(settings.value(name))
        for name in USED_BY["ray"]
        if context.sources[name] != "default" and name not in _OWN
    }
    is_path = bool(settings.model.model_path) or not is_fetchable(model)
    if is_path and os.path.isfile(model):
        chosen = {n: v for n, v in chosen.items() if n not in ("model_name", "model_path")}
        chosen["model_path"] = os.path.abspath(model)
    return Order(
        model=model,
        bounds=bounds_in(arguments.replicas),
        idle_seconds=_number("--idle", arguments.idle),
        gpus=-1.0 if arguments.gpus is None else _share("--gpus", arguments.gpus),
        cpus=-1.0 if arguments.cpus is None else _share("--cpus", arguments.cpus),
        port=_port(arguments.controller_port),
        drain_seconds=settings.process.drain_timeout,
        version=__version__,
        settings=chosen,
        key=settings.upstream.backend_api_key,
    )


def bounds_in(text: str) -> Bounds:
    """The numbers in N or LEAST..MOST.

    Raises:
        UserError: there are none.
    """
    match = re.fullmatch(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?", text)
    if match is not None:
        least, most = int(match[1]), int(match[2] or match[1])
        if least <= most and 1 <= most <= MAX_REPLICAS:
            return Bounds(least, most)
    raise UserError(
        f"--replicas={text} is invalid; must be a number up to {MAX_REPLICAS}, or two: 0..8",
        2,
    )


def _number(flag: str, text: str) -> float:
    if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,4})?", text):
        return float(text)
    raise UserError(f"{flag}={text} is invalid; must be a number", 2)


def _share(flag: str, text: str) -> float:
    """A number of devices; Ray divides only one of them."""
    number = _number(flag, text)
    if number > 1 and number != int(number):
        raise UserError(f"{flag}={text} is invalid; must be a whole number, or less than 1", 2)
    return number


def _port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 1 << 16:
        return int(text)
    raise UserError(f"--controller-port={text} is invalid; must be a port", 2)


def _placeable(order: Order, machines: list[Machine], present: Order | None = None) -> Order:
    """*order* with what each engine needs: as ordered, else as *present*, else by the machines.

    Raises:
        UserError: no machine has that.
    """
    most_gpus = max(machine.gpus for machine in machines)
    gpus, cpus = order.gpus, order.cpus
    if gpus < 0:
        gpus = min(most_gpus, 1.0) if present is None else present.gpus
    if cpus < 0:
        least_cpus = min((m.cpus for m in machines if m.cpus), default=1.0)
        usual = 1.0 if gpus else least_cpus
        cpus = usual if present is None else present.cpus
    for machine in machines:
        if machine.gpus >= gpus and machine.cpus >= cpus:
            return replace(order, gpus=gpus, cpus=cpus)
    if gpus and not most_gpus:
        raise UserError(
            f"--gpus {gpus:g}: Ray knows no GPU on any machine of the cluster. If there are some, "
            "start Ray with `ray start --num-gpus N` on their machines; --gpus 0 uses CPUs."
        )
    raise UserError(
        f"--gpus {gpus:g} --cpus {cpus:g}: no machine of the cluster has as many. They have:\n"
        + "\n".join(f"  {m.address}: {m.cpus:g} CPUs, {m.gpus:g} GPUs" for m in machines)
    )


def _check_change(present: Order, order: Order, *, has_key: bool) -> None:
    """Check that the engines that are up can be those of *order*.

    Raises:
        UserError: they cannot.
    """
    same = replace(
        order,
        bounds=present.bounds,
        idle_seconds=present.idle_seconds,
        port=present.port,
        drain_seconds=present.drain_seconds,
    ).to_fields()
    differences = [
        name
        for name, value in present.to_fields().items()
        if name not in {"settings", "key"} and value != same[name]
    ]
    differences += sorted(
        name.upper()
        for name in {*present.settings, *order.settings}
        if present.settings.get(name) != order.settings.get(name)
    )
    if not has_key:
        differences.append("BACKEND_API_KEY")
    if differences:
        raise UserError(
            f"{present.model} is up already, with other values: {', '.join(differences)}. "
            "Only the number of replicas, --idle and --controller-port can be changed. "
            "Take it down first: llama-gguf ray down"
        )


def _wait_until_up(
    cluster: Cluster, *, is_new: bool, sleep: Callable[[float], None] = time.sleep
) -> Mapping[str, Any]:
    """Show what happens until the first engine is ready.

    Raises:
        UserError: the engines cannot be started.
    """
    shown = ""
    while True:
        facts = cluster.facts()
        if facts is not None and facts["error"]:
            cluster.end_controller()
            raise UserError(facts["error"])
        if facts is not None:
            engines = facts["engines"]
            if not is_new or any(engine["state"] == "ready" for engine in engines):
                return facts
            text = "; ".join(_progress(engine) for engine in engines)
            if text != shown:
                shown = text
                sys.stderr.write(f"{text}\n")
            if engines and all(engine["failures"] for engine in engines):
                _take_down(cluster, facts)
                raise UserError(f"The model cannot be served. {engines[0]['detail']}")
        sleep(LOOK_SECONDS)


def _progress(engine: Mapping[str, Any]) -> str:
    where = f" on {engine['machine']}" if engine["machine"] else ""
    detail = f": {engine['detail']}" if engine["detail"] else ""
    return f"engine {engine['number']}: {engine['state']}{where}{detail}"


def _up_text(facts: Mapping[str, Any], order: Order) -> str:
    return (
        f"{order.model} is up. Replicas: {order.bounds}, each with --gpus {order.gpus:g} "
        f"--cpus {order.cpus:g}.\n"
        "Start a gateway, here or on another machine, with the same BACKEND_API_KEY:\n"
        f"  PEERS={shlex.quote(facts['gateway_address'])} llama-gguf gateway\n"
        "`llama-gguf ray status` shows the engines, and `llama-gguf ray down` stops them."
    )


# status, down -----------------------------------------------------------------------------------


def _status(arguments: argparse.Namespace, context: Context) -> int:
    with _cluster(arguments, context) as cluster:
        facts = cluster.facts()
    if arguments.json:
        echo(json.dumps(facts or {"engines": []}, indent=1))
    elif facts is None:
        echo("Nothing is up. Start engines: llama-gguf ray up MODEL")
    else:
        _print(facts)
    return 0 if facts is not None else NOTHING_UP


def _print(facts: Mapping[str, Any]) -> None:
    bounds = Bounds(facts["least"], facts["most"])
    gateways = facts["gateways"]
    rows = {
        "model": facts["model"],
        "replicas": f"{facts['wanted']} wanted, of {bounds}; stopped after "
        f"{facts['idle_seconds']:g} s without need",
        "gateways": f"{len(gateways)}, with {facts['queued']} waiting requests; "
        f"PEERS={facts['gateway_address']}",
        "version": f"llama-gguf {facts['version']}",
    }
    others = {each["version"] for each in gateways} - {facts["version"]}
    if others:
        rows["version"] += f"; there are gateways with {', '.join(sorted(others))}"
    if facts["error"]:
        rows["error"] = facts["error"]
    echo("\n".join(f"{name:<9} {text}" for name, text in rows.items()))
    if facts["engines"]:
        echo("")
        print_table(
            ("ENGINE", "STATE", "ADDRESS", "RUNNING", "DETAIL"),
            [
                (
                    str(engine["number"]),
                    engine["state"],
                    engine["address"] or engine["machine"] or "-",
                    f"{engine['running']} of {engine['slots']}" if engine["slots"] else "-",
                    engine["detail"] or engine["model"],
                )
                for engine in facts["engines"]
            ],
        )


def _down(arguments: argparse.Namespace, context: Context) -> int:
    with _cluster(arguments, context) as cluster:
        facts = cluster.facts()
        if facts is None:
            cluster.kill_engines()
        else:
            _take_down(cluster, facts, drain_seconds=context.settings.process.drain_timeout)
    echo("Nothing is up." if facts is None else "All engines are stopped.")
    return NOTHING_UP if facts is None else 0


def _take_down(cluster: Cluster, facts: Mapping[str, Any], *, drain_seconds: float = 0.0) -> None:
    if facts["engines"]:
        cluster.take_down()
        until = time.monotonic() + drain_seconds + EXTRA_SECONDS
        while time.monotonic() < until:
            now = cluster.facts()
            if now is None or not now["engines"]:
                break
            time.sleep(LOOK_SECONDS)
        cluster.wait_for_engines(EXTRA_SECONDS)
    cluster.end_controller()
    cluster.kill_engines()
