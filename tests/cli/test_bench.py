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


def rows_of(told: str) -> list[list[str]]:
    return [line.split() for line in told.splitlines()]


def test_a_run_prints_a_table_with_a_column_a_load(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, tmp_path=tmp_path) == 0

    told = capsys.readouterr()
    assert told.err == "1 stream ...\n2 streams ...\n"
    assert engine.url in told.out.splitlines()[0]
    assert ["requests", "counted", "4", "4"] in rows_of(told.out)
    assert "time to first token p50 ms" in told.out
    assert "Tokens are counted from: the server's usage." in told.out


def test_every_form_of_the_results_can_be_had_at_once(engine: ChatEngine, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"x.{kind}" for kind in ("json", "csv", "html", "png")}

    flags = [f"--{kind}={files[kind]}" for kind in ("json", "csv", "html")]
    assert bench(engine.url, *SMALL, *flags, f"--plot={files['png']}", tmp_path=tmp_path) == 0

    said = json.loads(files["json"].read_text())
    assert said["command"].startswith(f"llama-gguf bench {engine.url} --prompt-tokens 40")
    assert [level["counted"] for level in said["levels"]] == [4, 4]
    assert said["levels"][0]["tokens"]["output"] == 4 * TOKENS
    assert said["versions"]["llama-gguf"]
    assert said["machine"]["cpus"] > 0
    assert "1,,ttft_seconds.p50,0." in files["csv"].read_text()
    assert files["html"].read_text().count("<svg") == 8
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_json_on_standard_output_is_alone_there(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, "--json", "-", "--quiet", tmp_path=tmp_path) == 0

    told = capsys.readouterr()
    assert json.loads(told.out)["format"] == "llama-gguf bench 1"
    assert told.err == ""


def test_csv_on_standard_output_is_alone_there(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(engine.url, *SMALL, "--csv", "-", tmp_path=tmp_path) == 0

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["streams"] for row in rows} == {"1", "2"}


def test_an_slo_and_an_open_loop(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--rate", "200", "--requests", "5", "--warmup", "0", "--slo", "latency=60s")

    assert bench(engine.url, *flags, "--no-stream", "--completions", tmp_path=tmp_path) == 0

    told = capsys.readouterr().out
    assert "200/s" in told
    assert ["requests", "within", "SLO", "%", "100"] in rows_of(told)
    assert "time to first token" not in told


def test_a_run_asks_what_no_earlier_one_has_asked_unless_its_seed_is_given(
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


def test_prompts_come_from_a_file(engine: ChatEngine, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"one"\n{"prompt": "two"}\n')

    flags = ("--prompts", str(tmp_path / "p.jsonl"), "--body", '{"top_p": 0.5}')
    assert bench(engine.url, *SMALL, *flags, tmp_path=tmp_path) == 0

    texts = {body["messages"][0]["content"] for body in engine.requests}
    assert texts == {"one", "two"}
    assert all(body["top_p"] == 0.5 for body in engine.requests)


def test_the_key_of_the_environment_is_sent_and_never_told(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SMALL, "--html", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json"))

    assert bench(engine.url, *flags, tmp_path=tmp_path, LLAMA_API_KEY=KEY) == 0

    assert set(engine.keys) == {f"Bearer {KEY}"}
    told = capsys.readouterr()
    files = (tmp_path / "x.html").read_text() + (tmp_path / "x.json").read_text()
    assert KEY not in told.out + told.err + files


def test_requests_that_fail_are_told_by_kind_and_the_rest_counts(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status, engine.good = 429, 2 + 3

    flags = ("--requests", "4", "--concurrency", "1", "--warmup", "0")
    assert bench(engine.url, *flags, tmp_path=tmp_path) == 0

    told = capsys.readouterr().out
    assert "1 stream: 1 x status 429 some_code" in told
    assert "llama-gguf keys generate --rate-limit 1000000" in told
    assert ["failed", "requests", "%", "25.0"] in rows_of(told)


def test_a_run_in_which_everything_failed_has_not_worked(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status, engine.good = 500, 2

    flags = ("--requests", "1", "--concurrency", "1", "--warmup", "0")
    assert bench(engine.url, *flags, tmp_path=tmp_path) == 1

    assert "1 x status 500 some_code" in capsys.readouterr().out


def test_ctrl_c_still_reports(engine: ChatEngine, tmp_path: Path) -> None:
    """After ten answers, while the next two hang."""
    engine.holds_after = 10
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_gguf", "bench", engine.url, "--duration", "600",
         "--warmup", "0", "--concurrency", "2", "--json", str(tmp_path / "x.json")],
        env={**os.environ, "DATA_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    for _ in range(10 + 2):
        assert engine.text_sent.acquire(timeout=30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 130, err
    assert "interrupted after" in out
    assert "time to first token p50 ms" in out
    assert "Traceback" not in err
    said = json.loads((tmp_path / "x.json").read_text())
    assert said["levels"][0]["interrupted"]
    assert said["levels"][0]["counted"] == 10


# Overhead -----------------------------------------------------------------------------------------


def test_overhead_takes_turns_and_tells_the_difference(
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
    told = capsys.readouterr().out
    assert f"{engine.url} against {backend.url}" in told
    assert "ADDED (MEDIAN)" in told
    said = json.loads((tmp_path / "x.json").read_text())
    assert len(said["overhead"][0]["pairs"]) == 6
    assert (tmp_path / "x.html").read_text().count("<svg") == 3


def test_a_backend_that_refuses_its_key_is_not_asked_for_that_of_the_gateway(
    engine: ChatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatEngine() as backend:
        backend.status = 401
        assert bench(engine.url, "--overhead", backend.url, tmp_path=tmp_path) == 1

    told = capsys.readouterr().err
    assert f"{backend.url} returned status 401" in told
    assert "BACKEND_API_KEY" in told
    assert "LLAMA_API_KEY" not in told


def test_overhead_without_a_single_good_block_has_not_worked(
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


def test_two_runs_are_compared_number_by_number(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert bench("compare", *two_runs, tmp_path=tmp_path) == 0

    told = capsys.readouterr().out
    assert told.splitlines()[0].split() == ["LOAD", "A", "B", "CHANGE", "99", "%", "IS"]
    assert "1 stream   time to first token p50 ms" in told
    assert " numbers: " in told.splitlines()[-1]


def test_a_comparison_can_be_had_as_json(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert bench("compare", *two_runs, "--json", "-", tmp_path=tmp_path) == 0

    changes: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["changes"]
    assert {c["load"] for c in changes} == {"1 stream", "2 streams"}


# Wrong ways ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("http://a", "http://b"), "only one URL is possible"),
        (("ftp://a",), "is not the URL of an endpoint"),
        (("--rate", "1", "--concurrency", "1"), "--concurrency and --rate cannot be combined"),
        (("--rate", "1", "--overhead", "http://a"), "requires --concurrency"),
        (("--overhead", "nothing"), "'nothing' is not the URL of an endpoint"),
        (("--html", "/nowhere/x.html"), "there is no directory /nowhere"),
        (("--json", "-", "--csv", "-"), "Only one of --json and --csv"),
        (("--prompts", "/nowhere"), "/nowhere cannot be read: No such file"),
        (("compare", "a.json"), "compare requires two files"),
        (("compare", "/nowhere", "/nowhere"), "/nowhere cannot be read"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
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
def test_a_flag_that_cannot_be_read_says_what_would_be_right(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        bench(*arguments, tmp_path=tmp_path)

    assert left.value.code == 2
    assert complaint in capsys.readouterr().err


def test_without_a_url_it_is_the_gateway_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--port", "1", tmp_path=tmp_path) == 1

    assert "http://127.0.0.1:1 cannot be reached: " in capsys.readouterr().err


def test_a_binary_file_of_prompts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe")

    assert bench("--prompts", str(tmp_path / "p"), tmp_path=tmp_path) == 2

    assert "is not UTF-8 text" in capsys.readouterr().err
