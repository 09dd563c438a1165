"""Measures the cost of loading keys and of finding one, with one key and with ten thousand.

usage: python -m perf.keys
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from llama_gguf.access import keys
from llama_gguf.access.authenticator import Authenticator
from llama_gguf.access.keys import KeyRing
from llama_gguf.cli.terminal import print_table
from llama_gguf.config.schema import AuthSettings
from llama_gguf.errors import Unauthorized
from llama_gguf.http1.fields import RequestFields

SIZES: Final = (1, 10_000)
ATTRIBUTES: Final = (
    " tokens_per_minute=10000 tokens_per_day=2000000 tokens_per_month=50000000 "
    "engine_seconds_per_day=3600 routes=chat,embeddings from=10.0.0.0/8,2001:db8::/32 weight=4 "
    "priority=low"
)
REPEATS: Final = 7
LOOK_UPS: Final = 20_000


def secret(n: int) -> str:
    return f"sk-{n:043d}"


def file_of(size: int, *, hashed: bool = False, words: str = "") -> str:
    stored = keys.hashed if hashed else str
    return "".join(
        f"key-{n}:{stored(secret(n))}:60:2099-01-01T00:00:00Z{words}\n" for n in range(size)
    )


def loaded(text: str) -> Authenticator:
    """An authenticator as in a gateway after a reload."""
    authenticator = Authenticator(AuthSettings(auth_failures_per_minute=0))
    authenticator.take(KeyRing.parse(text), ())
    return authenticator


def finder(authenticator: Authenticator, presented: str) -> Callable[[], None]:
    read = RequestFields()
    read.authorizations.append(b"Bearer " + presented.encode())

    def find() -> None:
        with suppress(Unauthorized):
            authenticator.authenticate(read, "192.0.2.1", now=0.0, wall=0.0)

    return find


def best(work: Callable[[], object], number: int) -> float:
    """The shortest duration of *work* in seconds, which is the least disturbed one."""
    return min(timeit.repeat(work, number=number, repeat=REPEATS)) / number


def row(size: int) -> list[str]:
    plain, digests = file_of(size), file_of(size, hashed=True)
    full = file_of(size, words=ATTRIBUTES)
    authenticator = loaded(plain)
    return [
        f"{size:,}",
        f"{best(lambda: loaded(plain), 1) * 1e3:.2f}",
        f"{best(lambda: loaded(digests), 1) * 1e3:.2f}",
        f"{best(lambda: loaded(full), 1) * 1e3:.2f}",
        f"{best(finder(authenticator, secret(size - 1)), LOOK_UPS) * 1e6:.2f}",
        f"{best(finder(authenticator, secret(size)), LOOK_UPS) * 1e6:.2f}",
    ]


def main() -> int:
    loads = ("load, ms", "load digests, ms", "load with all attributes, ms")
    columns = ("keys", *loads, "a key, us", "a wrong key, us")
    print_table(columns, [row(size) for size in SIZES])
    return 0


if __name__ == "__main__":
    sys.exit(main())
