"""Measure an OpenAI-compatible endpoint under load, or compare two runs.

URL is http(s)://HOST:PORT or unix:/PATH.sock; the default is the gateway on this machine. The
key comes from LLAMA_API_KEY or OPENAI_API_KEY, or for an endpoint on this machine from
AUTH_KEYS_FILE; the key of --overhead's backend comes from BACKEND_API_KEY.
docs/benchmark.md defines the measured values.

Examples:
  llama-gguf bench --concurrency 1,2,4,8 --html report.html
  llama-gguf bench https://HOST --rate 0.5,1,2 --duration 60 --slo ttft=500ms,tpot=50ms
  llama-gguf bench --overhead http://127.0.0.1:8080 --concurrency 1,8
  llama-gguf bench --resume --prompt-tokens 2000
  llama-gguf bench compare before.json after.json
  llama-gguf bench compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from llama_gguf.cli import bench_facts, operate
from llama_gguf.cli.bench_report import STDOUT, Report, check_outputs, show, write
from llama_gguf.cli.context import Context
from llama_gguf.cli.loops import loop_factory
from llama_gguf.cli.terminal import echo, print_table, progress_meter
from llama_gguf.errors import UserError
from llama_gguf.net.threads import run_detached
from llama_gguf_bench import compare, overhead, plots, results, resume, session, tables
from llama_gguf_bench.connection import Target, parse_target
from llama_gguf_bench.load import Budget, Level, clock
from llama_gguf_bench.options import (
    SLO_NAMES,
    Load,
    Options,
    parse_counts,
    parse_rates,
    parse_seconds,
    parse_slo,
)
from llama_gguf_bench.results import Circumstances
from llama_gguf_bench.session import Prepared
from llama_gguf_bench.summary import summarise

USAGE = "%(prog)s [URL] [options]\n       %(prog)s compare A.json[,...] B.json[,...] [--json FILE]"
COMPARE: Final = "compare"
INTERRUPTED: Final = 130

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="URL", help="endpoint, with or without /v1")
    parser.add_argument(
        "--overhead",
        metavar="BACKEND_URL",
        help="measure what the gateway at URL adds to this backend",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure known conversations after a rolling restart of the server on this machine",
    )
    _add_load(parser.add_argument_group("load"))
    _add_prompts(parser.add_argument_group("requests"))
    _add_output(parser.add_argument_group("results"))


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--concurrency",
        type=_typed(parse_counts),
        metavar="N,...",
        help="concurrent streams; several values run in turn [1,2,4,8]",
    )
    group.add_argument(
        "--rate",
        type=_typed(parse_rates),
        metavar="R,...",
        help="requests per second, sent at random times regardless of earlier requests",
    )
    group.add_argument(
        "--duration",
        type=_typed(parse_seconds),
        default=20.0,
        metavar="S",
        help="duration of each load [20]",
    )
    group.add_argument(
        "--requests",
        type=_typed(_one_count),
        metavar="N",
        help="number of requests of each load, instead of a duration",
    )
    group.add_argument(
        "--warmup",
        type=_typed(parse_seconds),
        default=2.0,
        metavar="S",
        help="warm-up of each load, which is not measured [2]; for --overhead one block",
    )
    group.add_argument(
        "--timeout",
        type=_typed(parse_seconds),
        default=600.0,
        metavar="S",
        help="timeout of a request [600]",
    )
    group.add_argument(
        "--connections",
        choices=("kept", "new"),
        help="reuse connections, or open one for each request [kept; for --overhead: new]",
    )
    group.add_argument("--ca-file", default="", metavar="FILE", help="trusted certificates (PEM)")


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", default="", help="model name in the requests [the server's first]"
    )
    group.add_argument(
        "--prompt-tokens",
        type=_typed(parse_counts),
        default=(128,),
        metavar="N,...",
        help="lengths of the generated prompts, used in turn [128]",
    )
    group.add_argument(
        "--output-tokens",
        type=_typed(_one_count),
        default=64,
        metavar="N",
        help="output tokens to request [64]",
    )
    group.add_argument(
        "--shared-prefix",
        type=_typed(_one_count),
        default=0,
        metavar="N",
        help="identical tokens at the start of all prompts, to measure the prompt cache",
    )
    group.add_argument(
        "--prompts",
        default="",
        metavar="FILE.jsonl",
        help='custom prompts: strings, or objects with "messages" or "prompt"',
    )
    group.add_argument(
        "--no-stream", action="store_true", help="request responses that are not streamed"
    )
    group.add_argument(
        "--completions", action="store_true", help="use /v1/completions instead of chat"
    )
    group.add_argument(
        "--body",
        type=_typed(_json_object),
        default={},
        metavar="JSON",
        help="additional fields of every request",
    )
    group.add_argument("--seed", type=int, help="seed of prompts and send times [random]")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--slo",
        type=_typed(parse_slo),
        default={},
        metavar="NAME=TIME,...",
        help=f"limits of goodput: {', '.join(SLO_NAMES)}, such as ttft=500ms,tpot=50ms",
    )
    group.add_argument(
        "--json", metavar="FILE", help="write all results, for `compare`; - is stdout"
    )
    group.add_argument("--csv", metavar="FILE", help="write one line per number; - is stdout")
    group.add_argument("--html", metavar="FILE", help="write a report with plots, in one file")
    group.add_argument(
        "--plot", metavar="FILE.png", help="write only the plots; also .svg and .pdf"
    )
    group.add_argument("--quiet", action="store_true", help="show no progress")


def _typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """*parse* for argparse, which then shows the message of its ValueError."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _one_count(text: str) -> int:
    (count,) = parse_counts(text.replace(",", ";"))  # a list of numbers is an error here
    return count


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object such as " + '{"top_p": 0.9}')
    return value


def run(arguments: argparse.Namespace, context: Context) -> int:
    words = arguments.words
    if words[:1] == [COMPARE]:
        return _compare(words[1:], arguments)
    if len(words) > 1:
        raise UserError(f"only one URL is possible, not {len(words)}: {' '.join(words)}", 2)
    check_outputs(arguments)
    url = words[0] if words else bench_facts.own_url(context.settings)
    key = bench_facts.endpoint_key(url, context)
    job = Job(
        arguments=arguments,
        context=context,
        options=_options(arguments),
        target=parse_target(url, key=key, ca_file=arguments.ca_file),
        lines=_read_lines(arguments.prompts) if arguments.prompts else None,
    )
    if arguments.resume:
        return _run_resume(job)
    return _run_overhead(job) if arguments.overhead else _run_load(job)


@dataclass(frozen=True, slots=True)
class Job:
    """The inputs of one run."""

    arguments: argparse.Namespace
    context: Context
    options: Options
    target: Target
    lines: Sequence[str] | None


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.rate and arguments.concurrency:
        raise UserError("--concurrency and --rate cannot be combined; use two runs.", 2)
    if arguments.rate and arguments.overhead:
        raise UserError("--overhead requires --concurrency and cannot be used with --rate.", 2)
    if arguments.resume and (arguments.overhead or arguments.rate or arguments.concurrency):
        raise UserError("--resume sends one request at a time, without other loads.", 2)
    if arguments.resume and arguments.no_stream:
        raise UserError("--resume measures the first token, so it requires streams.", 2)
    rates = tuple(Load(rate=rate) for rate in arguments.rate or ())
    streams = tuple(Load(streams=n) for n in arguments.concurrency or (1, 2, 4, 8))
    kept = arguments.connections or ("new" if arguments.overhead else "kept")
    return Options(
        loads=rates or streams,
        model=arguments.model,
        chat=not arguments.completions,
        streamed=not arguments.no_stream,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        shared_prefix=arguments.shared_prefix,
        prompts_file=arguments.prompts,
        body=arguments.body,
        duration=arguments.duration,
        requests=arguments.requests,
        warmup=arguments.warmup,
        timeout=arguments.timeout,
        keeps_connections=kept == "kept",
        slo=arguments.slo,
        # A new seed for each run, since the engine may have cached the prompts of an earlier one.
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
    )


def _read_lines(path: str) -> list[str]:
    return _read(path).splitlines()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors of Windows add a mark
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", 2) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text", 2) from None


# Running ------------------------------------------------------------------------------------------


def _run_load(job: Job) -> int:
    with _meter(job) as meter:
        prepared, levels = _in_loop(
            session.run_loads(
                job.target, job.options, job.lines, progress=_reporter(meter, job.options.loads)
            )
        )
    found = [(level, summarise(level, job.options.slo)) for level in levels]
    facts = _facts(job, prepared)
    report = Report(
        facts,
        tables.columns(found),
        tables.rows(found),
        tables.notes(found),
        facts.as_json() | {"levels": [results.level_json(*each) for each in found]},
        tables.as_csv(found),
        plots.plots_of(found),
    )
    show(job.arguments, report)
    has_worked = any(record.ok for level in levels for record in level.counted)
    return _status(levels, has_worked=has_worked)


def _run_overhead(job: Job) -> int:
    with _meter(job) as meter:
        prepared, turns = _in_loop(
            session.run_turns(
                {"direct": _backend(job), "gateway": job.target},
                job.options,
                job.lines,
                progress=_turns_reporter(meter, job.options.loads),
            )
        )
    rng = random.Random(job.options.seed)  # noqa: S311  # resampling
    found = [(each, overhead.added(each.pairs, rng)) for each in turns]
    facts = _facts(job, prepared)
    report = Report(
        facts,
        tables.ADDED_COLUMNS,
        tables.added_rows(found),
        tables.added_notes(found),
        facts.as_json() | {"overhead": [overhead.as_json(*each) for each in found]},
        tables.added_csv(found),
        plots.plots_of_added(found),
    )
    show(job.arguments, report)
    return _status(turns, has_worked=any(each.pairs for each in turns))


def _run_resume(job: Job) -> int:
    operate.find(job.context).close()  # a mistake is reported before the load

    def restart() -> None:
        with operate.find(job.context) as server:
            server.ask("restart", timeout=None)

    with _meter(job) as meter:
        prepared, steps = _in_loop(
            resume.run(
                job.target,
                job.options,
                job.lines,
                restart=lambda: run_detached(restart),
                progress=meter,
            )
        )
    facts, rows = _facts(job, prepared), resume.rows(steps)
    report = Report(
        facts,
        resume.COLUMNS,
        rows,
        [resume.verdict(steps)],
        facts.as_json() | {"resume": resume.as_json(steps)},
        resume.as_csv(steps),
        {},
    )
    show(job.arguments, report)
    return 0


def _backend(job: Job) -> Target:
    key = job.context.settings.upstream.backend_api_key
    backend = parse_target(job.arguments.overhead, key=key, ca_file=job.arguments.ca_file)
    hint = "Set BACKEND_API_KEY to llama-server's key, both here and for `serve`."
    return replace(backend, key_hint=hint)


def _facts(job: Job, prepared: Prepared) -> Circumstances:
    return bench_facts.circumstances(
        job.target,
        job.arguments.overhead or "",
        job.options,
        prepared.server,
        job.context,
        command=job.arguments.argv,
    )


def _status(parts: Sequence[Level] | Sequence[overhead.Turns], *, has_worked: bool) -> int:
    if any(part.interrupted for part in parts):
        return INTERRUPTED
    return 0 if has_worked else 1


def _in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run *work*. SIGTERM, like Ctrl-C, ends the load; the results so far are reported."""

    async def guarded() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    bench_facts.raise_open_files()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(guarded())


@contextmanager
def _meter(job: Job) -> Iterator[Callable[[str, float], None]]:
    if job.arguments.quiet:
        yield lambda label, share: None
        return
    with progress_meter() as meter:
        yield meter


def _reporter(meter: Callable[[str, float], None], loads: Sequence[Load]) -> session.Progress:
    def report_progress(load: Load, budget: Budget, level: Level) -> None:
        failed = sum(bool(record.error) for record in level.records)
        label = f"{load.text}: {len(level.records)} responses" + (
            f", {failed} failed" if failed else ""
        )
        meter(label, (loads.index(load) + budget.done_share(clock())) / len(loads))

    return report_progress


def _turns_reporter(
    meter: Callable[[str, float], None], loads: Sequence[Load]
) -> Callable[[overhead.Turns, float], None]:
    def report_progress(turns: overhead.Turns, share: float) -> None:
        load = Load(streams=turns.streams)
        meter(load.text, (loads.index(load) + share) / len(loads))

    return report_progress


# Comparing ----------------------------------------------------------------------------------------


def _side(text: str) -> compare.Side:
    """The runs of one side: a file, or several separated by commas."""
    return compare.Side([results.read(path, _read(path)) for path in text.split(",")])


def _compare(paths: Sequence[str], arguments: argparse.Namespace) -> int:
    if len(paths) != 2:
        raise UserError(
            "compare requires files written by --json: A.json B.json, or with several runs of each "
            "side A1.json,A2.json B1.json,B2.json",
            2,
        )
    a, b = (_side(path) for path in paths)
    found = compare.changes(a, b)
    notes = [*compare.circumstances(a, b), *compare.missing(a, b), *compare.advice(a, b)]
    if arguments.json:
        write(arguments.json, json.dumps(compare.as_json(found, notes), indent=1))
    if arguments.json != STDOUT:
        print_table(tables.CHANGE_COLUMNS, tables.change_rows(found))
        echo("\n" + "\n".join([*notes, compare.verdict_sentence(found)]))
    return 0 if found else 1
