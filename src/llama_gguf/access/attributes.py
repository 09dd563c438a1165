"""The optional attributes of a key: their names, values and bounds, as text and as a value.

In the keys file they follow the other fields of a line, as words ``name=value``. The flags of
``llama-gguf keys`` have the same names, with dashes.

Rule: no error message contains anything of the text that was parsed, which may be a secret in the
wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llama_gguf.access.networks import parse_network
from llama_gguf.http1.routes import SCOPES

if TYPE_CHECKING:
    from llama_gguf.access.networks import Network

MAX_TOKENS: Final = 1_000_000_000_000
MAX_ENGINE_SECONDS: Final = 1_000_000_000
MAX_WEIGHT: Final = 100
MAX_NETWORKS: Final = 64
PRIORITIES: Final = ("normal", "low")

_DIGITS: Final = re.compile(r"[0-9]{1,18}")


class Attributes(NamedTuple):
    """What a key may use, beyond its requests per minute.

    Args:
        tokens_per_minute: in any 60 seconds; None for no limit.
        tokens_per_day: from midnight to midnight UTC; None for no limit.
        tokens_per_month: of the calendar, in UTC; None for no limit.
        engine_seconds_per_day: of work of the engine; None for no limit.
        routes: of ``routes.SCOPES``, those that it may use; empty for all.
        networks: from which it may be used; empty for all.
        weight: turns in the queue, per turn of a key with weight 1.
        priority: one of ``PRIORITIES``.
    """

    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    engine_seconds_per_day: int | None = None
    routes: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    weight: int = 1
    priority: str = "normal"


NO_ATTRIBUTES: Final = Attributes()


def _whole(high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would accept "+5", "1_000" and digits of other scripts.
        if _DIGITS.fullmatch(text) and 1 <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from 1 to {high}")

    return parse


def _routes(text: str) -> frozenset[str]:
    names = text.split(",")
    if all(name in SCOPES for name in names):
        return frozenset(names)
    raise ValueError(f"names separated by commas, of {', '.join(SCOPES)}")


def _networks(text: str) -> tuple[Network, ...]:
    wanted = (
        f"at most {MAX_NETWORKS} networks separated by commas, such as 10.0.0.0/8,2001:db8::/32, "
        "without bits after the prefix"
    )
    parts = text.split(",")
    if len(parts) > MAX_NETWORKS:
        raise ValueError(wanted)
    try:
        return tuple(parse_network(part) for part in parts)
    except ValueError:
        raise ValueError(wanted) from None


def _priority(text: str) -> str:
    if text in PRIORITIES:
        return text
    raise ValueError(f"one of {', '.join(PRIORITIES)}")


# By their names in the file: the attribute of ``Attributes``, and the parser of its text.
_FORMS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "tokens_per_minute": ("tokens_per_minute", _whole(MAX_TOKENS)),
    "tokens_per_day": ("tokens_per_day", _whole(MAX_TOKENS)),
    "tokens_per_month": ("tokens_per_month", _whole(MAX_TOKENS)),
    "engine_seconds_per_day": ("engine_seconds_per_day", _whole(MAX_ENGINE_SECONDS)),
    "routes": ("routes", _routes),
    "from": ("networks", _networks),
    "weight": ("weight", _whole(MAX_WEIGHT)),
    "priority": ("priority", _priority),
}
NAMES: Final = tuple(_FORMS)
"""In the order in which they are written."""


def field_of(name: str) -> str:
    """The field of ``Attributes`` for *name*, one of ``NAMES``."""
    return _FORMS[name][0]


def parse_value(name: str, text: str) -> object:
    """Parse the value of the attribute *name*, one of ``NAMES``.

    Raises:
        ValueError: its message is the expected form.
    """
    return _FORMS[name][1](text)


def parse_words(words: Iterable[str]) -> Attributes:
    """Parse the words ``name=value`` at the end of a line.

    Raises:
        ValueError: its message is the expected form.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in _FORMS:
            raise ValueError(f"an attribute must be name=value with a name of {', '.join(NAMES)}")
        field = field_of(name)
        if field in values:
            raise ValueError(f"the attribute {name} must not be repeated")
        try:
            values[field] = parse_value(name, text)
        except ValueError as wanted:
            raise ValueError(f"the attribute {name} must be {wanted}") from None
    return Attributes(**values) if values else NO_ATTRIBUTES


def as_text(attributes: Attributes) -> dict[str, str]:
    """The attributes that differ from their defaults, by their names in the file."""
    texts: dict[str, str] = {}
    for name, (field, _) in _FORMS.items():
        value = getattr(attributes, field)
        if value != getattr(NO_ATTRIBUTES, field):
            texts[name] = _text_of(value)
    return texts


def _text_of(value: object) -> str:
    if isinstance(value, frozenset):
        return ",".join(name for name in SCOPES if name in value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def format_words(attributes: Attributes) -> str:
    """The words for the end of a line, each with a space before it.

    Raises:
        ValueError: they could not be parsed again; its message is the expected form.
    """
    words = [f"{name}={text}" for name, text in as_text(attributes).items()]
    parse_words(words)
    return "".join(f" {word}" for word in words)
