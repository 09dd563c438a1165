"""One run: identify the server, send a few requests to verify that it works, then the load."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.errors import UserError
from llama_gguf_bench import prompts, server
from llama_gguf_bench.connection import ConnectionLost, Connections, Target
from llama_gguf_bench.load import Budget, Level, Sender, clock, run_level
from llama_gguf_bench.options import Load, Options
from llama_gguf_bench.overhead import SIDES, Turns, take_turns
from llama_gguf_bench.prompts import Body
from llama_gguf_bench.responses import error_message
from llama_gguf_bench.server import Server, Watch, Whole

OLD_LIMIT: Final = "max_tokens"
NEW_LIMIT: Final = "max_completion_tokens"
"""OpenAI's newer models reject the old name."""

Progress = Callable[[Load, Budget, Level], None]

_HINTS: Final[Mapping[int, str]] = {
    404: " Check that this is the base URL of an OpenAI-compatible endpoint, and check --model.",
    429: " Create a key for this: llama-gguf keys generate --rate-limit 1000000",
    503: " Wait until the model is ready.",
}


@dataclass(slots=True)
class Prepared:
    """The facts about the server that a load needs."""

    server: Server
    fixed: dict[str, Any]
    bodies: Iterator[Body]


async def prepare(
    connections: Connections, options: Options, lines: Sequence[str] | None
) -> Prepared:
    """Identify the server, and send it one or two requests.

    Args:
        connections: to the server.
        options: of the run.
        lines: of the prompts file, if there is one.

    Raises:
        UserError: it does not respond as expected; the message states what to do.
    """
    found = await server.look(connections)
    fixed = fixed_fields(options, found)
    try:
        return await _prepared(connections, options, lines, found, fixed)
    except _OldLimitRefused:
        fixed[NEW_LIMIT] = fixed.pop(OLD_LIMIT)
        return await _prepared(connections, options, lines, found, fixed)


class _OldLimitRefused(UserError):
    """The server insists on the new name of the limit of output tokens."""


async def _prepared(
    connections: Connections,
    options: Options,
    lines: Sequence[str] | None,
    found: Server,
    fixed: dict[str, Any],
) -> Prepared:
    if lines is not None:
        chosen = prompts.from_lines(lines, chat=options.chat)
        await _send_once(connections, options, {**fixed, **chosen[0]})
        return Prepared(found, fixed, itertools.cycle(chosen))
    scale = await _calibrate(connections, options, fixed)
    bodies = prompts.synthetic(
        options.prompt_tokens,
        scale=scale,
        shared_prefix=options.shared_prefix,
        chat=options.chat,
        seed=options.seed,
    )
    return Prepared(found, fixed, bodies)


def fixed_fields(options: Options, found: Server) -> dict[str, Any]:
    """The members that the bodies of all requests share."""
    fields: dict[str, Any] = {
        "model": server.model_name(found, options.model),
        OLD_LIMIT: options.output_tokens,
        "temperature": 0,
        "stream": options.streamed,
    }
    if options.streamed:
        fields["stream_options"] = {"include_usage": True}
    if found.is_llama_cpp:
        fields["ignore_eos"] = True  # so every response has the requested length
    if NEW_LIMIT in options.body:
        del fields[OLD_LIMIT]
    return fields | dict(options.body)


async def _calibrate(
    connections: Connections, options: Options, fixed: Mapping[str, Any]
) -> prompts.Scale:
    rng = random.Random(options.seed)  # noqa: S311  # load, not secrets
    counted = [
        await _send_once(
            connections,
            options,
            {**fixed, **prompts.as_body(prompts.text_of(words, rng), chat=options.chat)},
        )
        for words in prompts.CALIBRATION_WORDS
    ]
    return prompts.scale_of(server.calibrated(counted))


async def _send_once(
    connections: Connections, options: Options, body: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The response to one small request, not streamed.

    Raises:
        UserError: there is none.
    """
    target = connections.target
    sink = await _response_to(connections, options, _small(body))
    if sink.status == 400 and NEW_LIMIT not in body and NEW_LIMIT.encode() in sink.body:
        raise _OldLimitRefused(error_message(sink.body))
    if sink.status != 200:
        reason = error_message(sink.body) or "no reason given"
        hint = f" {target.key_hint}" if sink.status in (401, 403) else _HINTS.get(sink.status, "")
        raise UserError(f"{target.url} returned status {sink.status}: {reason.rstrip('.')}.{hint}")
    with suppress(ValueError):
        response = json.loads(sink.body)
        if isinstance(response, dict) and response.get("choices"):
            return response
    raise UserError(f"{target.url} responded, but not like an OpenAI-compatible endpoint.")


def _small(body: Mapping[str, Any]) -> dict[str, Any]:
    limit = NEW_LIMIT if NEW_LIMIT in body else OLD_LIMIT
    small = {**body, "stream": False, limit: 1}
    small.pop("stream_options", None)
    return small


async def _response_to(
    connections: Connections, options: Options, body: Mapping[str, Any]
) -> Whole:
    """Raises UserError if there is no complete response."""
    target, sink = connections.target, Whole()
    request = target.request("POST", options.path, json.dumps(body).encode())
    try:
        async with asyncio.timeout(options.timeout):
            await connections.exchange(request, sink)
    except TimeoutError:
        raise UserError(f"{target.url} did not respond within {options.timeout:g} s.") from None
    except (OSError, ConnectionLost) as error:
        raise UserError(
            f"{target.url} cannot be reached: {_reason(error)}. {_advice(error)}"
        ) from None
    return sink


def _advice(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "Set --ca-file to a file with the certificate of the authority that issued its own."
    if isinstance(error, ssl.SSLError):
        return "Check that it speaks TLS: else its URL begins with http."
    return "Check that it runs."


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


async def run_loads(
    target: Target, options: Options, lines: Sequence[str] | None, *, progress: Progress
) -> tuple[Prepared, list[Level]]:
    """Send every load in turn. Ctrl-C ends it with the results so far.

    Raises:
        UserError: the server does not respond as expected.
    """
    rng = random.Random(options.seed)  # noqa: S311  # load, not secrets
    levels: list[Level] = []
    with closing(Connections(target, clock, keeps=options.keeps_connections)) as connections:
        prepared = await prepare(connections, options, lines)
        for load in options.loads:
            async with _watched(target, is_ours=bool(prepared.server.gateway)) as observed:
                level = await run_level(
                    load,
                    options,
                    connections,
                    fixed=prepared.fixed,
                    bodies=prepared.bodies,
                    progress=_bound(progress, load),
                    rng=rng,
                )
            level.server = observed
            levels.append(level)
            if level.interrupted:
                break
    return prepared, levels


def _bound(progress: Progress, load: Load) -> Callable[[Budget, Level], None]:
    return lambda budget, level: progress(load, budget, level)


@asynccontextmanager
async def _watched(target: Target, *, is_ours: bool) -> AsyncIterator[dict[str, Any]]:
    """Observe the gateway's queue, if there is a gateway; the values are complete at the end."""
    observed: dict[str, Any] = {}
    if not is_ours:
        yield observed
        return
    with closing(Connections(target, clock)) as connections:  # separate from those of the load
        watch = Watch(connections)
        await watch.begin()
        loop = asyncio.get_running_loop()
        watching = loop.create_task(watch.run())
        try:
            yield observed
        finally:
            watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        observed |= await watch.end()


async def run_turns(
    targets: Mapping[str, Target],
    options: Options,
    lines: Sequence[str] | None,
    *,
    progress: Callable[[Turns, float], None],
) -> tuple[Prepared, list[Turns]]:
    """Send the load to both endpoints in turn, for each number of streams.

    Args:
        targets: by side, ``direct`` and ``gateway``.
        options: of the run, for both.
        lines: of the prompts file, if there is one.
        progress: called before each block with the completed fraction.

    Raises:
        UserError: one of them does not respond as expected.
    """
    rng = random.Random(options.seed)  # noqa: S311  # the order of two sides
    found: list[Turns] = []
    with ExitStack() as stack:
        senders = {}
        for side in SIDES:
            connections = Connections(targets[side], clock, keeps=options.keeps_connections)
            stack.enter_context(closing(connections))
            prepared = await prepare(connections, options, lines)
            senders[side] = Sender(connections, options, prepared.fixed)
        for load in options.loads:
            found.append(
                await take_turns(
                    load.streams or 1, options, senders, prepared.bodies, rng=rng, progress=progress
                )
            )
            if found[-1].interrupted:
                break
    return prepared, found
