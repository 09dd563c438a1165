"""Generates the reference pages from code: ``python -m docs.reference [--check]``.

Settings, flags, metrics and error codes are each declared in one place, in code. These
pages are generated from it, and ``--check`` lists those that are out of date.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

import llama_gguf
from docs import model_sizes
from llama_gguf import errors
from llama_gguf.cli.arguments import actions_of, command_parser
from llama_gguf.cli.main import COMMANDS, top_parser
from llama_gguf.config import settings
from llama_gguf.engines.status import ChildState
from llama_gguf.errors import GatewayError
from llama_gguf.gateway import client_connection, lifecycle, openapi, upstream_connection
from llama_gguf.http1.routes import Router
from llama_gguf.scheduling import exchange
from llama_gguf.supervisor import replacement, restart_policy
from llama_gguf.supervisor import states as supervisor_states
from llama_gguf.telemetry.metric_table import METRICS

_State = TypeVar("_State", bound=enum.IntEnum)
_MADE: Final = "<!-- Generated from code by `make reference`; edit the code instead. -->\n"


_SETTINGS_INTRODUCTION: Final = """\
# Settings

Every setting is an environment variable, a flag of the commands that use it, and a key of a
configuration file: `MAX_QUEUE_SIZE`, `--max-queue-size`, `max_queue_size`. Durations are in
seconds, sizes in bytes. The first source that has a value is used:

1. a flag
2. the environment
3. the file of `--env-file`
4. the configuration file of `--config`, or of the variable `CONFIG_FILE`
5. the default

An empty variable or value counts as not set. Of `MODEL_NAME` and `MODEL_PATH`, the one from the
higher source is used. `llama-gguf check` shows the settings that differ from their defaults and
where each comes from, with `--all` all settings. Secrets cannot be flags.

## Configuration file

`llama-gguf serve --config llama-gguf.toml`, or `CONFIG_FILE=llama-gguf.toml` for every command.
The file is [TOML](https://toml.io), without tables:

```toml
model_name = "hf:OWNER/NAME:Q4_K_M"
data_dir = "/srv/llama-gguf"

ctx = 32768                  # or "auto"
parallel = 4
extra_args = "--flash-attn on --cache-type-k q8_0 --cache-type-v q8_0"

host = "127.0.0.1"
port = 8000
max_requests_per_minute = 120
cors_origins = ["https://app.example.com"]
dashboard = false
```

Keys may be in capitals, and with `-` instead of `_`. A value is a number, `true` or `false`, a
string, or a list of strings where the setting has values separated by commas; everything may be a
string as in the environment. An unknown key is an error, and so is a value of the wrong type; the
message has the line. Paths are relative to the current directory, as everywhere.

Files are read when the command starts. Reloading keys and certificate (SIGHUP, `POST /reload`)
does not read them again. If a file contains a secret, such as `backend_api_key`, and other users
can read it, there is a warning: `chmod 600`.

## File of variables

`--env-file FILE` reads variables as `docker run --env-file` does, so that one file serves for
both: `NAME=VALUE`, one per line; lines that begin with `#` are comments; all after `=` is the
value, quotes and `#` included, and nothing is expanded. (Quotes around a whole value are removed
from settings, with a warning.) Variables that are no settings, such as `HF_TOKEN` or
`LLAMA_ARG_*`, are passed on like those of the environment, which overrides the file.

## Short flags, and those of llama-server

These flags are other names of settings, among them the most common ones of llama-server. `-m` is
`MODEL_NAME`, a name or a path:

@ALIASES@
With `CTX=auto` or `NGL=auto`, llama-server fits the context or the layers into the free memory
(`--fit`). It reduces the context to no less than 4096 tokens (`--fit-ctx` in `EXTRA_ARGS`). Its
size is known when the model is loaded: `/health` has it as `model.context`. Unless `PARALLEL` is
set, there is one slot, which has all of it.
"""


def _aliases_table() -> str:
    rows = [
        f"| {', '.join(f'`{alias}`' for alias in about.aliases)} | `{settings.variable(name)}` |"
        for name, about in settings.SETTINGS.items()
        if about.aliases
    ]
    return "\n".join(["| flags | setting |\n|---|---|", *rows, ""])


def settings_page() -> str:
    """Every setting, by section."""
    parts = [_MADE, _SETTINGS_INTRODUCTION.replace("@ALIASES@", _aliases_table())]
    for section, names in groupby(settings.SETTINGS, lambda n: settings.SETTINGS[n].section):
        parts.append(f"## {section.capitalize()}\n")
        parts.append("| variable | default | meaning |\n|---|---|---|")
        parts += [_settings_row(name) for name in names]
        parts.append("")
    return "\n".join(parts)


def _settings_row(name: str) -> str:
    default = settings.default_text(name)
    is_code = settings.SETTINGS[name].shown_default is None and default
    shown = f"`{default}`" if is_code else default or "(empty)"
    return f"| `{settings.variable(name)}` | {shown} | {_cell(settings.SETTINGS[name].text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def env_example() -> str:
    """A template of ``.env``: every variable, commented out, with its default."""
    lines = [
        "# All settings with their defaults. Copy this file to .env, and remove the # before each",
        "# setting that you change. Compose reads .env by default, `docker run` with --env-file.",
        "# `llama-gguf` too. Use no quotes around values, and no comments behind them.",
        "# Generated from code by `make reference`.",
    ]
    for section, names in groupby(settings.SETTINGS, lambda n: settings.SETTINGS[n].section):
        lines += ["", f"# --- {section}"]
        for name in names:
            about = settings.SETTINGS[name]
            note = f" (default: {about.shown_default})" if about.shown_default else ""
            value = "" if about.shown_default else settings.default_text(name)
            lines += [f"# {about.text}{note}", f"#{settings.variable(name)}={value}"]
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    """The help of every command."""
    parts = [_MADE, "# Commands\n", _block(top_parser().format_help())]
    for name in COMMANDS:
        parts += [f"## llama-gguf {name}\n", _block(command_parser(name).format_help())]
        for action, parser in actions_of(command_parser(name)):
            parts += [f"### llama-gguf {name} {action}\n", _block(parser.format_help())]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def openapi_document() -> str:
    """What ``GET /openapi.json`` returns with the default settings."""
    return json.dumps(openapi.document(Router(expose_all=False)), indent=1) + "\n"


def metrics_page() -> str:
    """Every metric."""
    rows = [
        f"| `{m.name}{'_total' if m.type == 'counter' else ''}` | {m.type} "
        f"| {', '.join(f'`{label}`' for label in m.labels)} | {_cell(m.help)} |"
        for m in METRICS
    ]
    return "\n".join(
        [
            _MADE,
            "# Metrics\n",
            "`GET /metrics` returns JSON; with `Accept: text/plain` or an OpenMetrics type, or "
            "with `?format=prometheus`, Prometheus' text format; `GET /prometheus/metrics` "
            "always returns text. It requires no key unless "
            "`METRICS_AUTH_ENABLED` is true, and sends no request to the engine. The text format "
            "also has the usual `process_*`, and llama-server's metrics as `llama_gguf_engine_*` "
            "([observability.md](observability.md)).\n\nIn JSON, the names of counters have no "
            "`_total`, and each bucket of a histogram counts only its own range; in the text "
            "format, buckets are cumulative.\n\nCounters by `reason`, `phase`, `kind` or `result` "
            "have all of their series from the start, at 0, so that Prometheus' `increase` "
            "includes the first event. Series by key, route or operation begin with their first "
            "event.\n",
            "| name | type | labels | meaning |\n|---|---|---|---|",
            *rows,
            "",
        ]
    )


@dataclass(frozen=True, slots=True, order=True)
class LoggedEvent:
    """A call that logs an event."""

    name: str
    level: str
    texts: tuple[str, ...]
    """The possible messages; each call logs one of them."""
    facts: tuple[str, ...]


def logged_events(source: str) -> Iterator[LoggedEvent]:
    """The events that *source*, a module, logs.

    Raises:
        ValueError: the event of a call cannot be determined, so no page could list it.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="_log"), attr=level),
                args=[ast.Constant(value=str(name)), text],
                keywords=keywords,
            ):
                names = [keyword.arg or "**" for keyword in keywords]
                facts = tuple(name for name in names if name != "exc_info")
                yield LoggedEvent(name, level, tuple(_texts(text)), facts)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="_log"))):
                raise ValueError(f"no name and text of an event: {ast.unparse(node)}")
            case _:
                pass


def _texts(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from _texts(one)
            yield from _texts(other)
        case _:
            raise ValueError(f"the text of an event has to be a constant: {ast.unparse(node)}")


def logs_page() -> str:
    """Every event of our log."""
    package = Path(llama_gguf.__file__).parent
    sources = [module.read_text("utf-8") for module in _modules(package)]
    events = {event for source in sources for event in logged_events(source)}
    return "\n".join(
        [
            _MADE,
            "# Log events\n",
            "The events that the program logs. With `LOG_FORMAT=json`, a line is an object: "
            "`time`, `level`, `event`, `logger`, `message`, then the event's facts, and "
            "`exception` if there is a traceback. Base alerts and searches on `event` and facts, "
            "whose names stay; messages may be reworded. `seconds` are durations, `share` is "
            "from 0 to 1, and an unknown fact is `null`. Lines of llama-server and of libraries "
            "have the event `other` and no facts.\n",
            "As text, a line has time, level and message; a traceback and the fact `lines` follow "
            "it, indented. Control characters are escaped, so that no value can forge a line.\n",
            "| event | level | message | facts |\n|---|---|---|---|",
            *map(_event_row, sorted(events)),
            "",
        ]
    )


def _event_row(event: LoggedEvent) -> str:
    # Without the formats of numbers, as in {seconds:.1f}.
    messages = " / ".join(re.sub(r"\{(\w+):[^}]*\}", r"{\1}", text) for text in event.texts)
    facts = ", ".join(f"`{fact}`" for fact in event.facts)
    return f"| `{event.name}` | {event.level} | {_cell(messages)} | {facts} |"


def errors_page() -> str:
    """Every error of the gateway."""
    rows = [
        f"| {kind.status} | `{kind.code}` | `{kind.type}` | {_cell(_first_line(kind))} |"
        for kind in sorted(_kinds(), key=lambda k: (k.status, k.code))
    ]
    return "\n".join(
        [
            _MADE,
            "# Errors\n",
            "Errors of the gateway are JSON in OpenAI's envelope, "
            '`{"error": {"message", "type", "param", "code"}}`; on `/v1/messages` in Anthropic\'s. '
            "Errors of llama-server pass unchanged, with a number as their `code`, except for "
            "[two that are corrected](behaviour.md#errors-of-the-engine).\n",
            "| status | code | type | when |\n|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _kinds() -> list[type[GatewayError]]:
    """Every class that defines a code."""
    found = [e for e in vars(errors).values() if isinstance(e, type)]
    return [e for e in found if issubclass(e, GatewayError) and "code" in vars(e)]


def _first_line(kind: type[GatewayError]) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def modules_page() -> str:
    """Every module with the first line of its docstring."""
    parts = [
        _MADE,
        "# Modules\n",
        "The first line of each module's docstring. Permitted imports: "
        "`cli → supervisor → gateway → scheduling, access, engines, models, telemetry → "
        "http1, net, files → config, events, memo, transitions → errors`, "
        "only to the right. [architecture.md](architecture.md) describes how they work together.\n",
    ]
    package = Path(llama_gguf.__file__).parent
    bench = package.with_name("llama_gguf_bench")
    for folder, modules in groupby(
        [*_modules(package), *_modules(bench)], lambda module: module.parent
    ):
        parts.append(f"## {folder.relative_to(package.parent).as_posix()}/\n")
        parts.append("| module | content |\n|---|---|")
        parts += [f"| `{m.name}` | {_cell(_docstring_line(m))} |" for m in modules]
        parts.append("")
    return "\n".join(parts)


def _modules(package: Path) -> list[Path]:
    found = [m for m in package.rglob("*.py") if m.read_text("utf-8").strip()]
    return sorted(found, key=lambda m: (m.parent, m.name))


def _docstring_line(module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].replace("``", "`")


def states_page() -> str:
    """The state machines, as diagrams of their tables."""
    of_exchange = (
        (state, event, then)
        for event, moves in exchange.TRANSITIONS.items()
        for state, then in moves.items()
    )
    of_engine = (
        (state, event, then) for (state, event), then in restart_policy.TRANSITIONS.items()
    )
    of_gateway = ((state, event, then) for (state, event), then in lifecycle.TRANSITIONS.items())
    of_supervisor = (
        (state, event, then) for (state, event), then in supervisor_states.TRANSITIONS.items()
    )
    of_replacement = (
        (state, event, then) for (state, event), then in replacement.TRANSITIONS.items()
    )
    return "\n".join(
        [
            _MADE,
            "# States\n",
            "Drawn from the tables in code. Any other transition is a bug and raises an error.\n",
            "## An exchange\n",
            "A request and its response: `scheduling/exchange.py`. A client connection has one "
            "exchange at a time.\n",
            _diagram(exchange.State.READING, of_exchange),
            "## A client connection\n",
            "How incoming bytes are interpreted: `gateway/client_connection.py`.\n",
            "| state | meaning | may be followed by |\n|---|---|---|",
            *_followed(client_connection.State, client_connection.TRANSITIONS),
            "",
            "## The gateway\n",
            "From its start to its end: `gateway/lifecycle.py`.\n",
            _diagram(lifecycle.State.STARTING, of_gateway),
            "## llama-server\n",
            "As tracked by the supervisor: `supervisor/restart_policy.py`. It tracks the gateway's "
            "process by the same table, where only llama-server sleeps and hangs. For a gateway "
            "without a supervisor, llama-server has one more state, `unreachable`.\n",
            _diagram(ChildState.STARTING, of_engine),
            "## The replacement of an engine\n",
            "In a rolling restart, for each replica: `supervisor/replacement.py`.\n",
            _diagram(replacement.Replacement.PLANNED, of_replacement),
            "| state | meaning |\n|---|---|",
            *_members(replacement.Replacement),
            "",
            "## The supervisor\n",
            "`llama-gguf serve`: `supervisor/states.py`.\n",
            _diagram(supervisor_states.SupervisorState.STARTING, of_supervisor),
            "| state | meaning |\n|---|---|",
            *_members(supervisor_states.SupervisorState),
            "",
            "## A connection to llama-server\n",
            "What the connection is used for at the moment: `gateway/upstream_connection.py`.\n",
            "| phase | meaning | may be followed by |\n|---|---|---|",
            *_followed(upstream_connection.Phase, upstream_connection.TRANSITIONS),
            "",
        ]
    )


def _followed(states: type[_State], transitions: Mapping[_State, Iterable[_State]]) -> list[str]:
    """As ``_members``, and which states may follow each."""
    rows = zip(_members(states), states, strict=True)
    return [
        f"{row} {', '.join(s.name for s in sorted(transitions[state]))} |" for row, state in rows
    ]


def _members(states: type[enum.Enum]) -> list[str]:
    """One row per constant, with the comment beside it."""
    lines = inspect.getsource(states).splitlines()
    named = [line.split() for line in lines if line.strip().partition(" ")[0] in states.__members__]
    return [f"| {words[0]} | {_cell(' '.join(words[4:]))} |" for words in named]


def _diagram(first: enum.Enum, moves: Iterable[tuple[enum.Enum, enum.Enum, enum.Enum]]) -> str:
    lines = [f"    {a.name} --> {b.name}: {event.name}" for a, event, b in moves]
    return "\n".join(
        ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}", *lines, "```\n"]
    )


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "docs/settings.md": settings_page,
    "docs/cli.md": cli_page,
    "docs/metrics.md": metrics_page,
    "docs/errors.md": errors_page,
    "docs/logs.md": logs_page,
    "docs/modules.md": modules_page,
    "docs/states.md": states_page,
    "docs/choosing-a-model.md": lambda: f"{_MADE}\n{model_sizes.page()}",
    "docs/openapi.json": openapi_document,
    ".env.example": env_example,
}


def out_of_date(root: Path) -> list[str]:
    """The pages under *root* that differ from the code."""
    return [
        name
        for name, page in PAGES.items()
        if not (root / name).is_file() or _differ((root / name).read_text("utf-8"), page())
    ]


def _differ(page: str, printed: str) -> bool:
    # Python versions wrap the lines of a usage message differently.
    return page.split() != printed.split()


def main() -> int:
    root = Path.cwd()
    stale = out_of_date(root)
    if "--check" in sys.argv[1:]:
        if stale:
            sys.stderr.write(f"out of date: {', '.join(stale)}. `make reference` generates them.\n")
        return 1 if stale else 0
    for name in stale:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(PAGES[name](), "utf-8")
        sys.stdout.write(f"written: {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
