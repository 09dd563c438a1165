"""Text to value, and back.

Each parser raises ValueError with what is valid, worded to follow "must be".
"""

from __future__ import annotations

import re
from collections.abc import Callable

Parser = Callable[[str], object]


def text(value: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise ValueError("text without control characters")
    return value


def boolean(value: str) -> bool:
    low = value.lower()
    if low in ("true", "1", "yes", "on"):
        return True
    if low in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def whole(low: int, high: int) -> Parser:
    def parse(value: str) -> int:
        # int() alone would accept "+5", "1_000" and digits of other scripts.
        if re.fullmatch(r"-?[0-9]{1,18}", value) and low <= int(value) <= high:
            return int(value)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(low: float) -> Parser:
    def parse(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) and float(value) >= low:
            return float(value)
        raise ValueError(f"seconds, {low:g} or more, such as 30 or 2.5")

    return parse


def choice(*options: str) -> Parser:
    def parse(value: str) -> str:
        if value.lower() in options:
            return value.lower()
        raise ValueError(f"one of: {', '.join(options)}")

    return parse


def api_key(value: str) -> str:
    # It is sent in a header field, which must have no control characters (RFC 9110 section 5.5).
    if re.fullmatch(r"[\x21-\x7e]{1,512}", value):
        return value
    raise ValueError("printable ASCII without spaces, at most 512 characters")


def key_ids(value: str) -> tuple[str, ...]:
    ids = tuple(i.strip() for i in value.split(",") if i.strip())
    if all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key_id) for key_id in ids):
        return ids
    raise ValueError("key ids of 1 to 64 characters A-Z a-z 0-9 _ -, separated by commas")


def origins(value: str) -> tuple[str, ...]:
    found = tuple(o.strip() for o in value.split(",") if o.strip())
    for origin in found:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", origin):
            raise ValueError(
                "origins as a browser sends them (https://app.example.com), "
                "separated by commas, or *"
            )
    return found


def as_text(value: object) -> str:
    """*value* in the syntax that its parser reads."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # without exponent, and without loss
    return str(value)
