"""The command as a user runs it, against an engine in a thread."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.cli.main import main
from tests.support.engines import TOKENS, ChatEngine
from tests.support.keys import KEY

SMALL = ("--prompt-tokens", "40", "--warmup", "0", "--requests", "4", "--concurrency", "1,2")


@pytest.fixture
def engine() -> Iterator[ChatEngine]:
    with ChatEngine() as started:
        yield started


def bench(*arguments: str, tmp_path: Path, **environ: str) -> int:
    return main(["bench", *arguments], {"DATA_DIR": str(tmp_path), **environ})


def rows_of(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_a_run_prints_a_table_with_one_column_per_load(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, tmp_path=tmp_path) == 0

    printed = capsys.readouterr()
    assert printed.err == "1 stream ...\n2 streams ...\n"
    assert engine.url in printed.out.splitlines()[0]
    assert ["requests", "counted", "4", "4"] in rows_of(printed.out)
    assert "time to first token p50 ms" in printed.out
    assert "Tokens are counted from: the server's usage." in printed.out


@pytest.mark.slow
def test_all_output_formats_can_be_combined(engine: ChatEngine, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"x.{kind}" for kind in ("json", "csv", "html", "png")}

    flags = [f"--{kind}={files[kind]}" for kind in ("json", "csv", "html")]
    assert bench(engine.url, *SMALL, *flags, f"--plot={files['png']}", tmp_path=tmp_path) == 0

    document = json.loads(files["json"].read_text())
    assert document["command"].startswith(f"llama-gguf bench {engine.url} --prompt-tokens 40")
    assert [level["counted"] for level in document["levels"]] == [4, 4]
    assert document["levels"][0]["tokens"]["output"] == 4 * TOKENS
    assert document["versions"]["llama-gguf"]
    assert document["machine"]["cpus"] > 0
    assert "1,,ttft_seconds.p50,0." in files["csv"].read_text()
    assert files["html"].read_text().count("<svg") == 8
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_json_on_standard_output_excludes_the_table(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, "--json", "-", "--quiet", tmp_path=tmp_path) == 0

    printed = capsys.readouterr()
    assert json.loads(printed.out)["format"] == "llama-gguf bench 1"
    assert printed.err == ""


def test_csv_on_standard_output_excludes_the_table(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, "--csv", "-", tmp_path=tmp_path) == 0

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["streams"] for row in rows} == {"1", "2"}


def test_an_slo_is_applied_in_an_open_loop(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--rate", "200", "--requests", "5", "--warmup", "0", "--slo", "latency=60s")

    assert bench(engine.url, *flags, "--no-stream", "--completions", tmp_path=tmp_path) == 0

    printed = capsys.readouterr().out
    assert "200/s" in printed
    assert ["requests", "within", "SLO", "%", "100"] in rows_of(printed)
    assert "time to first token" not in printed


def test_a_run_sends_new_prompts_unless_its_seed_is_given(
    engine: ChatEngine, tmp_path: Path
) -> None:
    def prompts(*flags: str) -> list[str]:
        engine.requests.clear()
        assert (
            bench(engine.url, *SMALL, "--json", str(tmp_path / "x"), *flags, tmp_path=tmp_path) == 0
        )
        return sorted(body["messages"][0]["content"] for body in engine.requests)

    first = prompts()
    seed = json.loads((tmp_path / "x").read_text())["settings"]["seed"]

    assert not set(first) & set(prompts())
    assert prompts("--seed", str(seed)) == first


def test_prompts_can_be_read_from_a_file(engine: ChatEngine, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"one"\n{"prompt": "two"}\n')

    flags = ("--prompts", str(tmp_path / "p.jsonl"), "--body", '{"top_p": 0.5}')
    assert bench(engine.url, *SMALL, *flags, tmp_path=tmp_path) == 0

    texts = {body["messages"][0]["content"] for body in engine.requests}
    assert texts == {"one", "two"}
    assert all(body["top_p"] == 0.5 for body in engine.requests)


def test_the_key_of_the_environment_is_sent_and_never_shown(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SMALL, "--html", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json"))

    assert bench(engine.url, *flags, tmp_path=tmp_path, LLAMA_API_KEY=KEY) == 0

    assert set(engine.keys) == {f"Bearer {KEY}"}
    printed = capsys.readouterr()
    files = (tmp_path / "x.html").read_text() + (tmp_path / "x.json").read_text()
    assert KEY not in printed.out + printed.err + files


def test_failed_requests_are_reported_by_kind_and_the_others_count(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status, engine.good = 429, 2 + 3

    flags = ("--requests", "4", "--concurrency", "1", "--warmup", "0")
    assert bench(engine.url, *flags, tmp_path=tmp_path) == 0

    printed = capsys.readouterr().out
    assert "1 stream: 1 x status 429 some_code" in printed
    assert "llama-gguf keys generate --rate-limit 1000000" in printed
    assert ["failed", "requests", "%", "25.0"] in rows_of(printed)


def test_a_run_without_any_successful_request_fails(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status, engine.good = 500, 2

    flags = ("--requests", "1", "--concurrency", "1", "--warmup", "0")
    assert bench(engine.url, *flags, tmp_path=tmp_path) == 1

    assert "1 x status 500 some_code" in capsys.readouterr().out


@pytest.mark.processes
def test_ctrl_c_reports_the_results_so_far(engine: ChatEngine, tmp_path: Path) -> None:
    """After ten responses, while the next two requests hang."""
    engine.holds_after = 10
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_gguf", "bench", engine.url, "--duration", "600",
         "--warmup", "0", "--concurrency", "2", "--json", str(tmp_path / "x.json")],
        env={**os.environ, "DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        for _ in range(10 + 2):
            assert engine.text_sent.acquire(timeout=30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()  # else the engine would wait for it

    assert process.returncode == 130, err
    assert "interrupted after" in out
    assert "time to first token p50 ms" in out
    assert "Traceback" not in err
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["levels"][0]["interrupted"]
    assert document["levels"][0]["counted"] == 10


# Overhead -----------------------------------------------------------------------------------------


def test_overhead_alternates_and_reports_the_difference(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatEngine() as backend:
        flags = ("--overhead", backend.url, "--concurrency", "2", "--requests", "6")
        files = ("--json", str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html"))
        keys = {"LLAMA_API_KEY": KEY, "BACKEND_API_KEY": "backend-key-0123456789"}
        assert bench(engine.url, *flags, *files, tmp_path=tmp_path, **keys) == 0

    assert len(backend.requests) == len(engine.requests) == 2 + 2 * (6 + 1)
    assert set(backend.keys) == {"Bearer backend-key-0123456789"}
    assert set(engine.keys) == {f"Bearer {KEY}"}
    printed = capsys.readouterr().out
    assert f"{engine.url} against {backend.url}" in printed
    assert "ADDED (MEDIAN)" in printed
    document = json.loads((tmp_path / "x.json").read_text())
    assert len(document["overhead"][0]["pairs"]) == 6
    assert (tmp_path / "x.html").read_text().count("<svg") == 3


def test_the_backend_never_receives_the_gateways_key(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatEngine() as backend:
        backend.status = 401
        assert bench(engine.url, "--overhead", backend.url, tmp_path=tmp_path) == 1

    printed = capsys.readouterr().err
    assert f"{backend.url} returned status 401" in printed
    assert "BACKEND_API_KEY" in printed
    assert "LLAMA_API_KEY" not in printed


def test_overhead_without_a_successful_block_fails(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status, engine.good = 500, 2
    with ChatEngine() as backend:
        flags = ("--overhead", backend.url, "--concurrency", "1", "--requests", "1")
        assert bench(engine.url, *flags, tmp_path=tmp_path) == 1

    assert "gateway: status 500 some_code" in capsys.readouterr().out


# Comparing ----------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(engine: ChatEngine, tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for path in paths:
        assert bench(engine.url, *SMALL, "--json", path, "--quiet", tmp_path=tmp_path) == 0
    return paths


def test_two_runs_are_compared_by_metric(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert bench("compare", *two_runs, tmp_path=tmp_path) == 0

    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == [
        *("LOAD", "A", "B", "CHANGE", "99", "%", "OF", "ALL", "IS")
    ]
    assert "1 stream   time to first token p50 ms" in printed
    assert " numbers: " in printed.splitlines()[-1]


def test_each_side_may_have_several_runs(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    both = ",".join(two_runs)

    assert bench("compare", both, both, tmp_path=tmp_path) == 0

    printed = capsys.readouterr().out
    assert "If in doubt, run A, B, A, B" not in printed
    assert "better" not in printed
    assert "worse" not in printed


def test_a_comparison_can_be_printed_as_json(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert bench("compare", *two_runs, "--json", "-", tmp_path=tmp_path) == 0

    changes: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["changes"]
    assert {c["load"] for c in changes} == {"1 stream", "2 streams"}


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("http://a", "http://b"), "only one URL is possible"),
        (("ftp://a",), "is not the URL of an endpoint"),
        (("--rate", "1", "--concurrency", "1"), "--concurrency and --rate cannot be combined"),
        (("--rate", "1", "--overhead", "http://a"), "requires --concurrency"),
        (("--resume", "--rate", "1"), "--resume sends one request at a time"),
        (("--resume", "--no-stream"), "requires streams"),
        (("--overhead", "nothing"), "'nothing' is not the URL of an endpoint"),
        (("--html", "/nowhere/x.html"), "there is no directory /nowhere"),
        (("--json", "-", "--csv", "-"), "Only one of --json and --csv"),
        (("--prompts", "/nowhere"), "/nowhere cannot be read: No such file"),
        (("compare", "a.json"), "compare requires files"),
        (("compare", "/nowhere", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_impossible_options_are_rejected_before_a_request_is_sent(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*arguments, tmp_path=tmp_path) == 2

    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--concurrency", "0"), "'0' is not a whole number above 0"),
        (("--requests", "1,2"), "is not a whole number"),
        (("--slo", "ttft"), "as ttft=500ms"),
        (("--duration", "soon"), "is not a duration such as 500ms or 2.5s"),
        (("--body", "[1]"), "is not a JSON object"),
    ],
)
def test_an_invalid_flag_is_rejected_with_the_expected_format(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        bench(*arguments, tmp_path=tmp_path)

    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_default_url_is_the_gateway_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--port", "1", tmp_path=tmp_path) == 1

    assert "http://127.0.0.1:1 cannot be reached: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:1"),  # noqa: S104
        ("::", "http://[::1]:1"),
        ("127.0.0.2", "http://127.0.0.2:1"),
        ("::1", "http://[::1]:1"),
    ],
)
def test_the_default_url_follows_host(
    host: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--port", "1", tmp_path=tmp_path, HOST=host) == 1

    assert f"{url} cannot be reached: " in capsys.readouterr().err


def test_files_may_begin_with_a_byte_order_mark(engine: ChatEngine, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'\xef\xbb\xbf"one"\n"two"\n')

    assert bench(engine.url, *SMALL, "--prompts", str(prompts), tmp_path=tmp_path) == 0
    assert engine.requests[0]["messages"][0]["content"] == "one"


def test_a_binary_prompts_file_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe")

    assert bench("--prompts", str(tmp_path / "p"), tmp_path=tmp_path) == 2

    assert "is not UTF-8 text" in capsys.readouterr().err


def test_resume_requires_a_server_of_this_machine(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, "--resume", tmp_path=tmp_path) == 3
    assert "no server runs with DATA_DIR" in capsys.readouterr().err
    assert not engine.requests
