"""The prompts: of a given length, or from a JSONL file, with an optional shared prefix.

A synthetic prompt is a series of common words, drawn with a seed, so that no two are equal and
the engine's prompt cache does not contain it. The number of tokens per word (and of the chat
template) is measured: two prompts, two token counts, one line through them.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.errors import UserError

CALIBRATION_WORDS: Final = (8, 64)
"""The lengths of the two prompts, which fit into a small context."""
MIN_WORDS: Final = 4
"""With this number of words, two equal prompts are very unlikely."""
_EVERYDAY: Final = (
    "time year people way day man thing woman life child world school state family "
    "student group country problem hand part place case week company system program "
    "question work government number night point home water room mother area money story "
    "fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name "
    "president team minute idea body information back parent face others level office "
    "door health person art war history party result change morning reason research girl "
    "guy moment air teacher force education "
)
_WORDS: Final = _EVERYDAY.split()

Body = Mapping[str, Any]
"""The JSON of a request, without the members that all requests of a run share."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Tokens of a prompt = ``template`` + ``per_word`` * words."""

    template: float = 0.0
    per_word: float = 1.0

    def words(self, tokens: int) -> int:
        """The number of words for *tokens* tokens.

        Raises:
            UserError: the template leaves no room for prompts that differ.
        """
        words = round((tokens - self.template) / self.per_word)
        if words < MIN_WORDS:
            least = math.ceil(self.template + MIN_WORDS * self.per_word)
            raise UserError(f"--prompt-tokens {tokens}: the minimum for this server is {least}.", 2)
        return words


def scale_of(counts: Sequence[int | None]) -> Scale:
    """The line through the token counts of two prompts of CALIBRATION_WORDS."""
    few, many = CALIBRATION_WORDS
    low, high = counts
    if low is None or high is None or high <= low:
        return Scale()  # the server reports no counts: one token per word
    per_word = (high - low) / (many - few)
    return Scale(low - per_word * few, per_word)


def text_of(words: int, rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def as_body(text: str, *, chat: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}


def synthetic(
    tokens: Sequence[int], *, scale: Scale, shared_prefix: int, chat: bool, seed: int
) -> Iterator[Body]:
    """An endless series of prompts, with the lengths *tokens* in turn.

    Args:
        tokens: lengths without the prefix, with the chat template, in tokens.
        scale: converts tokens to words.
        shared_prefix: the length of a common prefix, in tokens.
        chat: whether they become chat messages.
        seed: the same seed gives the same prompts.
    """
    words = [scale.words(length) for length in tokens]
    rng = random.Random(seed)  # noqa: S311  # load, not secrets
    prefix_words = round(shared_prefix / scale.per_word)
    prefix = text_of(prefix_words, rng) + " " if prefix_words else ""
    return (as_body(prefix + text_of(n, rng), chat=chat) for n in itertools.cycle(words))


def from_lines(lines: Iterable[str], *, chat: bool) -> list[Body]:
    """Read a JSONL file: each line a string, or an object with ``prompt`` or ``messages``.

    Other members of an object are copied into the request.

    Raises:
        UserError: a line is invalid; the message has its number.
    """
    bodies = [
        _from_line(line, number, chat=chat)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not bodies:
        raise UserError("--prompts: the file is empty. A line is a string or a JSON object.", 2)
    return bodies


def _from_line(line: str, number: int, *, chat: bool) -> Body:
    try:
        value = json.loads(line)
    except ValueError:
        raise UserError(f"--prompts: line {number} is not JSON", 2) from None
    if isinstance(value, str):
        return as_body(value, chat=chat)
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        rest = {name: v for name, v in value.items() if name != "prompt"}
        return as_body(value["prompt"], chat=chat) | rest
    if chat and isinstance(value, dict) and isinstance(value.get("messages"), list):
        return value
    wanted = '"prompt" or "messages"' if chat else '"prompt"'
    raise UserError(f"--prompts: line {number} is neither a string nor an object with {wanted}", 2)
