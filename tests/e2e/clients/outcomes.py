"""The common part of the programs in this directory.

Each sends the same requests and prints, as JSON, what its client returned: the received pieces,
and the name of the error that ended them, if any.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

MODEL: Final = os.environ["MODEL"]
QUESTION: Final = [{"role": "user", "content": "Say hello."}]


class Place(NamedTuple):
    """A URL and a key for it."""

    url: str
    """Without /v1."""
    key: str


class Places(NamedTuple):
    """The environment variables of a program."""

    usual: Place
    wrong_key: Place
    limited: Place
    """Limited to one request per minute."""
    broken: Place
    """Its first stream is cut between two events, its second within one."""

    @classmethod
    def given(cls) -> Places:
        """The places in the environment."""
        url, broken = os.environ["BASE_URL"], os.environ["BROKEN_URL"]
        return cls(
            usual=Place(url, os.environ["KEY"]),
            wrong_key=Place(url, "sk-wrong-but-long-enough"),
            limited=Place(url, os.environ["LIMITED_KEY"]),
            broken=Place(broken, os.environ["BROKEN_KEY"]),
        )


Ask = Callable[[Place], Iterator[str]]


def outcome(pieces: Iterator[str]) -> Mapping[str, Any]:
    got = []
    try:
        for piece in pieces:
            got.append(piece)  # noqa: PERF402  # what came before the error counts
    except Exception as error:  # the test compares its name
        return {"pieces": got, "error": type(error).__name__, "message": str(error)}
    return {"pieces": got, "error": None}


def report(chat: Ask, stream: Ask, *, retries: bool = False) -> None:
    """Try everything with *chat*, which yields one piece, and *stream*, which yields many.

    Args:
        chat: one response.
        stream: the same, in pieces.
        retries: the client always does, and would wait until a limit admits it.
    """
    places = Places.given()
    tried: dict[str, Callable[[], Iterator[str]]] = {
        "chat": lambda: chat(places.usual),
        "stream": lambda: stream(places.usual),
        "wrong_key": lambda: chat(places.wrong_key),
        "within_limit": lambda: chat(places.limited),
        "over_limit": lambda: chat(places.limited),
        "cut_between_events": lambda: stream(places.broken),
        "cut_within_an_event": lambda: stream(places.broken),
    }
    if retries:
        del tried["over_limit"]
    sys.stdout.write(json.dumps({name: outcome(try_it()) for name, try_it in tried.items()}))
