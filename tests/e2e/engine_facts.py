"""The behaviour of llama-server that we rely on, seen from outside: one fact per line.

tests/e2e/engine_facts.txt has the reviewed facts, and engine_facts_newest.txt those of the newest
engine that was looked at: ``test_drift.py`` compares the former with the installed engine, and in
``make drift`` the latter with the newest one on PyPI. If it reports a change: check whether we rely
on the fact (engines/command.py, http1/routes.py, engines/probe.py, what reads tokens and timings),
change our code if necessary, and record the facts with ``make engine-facts``, or with
``RECORD_ENGINE_FACTS=1 make drift``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llama_gguf.config.schema import EngineSettings
from llama_gguf.engines import command, locate
from llama_gguf.engines.address import EngineAddress
from tests.support.clients import Wire
from tests.support.messages import Response, request

RECORDED: Final = Path(os.environ.get("ENGINE_FACTS") or Path(__file__).with_suffix(".txt"))
RENEW: Final = (
    "if all is well with that, `make engine-facts` records it, or the same for `make drift`"
)

Facts = dict[str, list[str]]
"""By heading."""

# All known routes of llama.cpp's server, exposed and hidden.
_GET: Final = (
    *("/health", "/v1/health", "/metrics", "/props", "/models", "/v1/models", "/slots"),
    *("/lora-adapters", "/v1/stream", "/tools", "/cors-proxy", "/models/sse"),
)
_POST: Final = (
    *("/completion", "/completions", "/v1/completions", "/chat/completions"),
    *("/v1/chat/completions", "/v1/chat/completions/control", "/responses", "/v1/responses"),
    *("/audio/transcriptions", "/v1/audio/transcriptions", "/v1/messages", "/infill"),
    *("/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank"),
    *("/v1/reranking", "/tokenize", "/detokenize", "/apply-template"),
    *("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
    *("/responses/input_tokens", "/v1/responses/input_tokens", "/v1/messages/count_tokens"),
    *("/props", "/lora-adapters", "/slots/0?action=erase", "/v1/streams/lookup", "/tools"),
    *("/cors-proxy", "/models", "/models/load", "/models/unload", "/v1/systemone"),
)
_QUESTION: Final = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "seed": 1}
_ORIGIN: Final = "https://browser.example"


@dataclass(frozen=True)
class Observed(Response):
    is_kept: bool
    """Whether the connection accepted another request."""

    @property
    def events(self) -> list[Any]:
        """The data of an event stream, without [DONE]."""
        data = re.findall(rb"^data: (.*)$", self.body, re.MULTILINE)
        return [json.loads(event) for event in data if event != b"[DONE]"]


class Engine:
    """A client of a running llama-server."""

    def __init__(self, port: int, key: str) -> None:
        self._address = ("127.0.0.1", port)
        self._key = key

    def request(
        self, method: str, path: str, body: bytes | None = None, *, key: str | None = None
    ) -> Observed:
        fields = ("Content-Type: application/json", f"Origin: {_ORIGIN}")
        key = self._key if key is None else key
        with Wire(self._address, seconds=60) as wire:
            wire.send(request(method, path, *fields, body=body, key=key))
            response = wire.response()
            return Observed(**vars(response), is_kept=_is_kept(wire))

    def post(self, path: str, question: Any) -> Observed:
        return self.request("POST", path, json.dumps(question).encode())


def _is_kept(wire: Wire) -> bool:
    try:
        wire.send(request("GET", "/health"))
        return wire.response().status == 200
    except OSError:
        return False


def observe(engine: Engine) -> Facts:
    """All facts about the installed llama-server; *engine* is a client of a running one."""
    given = os.environ.get("LLAMA_SERVER", "")
    found = locate.locate(given, os.environ.get("PATH", ""), environ=os.environ)
    environ = {**os.environ, **found.environment_changes}
    help_text = subprocess.run(
        [found.path, "--help"], env=environ, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return {
        "flags that we give": list(_flags(found.path, help_text)),
        "variables": list(_variables(help_text)),
        "routes": list(_routes(engine)),
        "routes that its files name": list(_named_routes(Path(found.path).parent)),
        "errors": list(_errors(engine)),
        "answers": list(_answers(engine)),
        "connections": list(_connections(engine)),
        "metrics": list(_metrics(engine)),
    }


def _flags(path: str, help_text: str) -> Iterator[str]:
    """The flags that engines/command.py passes, and whether --help has them."""
    everything = EngineSettings(threads=1, parallel=1)
    argv = command.engine_argv(path, everything, model_path="m.gguf", alias="m")
    argv[5:5] = command.listen_flags(EngineAddress("127.0.0.1", 8080))
    known = set(re.findall(r"(?<!\S)(--?[a-z][\w-]*)", help_text))
    for flag in argv:
        if flag.startswith("--"):
            yield f"{flag}{'' if flag in known else ' IS UNKNOWN'}"


def _variables(help_text: str) -> Iterator[str]:
    names = set(re.findall(r"\benv: (\w+)", help_text))
    passed, _ = command.engine_environment(dict.fromkeys(names, "a"), api_key="ours", changes={})
    for name in sorted(names):
        yield f"{name} {'passes' if passed.get(name) == 'a' else 'is kept from it'}"


def _routes(engine: Engine) -> Iterator[str]:
    for path in _GET:
        # An endless stream of events.
        status = 404 if path == "/models/sse" else engine.request("GET", path).status
        yield f"GET {path} {status}"
    for path in _POST:
        yield f"POST {path} {engine.request('POST', path, b'{}').status}"


def _named_routes(folder: Path) -> Iterator[str]:
    """Found in the libraries, except the shortest, which are inlined. It reveals new routes."""
    pattern = re.compile(rb"\0(/(?:v1|models?|slots|props|tools?|chat|responses)[\w/:-]*)\0")
    found: set[str] = set()
    for library in folder.glob("llama-server*"):
        found |= {name.decode() for name in pattern.findall(library.read_bytes())}
    for library in folder.glob("libllama-server*.so"):
        found |= {name.decode() for name in pattern.findall(library.read_bytes())}
    yield from sorted(found)


def _errors(engine: Engine) -> Iterator[str]:
    chat = "/v1/chat/completions"
    long = {**_QUESTION, "messages": [{"role": "user", "content": "word " * 4000}]}
    cases = {
        "no key": engine.request("POST", chat, b"{}", key=""),
        "wrong key": engine.request("POST", chat, b"{}", key="wrong"),
        "no such path": engine.request("GET", "/nothing"),
        "no such method": engine.request("PATCH", chat, b"{}"),
        "no JSON": engine.request("POST", chat, b"{"),
        "no messages": engine.request("POST", chat, b"{}"),
        "prompt longer than the context": engine.post(chat, long),
        "embeddings of a model that has none": engine.post("/v1/embeddings", {"input": "Hi"}),
        "no messages, Anthropic": engine.request("POST", "/v1/messages", b"{}"),
    }
    for case, answer in cases.items():
        yield f"{case}: {answer.status}"
        yield from (
            f"{case}: {line}" for line in shape(_json_or_text(answer), shown=("type", "code"))
        )


def _json_or_text(response: Observed) -> Any:
    try:
        return response.json
    except ValueError:
        return {"not JSON": response.body.decode(errors="replace")[:80]}


def _answers(engine: Engine) -> Iterator[str]:
    chat = engine.post("/v1/chat/completions", _QUESTION)
    stream = engine.post("/v1/chat/completions", {**_QUESTION, "stream": True})
    anthropic = engine.post("/v1/messages", {**_QUESTION, "stream": True})
    cases: dict[str, Any] = {
        "chat": chat.json,
        "chat, first event": stream.events[0],
        "chat, last event": stream.events[-1],
        "completion": {
            name: value
            for name, value in engine.post(
                "/completion", {"prompt": "Hi", "n_predict": 2}
            ).json.items()
            if name != "generation_settings"
        },
        "messages": engine.post("/v1/messages", _QUESTION).json,
        "messages, last events": {e["type"]: e for e in anthropic.events[-2:]},
        "responses": engine.post("/v1/responses", {"input": "Hi", "max_output_tokens": 2}).json,
        "health": engine.request("GET", "/health").json,
        "models": engine.request("GET", "/v1/models").json,
        "props": {
            name: value
            for name, value in engine.request("GET", "/props").json.items()
            if name in ("total_slots", "is_sleeping", "model_path", "build_info")
        },
    }
    yield f"chat: a stream ends with {stream.body.split()[-1].decode()}"
    for case, value in cases.items():
        yield from (f"{case}: {line}" for line in shape(value))


def shape(value: Any, path: str = "", shown: Sequence[str] = ()) -> Iterator[str]:
    """The paths in a JSON value, each with the kind of its value.

    The first element of a list represents all. The values of the names in *shown* are included.
    """
    if isinstance(value, dict) and value:
        for name in sorted(value):
            yield from shape(value[name], f"{path}.{name}" if path else name, shown)
    elif isinstance(value, list) and value:
        yield from shape(value[0], f"{path}[]", shown)
    elif path.rpartition(".")[2] in shown:
        yield f"{path} = {value}"
    else:
        yield f"{path} {_kind(value)}"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "null" if value is None else type(value).__name__


def _connections(engine: Engine) -> Iterator[str]:
    responses = {
        "an answer": engine.post("/v1/chat/completions", _QUESTION),
        "a stream": engine.post("/v1/chat/completions", {**_QUESTION, "stream": True}),
    }
    for what, answer in responses.items():
        for name, value in sorted({n.lower(): v for n, v in answer.fields}.items()):
            shown = "a number" if name == "content-length" else value
            yield f"{what}: {name}: {shown}"
        yield f"{what}: the connection is {'kept' if answer.is_kept else 'closed'} afterwards"


def _metrics(engine: Engine) -> Iterator[str]:
    text = engine.request("GET", "/metrics").body.decode()
    yield from sorted(re.findall(r"^# TYPE (\S+ \w+)", text, re.MULTILINE))


# The record ---------------------------------------------------------------------------------------


def written(facts: Facts) -> str:
    blocks = ("\n".join([f"## {heading}", *lines]) for heading, lines in facts.items())
    return "\n\n".join(blocks) + "\n"


def recorded() -> Facts:
    blocks = RECORDED.read_text().strip().split("\n\n")
    return {lines[0].removeprefix("## "): lines[1:] for lines in map(str.splitlines, blocks)}


def changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """The missing and the new facts, a line each."""
    gone = [f"gone: {line}" for line in before if line not in now]
    return gone + [f"new: {line}" for line in now if line not in before]
