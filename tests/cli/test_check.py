from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.cli.main import main
from llama_gguf.engines.builds import OLDEST_TESTED
from llama_gguf.engines.machine import look
from llama_gguf.values import replace
from tests.support.certificates import Pair, issue
from tests.support.gguf_files import gguf
from tests.support.processes import row_of_ports
from tests.support.rpc import free_servers

pytestmark = pytest.mark.processes

KEY = "sk-Zq8vN2xLw5TfR7mB"


@dataclass
class Machine:
    """A machine on which `serve` can start, until a test changes that."""

    folder: Path
    environ: dict[str, str]

    @property
    def keys_file(self) -> Path:
        return self.folder / "api_keys.txt"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho 'version: 4711 (abc)'\n")
    engine.chmod(0o755)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").write_bytes(gguf())
    (tmp_path / "api_keys.txt").write_text(f"alice:{KEY}\n")
    (tmp_path / "api_keys.txt").chmod(0o600)
    port = row_of_ports(4)  # the last one is that of a second replica
    environ = {
        "PATH": os.defpath,
        "DATA_DIR": str(tmp_path),
        "LLAMA_SERVER": str(engine),
        "MODEL_NAME": "m.gguf",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_HEALTH": str(port + 1),
        "PORT_BACKEND": str(port + 2),
    }
    return Machine(tmp_path, environ)


Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(machine: Machine, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs ``check --json`` with additional variables; returns status and findings by subject."""

    def check(*argv: str, **environ: str) -> tuple[int, dict[str, Any]]:
        status = main(["check", "--json", *argv], machine.environ | environ)
        output = json.loads(capsys.readouterr().out)
        assert output["ok"] == (status == 0)
        return status, {c["subject"]: c for c in output["checks"]}

    return check


def wrong(checks: dict[str, Any]) -> dict[str, str]:
    return {subject: c["text"] for subject, c in checks.items() if not c["ok"]}


# No problems --------------------------------------------------------------------------------------


def test_without_problems_success_is_reported(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check"], machine.environ) == 0

    output = capsys.readouterr()
    assert output.out.endswith("No problems found: `llama-gguf serve` can start.\n")
    assert "wrong" not in output.out
    assert output.err == ""


def test_model_engine_ports_and_keys_are_shown(machine: Machine, check: Check) -> None:
    status, checks = check()

    assert status == 0
    assert checks["model"]["text"].startswith(f"{machine.folder}/models/m.gguf (llama")
    assert "llama-server (LLAMA_SERVER), version 4711 (abc): " in checks["engine"]["text"]
    assert checks["PORT"]["text"] == f"127.0.0.1:{machine.environ['PORT']} is free"
    assert checks["keys"]["text"] == f"1 in {machine.keys_file}"
    assert checks["extra args"]["text"] == "none"
    assert {"machine", "gpu", "memory", "disk", "PORT_HEALTH", "PORT_BACKEND"} <= checks.keys()


def test_nothing_is_created_or_changed(machine: Machine, check: Check) -> None:
    before = sorted(machine.folder.rglob("*"))

    check()
    check(DATA_DIR=str(machine.folder / "new"))

    assert sorted(machine.folder.rglob("*")) == before


def test_a_model_that_serve_would_fetch_is_not_missing(check: Check) -> None:
    status, checks = check("smollm2")

    assert status == 0
    assert checks["model"]["text"].startswith("smollm2 will be fetched into ")


def test_without_authentication_keys_are_not_missing(machine: Machine, check: Check) -> None:
    machine.keys_file.unlink()

    status, checks = check(AUTH_ENABLED="false")

    assert status == 0
    assert "any client that can reach the port can use the model" in checks["keys"]["text"]


# Settings -----------------------------------------------------------------------------------------


def test_every_setting_is_shown_with_value_and_source(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "--all", "--max-queue-size", "3"], machine.environ | {"CORS_ORIGINS": "*"})

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["MAX_QUEUE_SIZE", "3", "flag"] in rows
    assert ["CORS_ORIGINS", "*", "environment"] in rows
    assert ["AUTH_KEYS_FILE", str(machine.keys_file), "default"] in rows
    assert ["REQUEST_TIMEOUT", "300", "default"] in rows


def test_the_model_of_the_command_line_is_not_shown_as_a_default(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    del machine.environ["MODEL_NAME"]

    assert main(["check", "m.gguf", "--json"], machine.environ) == 0

    output = json.loads(capsys.readouterr().out)["settings"]["MODEL_NAME"]
    assert output["value"] == "m.gguf"
    assert output["source"] != "default"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_secrets_are_masked(
    machine: Machine, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", *flags], machine.environ | {"BACKEND_API_KEY": "very-secret"})

    output = "".join(capsys.readouterr())
    assert "very-secret" not in output
    assert KEY not in output
    assert "********" in output


def test_a_value_of_any_length_is_complete_in_a_pipe(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--override-kv " + "x" * 250

    assert main(["check"], machine.environ | {"EXTRA_ARGS": words}) == 0

    assert words in capsys.readouterr().out


# Problems -----------------------------------------------------------------------------------------


def test_an_invalid_setting_exits_with_2(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check"], machine.environ | {"PORT": "0"}) == 2

    assert "PORT='0' is invalid" in capsys.readouterr().err


def test_problems_come_first_and_each_is_reported_once(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.keys_file.unlink()

    assert main(["check", "no-such.gguf"], machine.environ | {"EXTRA_ARGS": "'"}) == 1

    output = capsys.readouterr()
    assert output.out.startswith("3 problems to fix:\n- extra args: EXTRA_ARGS cannot be split")
    first, _, rest = output.out.partition("\n\n")
    assert "\n- model: There is no model no-such.gguf." in first
    assert "  m.gguf  0.0 MB\n" in first
    assert f"\n- keys: no keys in {machine.keys_file}: create one with `llama-gguf keys" in first
    assert not any(line.split()[0] in {"model", "keys"} for line in rest.splitlines() if line)
    assert "extra args" not in rest
    assert rest.endswith("\n3 problems found: `llama-gguf serve` cannot start.\n")
    assert output.err == ""


def test_only_settings_that_differ_from_their_default_are_shown(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    config = machine.folder / "c.toml"
    config.write_text("max_queue_size = 7\n")

    main(["check", "--config", str(config)], machine.environ)

    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines()]
    assert ["MAX_QUEUE_SIZE", "7", str(config)] in rows
    assert ["PORT", machine.environ["PORT"], "environment"] in rows
    assert "REQUEST_TIMEOUT" not in output
    assert "other settings have their defaults; --all lists them." in output


def test_a_context_that_llama_server_rounds_up_is_explained(check: Check) -> None:
    text = check(CTX="100", PARALLEL="1")[1]["context"]["text"]

    assert text.startswith("1 slot has 256 tokens; a request may use ")
    assert "(CTX=100, rounded up" in text
    assert "rounded" not in check(CTX="512", PARALLEL="1")[1]["context"]["text"]


def test_a_context_left_to_llama_server_is_not_guessed(check: Check) -> None:
    checks = check(CTX="auto", NGL="auto")[1]

    assert "only known when llama-server has started" in checks["context"]["text"]
    assert checks["context"]["ok"]


def test_a_corrupt_model_is_a_problem(machine: Machine, check: Check) -> None:
    (machine.folder / "models" / "m.gguf").write_bytes(gguf()[:-8])

    status, checks = check()

    assert status == 1
    assert wrong(checks).keys() == {"model"}


def test_a_missing_engine_is_a_problem(check: Check) -> None:
    status, checks = check(LLAMA_SERVER="/nowhere/llama-server")

    assert status == 1
    assert "LLAMA_SERVER=/nowhere/llama-server does not exist" in wrong(checks)["engine"]


def test_an_engine_that_does_not_run_is_a_problem(machine: Machine, check: Check) -> None:
    Path(machine.environ["LLAMA_SERVER"]).write_text("#!/bin/sh\nexit 1\n")

    status, checks = check()

    assert status == 1
    assert "does not run: try `" in wrong(checks)["engine"]


@pytest.mark.parametrize("variable", ["PORT", "PORT_HEALTH", "PORT_BACKEND"])
def test_a_port_in_use_is_a_problem(machine: Machine, check: Check, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(machine.environ[variable])))
        taken.listen()

        status, checks = check()

    assert status == 1
    assert wrong(checks).keys() == {variable}
    assert "Address already in use" in wrong(checks)[variable]
    assert f"Process {os.getpid()} uses the port: " in wrong(checks)[variable]


def test_a_port_of_a_running_serve_is_reported_as_such(machine: Machine, check: Check) -> None:
    port = machine.environ["PORT"]
    code = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[3]))); "
        "print('listens', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, "/opt/bin/llama-gguf", "serve", port]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as serve:
        assert serve.stdout is not None
        serve.stdout.readline()

        _, checks = check()
        serve.communicate(timeout=30)

    assert f"Process {serve.pid} of a running `serve` uses the port." in wrong(checks)["PORT"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("PORT", "PORT_HEALTH"), ("PORT", "PORT_BACKEND"), ("PORT_HEALTH", "PORT_BACKEND")],
)
def test_one_port_for_two_purposes_is_a_problem(
    machine: Machine, check: Check, one: str, other: str
) -> None:
    status, checks = check(**{other: machine.environ[one]})

    assert status == 1
    assert wrong(checks).keys() == {"ports"}
    assert f"{one} and {other} have the same port, " in wrong(checks)["ports"]


def test_with_a_unix_socket_the_engines_port_is_not_needed(machine: Machine, check: Check) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(machine.environ["PORT_BACKEND"])))
        taken.listen()

        status, checks = check(
            BACKEND_SOCKET=str(machine.folder / "engine.sock"),
            PORT_BACKEND=machine.environ["PORT"],
        )

    assert wrong(checks) == {}
    assert status == 0


# Memory, GPUs and flags ---------------------------------------------------------------------------

HELP = "flags:\\n-c,    --ctx-size N      size\\n--metrics    more\\n"


def engine_with(machine: Machine, *devices: str) -> None:
    """An engine that knows a few flags and can use the given GPUs."""
    listed = "".join(f"  {device}\\n" for device in devices)
    Path(machine.environ["LLAMA_SERVER"]).write_text(
        '#!/bin/sh\ncase "$*" in\n'
        "--version) echo 'version: 4711 (abc)';;\n"
        f"--help) printf '{HELP}';;\n"
        f"*--list-devices) printf 'Available devices:\\n{listed}';;\n"
        "esac\n"
    )


def test_an_old_engine_is_noted_with_what_to_do(check: Check) -> None:
    status, checks = check()

    assert status == 0
    assert checks["engine's age"]["level"] == "note"
    assert "build 4711 is older than" in checks["engine's age"]["text"]
    assert "newer llama.cpp" in checks["engine's age"]["text"]


def test_a_build_that_is_tested_is_shown_as_such(machine: Machine, check: Check) -> None:
    path = Path(machine.environ["LLAMA_SERVER"])
    path.write_text(f"#!/bin/sh\necho 'version: {OLDEST_TESTED} (abc)'\n")

    _, checks = check()

    assert f"version {OLDEST_TESTED} (abc): one of those tested" in checks["engine"]["text"]
    assert "engine's age" not in checks


def test_the_required_memory_is_shown_with_its_calculation(check: Check) -> None:
    checks = check()[1]

    assert checks["memory needed"]["text"].startswith(
        "5.5 MB: model 0.0 MB + KV cache 1.0 MB (2 layers x 16384 tokens)"
    )
    assert checks["RAM"]["ok"]


def test_a_variable_that_the_engine_rejects_is_a_problem(machine: Machine, check: Check) -> None:
    Path(machine.environ["LLAMA_SERVER"]).write_text(
        "#!/bin/sh\n"
        'test -z "${LLAMA_ARG_N_PARALLEL-}" || { echo '
        "'error while handling environment variable \"LLAMA_ARG_N_PARALLEL\": stoi'; exit 1; }\n"
        "echo 'version: 4711 (abc)'\n"
    )

    assert wrong(check(LLAMA_ARG_N_PARALLEL="many")[1]) == {
        "environment": 'llama-server rejects the environment variable "LLAMA_ARG_N_PARALLEL": '
        "stoi. Correct or unset it."
    }
    assert check(LLAMA_ARG_N_PARALLEL="")[0] == 0


def test_rpc_servers_that_cannot_be_used_are_reported(machine: Machine, check: Check) -> None:
    with free_servers(1) as (address,):
        engine_with(machine, f"RPC0: {address} (600 MiB, 600 MiB free)")
        both = check(LLAMA_ARG_RPC=f"{address},127.0.0.1:1")[1]
        one = check(LLAMA_ARG_RPC=address)[1]
        status, unreadable = check(EXTRA_ARGS="--rpc 127.0.0.1")

    assert both["RPC servers"]["level"] == "note"
    assert both["RPC servers"]["text"].startswith("127.0.0.1:1: connection refused. ")
    assert "RPC servers" not in one
    assert one["VRAM"]["text"].endswith(f" of 629.1 MB free on RPC0 ({address})")
    assert status == 1
    assert wrong(unreadable)["RPC servers"].startswith("127.0.0.1: ")


def test_replicas_with_rpc_servers_are_a_problem(machine: Machine, check: Check) -> None:
    engine_with(machine)

    found = wrong(check(LLAMA_ARG_RPC="127.0.0.1:1", REPLICAS="2")[1])

    assert found["replicas"].startswith("REPLICAS=2 cannot share RPC servers")


def test_a_device_that_is_not_there_is_a_problem(machine: Machine, check: Check) -> None:
    engine_with(machine, "CUDA0: Small card (600 MiB, 600 MiB free)")

    assert wrong(check(LLAMA_ARG_DEVICE="CUDA0,CUDA1")[1]) == {
        "--device": "llama-server has no CUDA1: it has CUDA0"
    }
    assert wrong(check(LLAMA_ARG_DEVICE="none")[1]) == {}


@pytest.mark.parametrize(
    "environ", [{"EXTRA_ARGS": "--parallel 257"}, {"LLAMA_ARG_N_PARALLEL": "257"}], ids=str
)
def test_more_slots_than_llama_server_can_have_are_a_problem(
    machine: Machine, check: Check, environ: dict[str, str]
) -> None:
    engine_with(machine)

    said = wrong(check(**environ)[1])["--parallel"]

    assert said == "llama-server has at most 256 slots, and 257 are requested"
    assert "--parallel" not in wrong(check(PARALLEL="256")[1])


def test_a_missing_file_in_extra_args_is_a_problem(check: Check) -> None:
    assert wrong(check(EXTRA_ARGS="--lora /missing.gguf")[1]) == {
        "EXTRA_ARGS": "--lora /missing.gguf: there is no such file"
    }


def test_a_file_that_is_no_model_is_a_problem(machine: Machine, check: Check) -> None:
    (machine.folder / "models" / "p.gguf").write_bytes(gguf({"general.architecture": "clip"}))

    assert " is a multimodal projector, " in wrong(check("p")[1])["model"]


def test_a_model_that_exceeds_the_gpus_memory_is_a_problem(machine: Machine, check: Check) -> None:
    engine_with(machine, "CUDA0: Small card (600 MiB, 1 MiB free)")

    status, checks = check()

    assert status == 1
    assert checks["engine's GPUs"]["text"] == "CUDA0 (Small card)"
    assert wrong(checks).keys() == {"VRAM"}
    assert check(NGL="0")[0] == 0


def test_the_gpus_and_threads_of_each_replica_are_shown(machine: Machine, check: Check) -> None:
    engine_with(
        machine,
        "CUDA0: Card (9000 MiB, 8000 MiB free)",
        "CUDA1: Card (9000 MiB, 8000 MiB free)",
    )

    for replicas in ("2", "auto"):
        status, checks = check(REPLICAS=replicas, THREADS="6")
        assert status == 0
        assert checks["replicas"]["text"] == "2: 0 on CUDA0; 1 on CUDA1, 3 threads each"
    assert "replicas" not in check()[1]


def test_the_port_of_each_replica_has_to_be_free(machine: Machine, check: Check) -> None:
    first = int(machine.environ["PORT_BACKEND"])

    assert check(REPLICAS="2", PORT=str(first + 1))[1]["ports"]["ok"] is False
    with socket.create_server(("127.0.0.1", first + 1)):
        assert "PORT_BACKEND + 1" in wrong(check(REPLICAS="2")[1])
        assert check()[0] == 0


def test_flags_that_number_the_gpus_contradict_replicas(machine: Machine, check: Check) -> None:
    engine_with(machine, *(f"CUDA{n}: Card (9000 MiB, 8000 MiB free)" for n in range(2)))

    _, checks = check(REPLICAS="2", EXTRA_ARGS="--tensor-split 3,1")

    assert "--tensor-split" in wrong(checks)["replicas"]


def test_a_gpu_that_the_engine_cannot_use_is_reported(
    machine: Machine, check: Check, tmp_path: Path
) -> None:
    engine_with(machine)
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 22563 MiB, 550.54'\n")
    smi.chmod(0o755)
    path = f"{smi.parent}:{os.defpath}"

    status, checks = check(PATH=path)

    assert status == 0
    assert checks["engine's GPUs"]["level"] == "note"
    assert "does not support the GPU" in checks["engine's GPUs"]["text"]
    assert check(PATH=path, NGL="0")[1]["engine's GPUs"]["level"] == "ok"
    Path(machine.environ["LLAMA_SERVER"]).write_text("#!/bin/sh\necho 'version: 1'\n")
    unknown = check(PATH=path)[1]
    assert unknown["engine's GPUs"]["text"] == "unknown: llama-server does not list them"
    assert "RAM" not in unknown


def test_unknown_engine_flags_are_a_problem(machine: Machine, check: Check) -> None:
    engine_with(machine)

    status, checks = check(EXTRA_ARGS="--ctx-siz 5 --metrics")

    assert status == 1
    assert wrong(checks)["EXTRA_ARGS"].startswith(
        "llama-server has no flag --ctx-siz; did you mean --ctx-size?; "
    )
    assert check(EXTRA_ARGS="-c 512 --metrics")[0] == 0


def test_flags_in_extra_args_change_the_required_memory(machine: Machine, check: Check) -> None:
    engine_with(machine)

    checks = check(EXTRA_ARGS="--ctx-size 512")[1]

    assert checks["context"]["text"].startswith("2 slots divide 512 tokens; ")
    assert "512 tokens" in checks["memory needed"]["text"]


def test_a_context_that_requests_share_is_reported(machine: Machine, check: Check) -> None:
    engine_with(machine)

    status, checks = check(EXTRA_ARGS="--metrics", LLAMA_ARG_N_PARALLEL="-1")

    assert status == 0
    assert checks["context"]["level"] == "note"
    assert "llama-server ends all of them" in checks["context"]["text"]


def test_fewer_cpus_than_cores_are_reported(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    here = look(os.defpath)
    monkeypatch.setattr(
        "llama_gguf.engines.machine.look",
        lambda _: replace(here, cpus=64, cores=32, cpu_limit=2.5),
    )

    status, checks = check()

    assert status == 0
    assert checks["threads"]["text"] == "2: as many as can run at once here"
    assert "threads" not in check(LLAMA_ARG_THREADS="2")[1]
    assert "threads" not in check(THREADS="2")[1]


def test_an_unwritable_models_directory_is_a_problem(machine: Machine, check: Check) -> None:
    (machine.folder / "file").touch()

    status, checks = check("smollm2", MODELS_DIR=str(machine.folder / "file" / "models"))

    assert status == 1
    assert wrong(checks)["model"].endswith(
        f"but {machine.folder}/file is not writable; "
        "set DATA_DIR or MODELS_DIR to another directory"
    )


def test_an_unwritable_log_directory_is_noted(machine: Machine, check: Check) -> None:
    (machine.folder / "file").touch()

    status, checks = check(LOG_DIR=str(machine.folder / "file" / "logs"))

    assert status == 0
    assert checks["logs"]["level"] == "note"
    assert checks["logs"]["text"].endswith(f"{machine.folder}/file is not writable")


def test_a_hub_model_without_huggingface_hub_is_a_problem(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check("hf:owner/name:Q4_0")[0] == 0

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    status, checks = check("hf:owner/name:Q4_0")
    assert status == 1
    assert "pip install 'llama-gguf-inference[hub]'" in wrong(checks)["model"]


def test_a_models_url_is_shown_without_its_credentials(check: Check) -> None:
    checks = check(MODEL_NAME="https://me:secret@host.example/x.gguf?sig=secret")[1]

    assert checks["model"]["text"].startswith("https://***@host.example/x.gguf?*** will be")


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "# nothing but a comment\n", "alice:short\n"])
def test_no_usable_key_is_a_problem(machine: Machine, check: Check, text: str | None) -> None:
    machine.keys_file.unlink()
    if text is not None:
        machine.keys_file.write_text(text)

    status, checks = check()

    assert status == 1
    assert wrong(checks)["keys"].startswith(f"no keys in {machine.keys_file}: create one with")


def test_without_keys_the_verdict_is_that_every_request_would_be_refused(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.keys_file.unlink()

    assert main(["check"], machine.environ) == 1

    printed = capsys.readouterr().out
    assert printed.endswith("1 problem found: `llama-gguf serve` would refuse every request.\n")


def test_an_unreadable_keys_file_is_a_problem(machine: Machine, check: Check) -> None:
    machine.keys_file.unlink()
    machine.keys_file.mkdir()

    status, checks = check()

    assert status == 1
    assert "is a directory" in wrong(checks)["keys"]


def test_skipped_lines_are_reported_by_number_without_content(
    machine: Machine, check: Check
) -> None:
    machine.keys_file.write_text(f"alice:{KEY}\n{KEY}x:bob\n")

    status, checks = check()

    assert status == 0
    assert checks["keys"]["level"] == "note"
    assert "; line 2 is skipped: " in checks["keys"]["text"]
    assert KEY not in checks["keys"]["text"]


def test_a_keys_file_readable_by_others_is_reported(machine: Machine, check: Check) -> None:
    machine.keys_file.chmod(0o644)

    status, checks = check()

    assert status == 0
    assert checks["keys"]["level"] == "note"
    assert f"chmod 600 {machine.keys_file}" in checks["keys"]["text"]


# TLS ----------------------------------------------------------------------------------------------


def test_a_certificate_is_shown_with_its_expiry(machine: Machine, check: Check) -> None:
    assert check()[1]["TLS"]["text"] == "off: PORT serves plain HTTP"

    status, checks = check(**issue(not_after=2099).write(machine.folder))

    assert status == 0
    assert checks["TLS"]["text"] == f"{machine.folder}/cert.pem, valid until 2099-01-01 00:00 UTC"


@pytest.mark.parametrize(
    ("pair", "output"),
    [
        (issue(not_before=2001, not_after=2002), "certificate has expired"),
        (Pair(issue().chain, issue().key), "it is not the key of the first certificate"),
        (Pair(b"", issue().key), "it is not a certificate"),
    ],
    ids=["expired", "mismatched", "empty"],
)
def test_an_expired_or_unreadable_certificate_is_a_problem(
    pair: Pair, output: str, machine: Machine, check: Check
) -> None:
    status, checks = check(**pair.write(machine.folder))

    assert status == 1
    assert wrong(checks).keys() == {"TLS"}
    assert output in wrong(checks)["TLS"]
