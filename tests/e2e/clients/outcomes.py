"""What the programs beside this one have in common.

Each asks for the same things and says on standard output, as JSON, what its client made of
them: the pieces that came, and the name of the error that ended them, if one did.
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
    """Where to ask, and with which key."""

    url: str
    """Without /v1."""
    key: str


class Places(NamedTuple):
    """Where a program finds what it tries."""

    usual: Place
    wrong_key: Place
    limited: Place
    """Admits one request a minute."""
    broken: Place
    """Its first stream breaks off between two events, its second within one."""

    @classmethod
    def given(cls) -> Places:
        """Those that the environment names."""
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
    except Exception as error:  # its name is what is asked for
        return {"pieces": got, "error": type(error).__name__, "message": str(error)}
    return {"pieces": got, "error": None}


def report(chat: Ask, stream: Ask, *, retries: bool = False) -> None:
    """Try everything with *chat*, which yields one piece, and *stream*, which yields many.

    Args:
        chat: one answer.
        stream: the same in pieces.
        retries: the client cannot be told not to: it would wait until a limit lets it in.
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
    sys.stdout.write(json.dumps({name: outcome(ask()) for name, ask in tried.items()}))
