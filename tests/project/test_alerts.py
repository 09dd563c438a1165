"""The alert rules, by ``promtool test rules``: when each of them fires, and when none does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from llama_gguf.telemetry.metric_table import METRICS

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"
# All samples are this far apart, and all rules are evaluated as often. Values are written as for
# promtool: "0x3" is 0 0 0 0, "0+2x3" is 0 2 4 6, _ is no sample, stale the end of a series.
STEP: Final = "15s"
PER_MINUTE: Final = 4
PROBES: Final = 'route="/health", method="GET"'
CHAT: Final = 'route="/v1/chat/completions", method="POST"'

Series = dict[str, str]


def target(name: str, values: str, labels: str = "", *, instance: str = "a") -> dict[str, str]:
    ours = f'job="llama-gguf", instance="{instance}"' + (f", {labels}" if labels else "")
    return {f"{name}{{{ours}}}": values}


def time_to_first_token(values: str, le: str) -> dict[str, str]:
    labels = f'gen_ai_operation_name="chat", le="{le}"'
    return target("gen_ai_server_time_to_first_token_seconds_bucket", values, labels)


def counters(values: str) -> dict[str, str]:
    """Every counter that an alert uses."""
    return {
        **target("llama_gguf_backend_restarts_total", values, 'reason="crash"'),
        **target("llama_gguf_backend_failures_total", values, 'kind="broken_off"'),
        **target("llama_gguf_replays_total", values, 'kind="broken_off"'),
        **target("llama_gguf_requests_total", values, f'{CHAT}, status="200"'),
        **target("llama_gguf_requests_total", values, f'{CHAT}, status="502"'),
        **target("llama_gguf_requests_total", values, f'{PROBES}, status="503"'),
        **target("llama_gguf_rejections_total", values, 'reason="queue_full"'),
        **target("llama_gguf_rejections_total", values, 'reason="queue_timeout"'),
        **target("llama_gguf_auth_failures_total", values, 'reason="invalid_api_key"'),
        **time_to_first_token(values, "10"),
        **time_to_first_token(values, "+Inf"),
    }


def engine(up: str, *, asleep: str = "0x480") -> dict[str, str]:
    return {
        **target("llama_gguf_backend_up", up),
        **target("llama_gguf_backend_state", asleep, 'state="asleep"'),
    }


def replica(up: str, state: str = "ready", values: str = "1x480") -> dict[str, str]:
    return {
        **target("llama_gguf_replica_up", up, 'replica="1"'),
        **target("llama_gguf_replica_state", values, f'replica="1", state="{state}"'),
    }


RUNS: Final[Series] = {
    **target("up", "1x480"),
    **target("process_start_time_seconds", "1000x480"),
}
HEALTHY: Final[Series] = {
    **RUNS,
    **engine("1x480"),
    **counters("0x480"),
    **target("llama_gguf_backend_degraded", "0x480"),
    **target("llama_gguf_queue_depth", "0x480"),
    **target("llama_gguf_slots", "4x480"),
    **target("llama_gguf_keys_last_reload_successful", "1x480"),
    **target("llama_gguf_keys_loaded", "1x480"),
    **target("llama_gguf_keys_next_expiry_seconds", "864000x480"),
}
"""Two hours without a request."""


@dataclass(frozen=True)
class Case:
    series: Series
    fires: Mapping[int, tuple[str, ...]]
    """All alerts that fire, by minute."""


def quiet(series: Series) -> Case:
    return Case(series, dict.fromkeys((1, 5, 11, 16, 21, 31, 45), ()))


# Two minutes of loading, death, and half a minute until the next start.
_CRASH_LOOP: Final[Series] = {
    **target("up", " ".join(["1x7 0 0"] * 30)),
    **target("process_start_time_seconds", " ".join(f"{n}x7 stale _" for n in range(30))),
    **engine(" ".join(["0x7 stale _"] * 30)),
}
# Another one takes over; this one drains for half a minute and is gone.
_REPLACED: Final[Series] = {
    **{name.replace('"a"', '"b"'): values for name, values in HEALTHY.items()},
    **target("up", "1x42 stale"),
    **engine("1x40 0 0 stale", asleep="0x42 stale"),
}

CASES: Final[Mapping[str, Case]] = {
    # none
    "no traffic": quiet(HEALTHY),
    "no metrics but those of the process": quiet(RUNS),
    "counters that are reset every ten minutes": quiet(
        HEALTHY | counters(" ".join(["9999x39"] + ["0x39"] * 11))
    ),
    "traffic": quiet(
        HEALTHY
        | target("llama_gguf_requests_total", "0+9x480", f'{CHAT}, status="200"')
        | time_to_first_token("0+9x480", "10")
        | time_to_first_token("0+9x480", "+Inf")
    ),
    "an engine stopped by IDLE_STOP": quiet(HEALTHY | engine("1x40 0x440", asleep="0x40 1x440")),
    "an engine that wakes and loads for eight minutes": quiet(
        HEALTHY | engine("0x272 1x208", asleep="1x240 0x240")
    ),
    "an engine that was stopped often by IDLE_STOP": quiet(
        HEALTHY | target("llama_gguf_backend_restarts_total", "0+1x480", 'reason="idle"')
    ),
    "probes of an engine that loads": quiet(
        HEALTHY
        | target("llama_gguf_requests_total", "0+9x480", f'{PROBES}, status="503"')
        | target("llama_gguf_requests_total", "0+1x480", f'{CHAT}, status="200"')
    ),
    "a replaced instance": quiet(_REPLACED),
    "a reload that fails once": quiet(
        HEALTHY | target("llama_gguf_keys_last_reload_successful", "1x40 0 1x439")
    ),
    # the process
    "a target that cannot be scraped": Case(
        target("up", "1x20 0x60"), {6: (), 8: ("LlamaGgufGone",)}
    ),
    "no target from the beginning": Case({}, {4: (), 6: ("LlamaGgufAbsent",)}),
    "a target that discovery drops": Case(
        target("up", "1x20 stale"), {9: (), 11: ("LlamaGgufAbsent",)}
    ),
    "a process that dies before it serves": Case(
        HEALTHY | _CRASH_LOOP,
        {5: (), 30: ("LlamaGgufEngineNotReady", "LlamaGgufProcessRestarts")},
    ),
    # the engine
    "a model that loads for too long": Case(
        HEALTHY | engine("0x480"), {9: (), 11: ("LlamaGgufEngineNotReady",)}
    ),
    "an engine that does not come back": Case(
        HEALTHY | engine("1x120 0x360"), {39: (), 41: ("LlamaGgufEngineNotReady",)}
    ),
    "an engine that wakes and cannot load": Case(
        HEALTHY | engine("0x480", asleep="1x40 0x440"), {19: (), 21: ("LlamaGgufEngineNotReady",)}
    ),
    "two deaths of the engine": quiet(
        HEALTHY | target("llama_gguf_backend_restarts_total", "0x40 1x4 2x435", 'reason="crash"')
    ),
    "three deaths of the engine": Case(
        HEALTHY | target("llama_gguf_backend_restarts_total", "0x40 3x439", 'reason="crash"'),
        {10: (), 11: ("LlamaGgufEngineRestarts",), 42: ()},
    ),
    "an engine that has lost a device for half an hour": Case(
        HEALTHY | target("llama_gguf_backend_degraded", "0x40 1x120 0x320"),
        {10: (), 14: (), 16: ("LlamaGgufEngineDegraded",), 42: ()},
    ),
    "six failures of the engine": Case(
        HEALTHY | target("llama_gguf_backend_failures_total", "0x40 6x439", 'kind="broken_off"'),
        {10: (), 11: ("LlamaGgufAnswersBreakOff",), 22: ()},
    ),
    "six failures of the engine that its clients did not notice": quiet(
        HEALTHY
        | target("llama_gguf_backend_failures_total", "0x40 6x439", 'kind="broken_off"')
        | target("llama_gguf_replays_total", "0x40 6x439", 'kind="broken_off"')
    ),
    # a replica
    "a replica that serves": quiet(HEALTHY | replica("1x480")),
    "a replica that is down while others serve": Case(
        HEALTHY | replica("1x40 0x440", "unreachable"),
        {14: (), 16: ("LlamaGgufReplicaDown",)},
    ),
    "a replica that is asleep": quiet(HEALTHY | replica("0x480", "asleep")),
    "a replica with another model": Case(
        HEALTHY | replica("0x480", "mismatch"), {4: (), 6: ("LlamaGgufReplicaMismatch",)}
    ),
    "a replica that was ejected twice": quiet(
        HEALTHY
        | target("llama_gguf_replica_ejections_total", "0x40 2x439", 'replica="1", reason="errors"')
    ),
    "a replica that is ejected again and again": Case(
        HEALTHY
        | target(
            "llama_gguf_replica_ejections_total", "0x40 4x439", 'replica="1", reason="errors"'
        ),
        {10: (), 11: ("LlamaGgufReplicaEjected",), 22: ()},
    ),
    # shared limits
    "the store of shared limits is lost for a moment": quiet(
        HEALTHY | target("llama_gguf_shared_limits_up", "1x40 0x8 1x432")
    ),
    "the store of shared limits is lost": Case(
        HEALTHY | target("llama_gguf_shared_limits_up", "1x40 0x440"),
        {14: (), 16: ("LlamaGgufSharedLimitsDown",)},
    ),
    # requests
    "one request in ten fails": Case(
        HEALTHY
        | target("llama_gguf_requests_total", "0+9x480", f'{CHAT}, status="200"')
        | target("llama_gguf_requests_total", "0+1x480", f'{CHAT}, status="502"'),
        {9: (), 12: ("LlamaGgufErrors",), 45: ("LlamaGgufErrors",)},
    ),
    "more requests wait than run": Case(
        HEALTHY | target("llama_gguf_queue_depth", "5x480"), {9: (), 11: ("LlamaGgufQueueGrows",)}
    ),
    "one request is rejected because of load": Case(
        HEALTHY | target("llama_gguf_rejections_total", "0x40 1x439", 'reason="queue_full"'),
        {10: (), 11: ("LlamaGgufTurnsAway",), 22: ()},
    ),
    "one request in ten waits long for its first token": Case(
        HEALTHY
        | time_to_first_token("0+9x480", "10")
        | time_to_first_token("0+10x480", "20")
        | time_to_first_token("0+10x480", "+Inf"),
        {9: (), 12: ("LlamaGgufSlowFirstToken",)},
    ),
    # keys
    "a keys file that cannot be reloaded": Case(
        HEALTHY | target("llama_gguf_keys_last_reload_successful", "1x40 0x440"),
        {10: (), 12: ("LlamaGgufKeysNotReloaded",), 45: ("LlamaGgufKeysNotReloaded",)},
    ),
    "no keys, and a client with one": Case(
        HEALTHY
        | target("llama_gguf_keys_loaded", "0x480")
        | target("llama_gguf_auth_failures_total", "0x40 1x439", 'reason="invalid_api_key"'),
        {10: (), 11: ("LlamaGgufNoKeys",)},
    ),
    "a key that expires in two days": Case(
        HEALTHY | target("llama_gguf_keys_next_expiry_seconds", "172800x480"),
        {1: ("LlamaGgufKeyExpiresSoon",)},
    ),
    "two wrong keys a second": Case(
        HEALTHY | target("llama_gguf_auth_failures_total", "0+30x480", 'reason="invalid_api_key"'),
        {6: (), 9: ("LlamaGgufManyWrongKeys",)},
    ),
}


def as_test(name: str, case: Case) -> dict[str, object]:
    """As a test of promtool: it reports all firing alerts that differ."""
    return {
        "name": name,
        "interval": STEP,
        "input_series": [{"series": s, "values": v} for s, v in case.series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts
                ],
            }
            for minute, alerts in case.fires.items()
        ],
    }


@pytest.mark.processes
@pytest.mark.parametrize("name", CASES)
def test_these_alerts_fire_and_no_others(tmp_path: Path, name: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool on PATH: apt-get install prometheus")
    path = tmp_path / "test.yml"
    content = {"rule_files": [str(RULES)], "evaluation_interval": STEP}
    path.write_text(yaml.safe_dump(content | {"tests": [as_test(name, CASES[name])]}))

    done = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.processes
def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool on PATH: apt-get install prometheus")
    argv = ["promtool", "check", "config", str(RULES.with_name("prometheus.yml"))]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def test_each_alert_fires_in_a_case() -> None:
    fired = {alert for case in CASES.values() for alerts in case.fires.values() for alert in alerts}

    assert fired == {rule["alert"] for rule in rules()}


def test_the_alerts_use_existing_metrics_and_labels() -> None:
    labels = {metric.name: {"job", "instance", "le", *metric.labels} for metric in METRICS}
    labels |= {"up": {"job"}, "process_start_time_seconds": {"job"}}
    for rule in rules():
        used = re.findall(r"\b(up|(?:llama_gguf|gen_ai|process)_\w+)(?:{(.*?)})?", rule["expr"])
        assert used, rule["alert"]
        for name, matchers in used:
            known = labels[re.sub(r"_(total|bucket)$", "", name)]
            assert set(re.findall(r"(\w+)[=!]~?\"", matchers)) <= known, rule["alert"]
