"""Removes secrets from text that is shown: known secrets, and text that looks like one.

A known secret is masked everywhere, also as encoded in URLs, JSON or base64. An unknown one is
detected by its context (a name such as ``token=``, a flag such as ``--api-key``, ``Bearer``, the
login of a URL) or by its form. In doubt, text is masked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

MASK: Final = "********"
MIN_SECRET: Final = 4
"""Characters. Shorter values are masked only next to a name that marks them as secret."""

_SENSITIVE_NAME: Final = (
    r"(?i)KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|PRIVATE|SIGNATURE|COOKIE|AUTH"
    r"|OTLP_(?:[A-Z]+_)?HEADERS"
)
_SENSITIVE_WORD: Final = (
    r"(?i)(?:key|token|secret|passwo?r?d|passphrase|pwd|credentials?|signature|cookie|auth|-hft)$"
)
_COMMON: Final = (
    r"(?i)|[0-9.]{1,5}|(?:true|false|yes|no|on|off|none|null|auto)|(?:bool|int|float|str):.*"
)
_NAME: Final = (
    r"(?:api[_-]?key|[_-]key|\bkey|token|secret|passw(?:or)?d|passphrase|pwd|credentials?"
    r"|signature|cookie|authorization)"
)
_PLAIN: Final = r"(?!(?:[0-9.]+|true|false|null|none)\b|[/{\[(*])"
"""Not a secret: a number, a boolean, a path, an object, a remark, or what is masked already."""

_LOGIN: Final = r"(?<=://)[^/\s]{1,500}@"
_QUERY: Final = r"(://[^\s?#\"']{1,500})\?[^\s#\"']*"
# Each is bounded, or begins with something rare: a line may be as long as a log.
_PATTERNS: Final = (
    (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", MASK),
    (r"(?i)\b(bearer|basic)(\s+)[^\s\"',;*]{6,}", rf"\1\2{MASK}"),
    (
        rf"(?i)({_NAME}[\"']?\s{{0,9}}[=:]\s{{0,9}}[\"']?){_PLAIN}[^\s\"',;&]+",
        rf"\1{MASK}",
    ),
    (
        rf"(?im)((?:^|\s)--?[\w-]{{0,40}}{_NAME}\s+)(?!-){_PLAIN}\S+",
        rf"\1{MASK}",
    ),
    (r"\b(?:sk-|hf_|gateway-|gh[opsu]_|glpat-|xox[abp]-|AKIA|eyJ[\w-]{8,}\.)[\w.-]{12,}", MASK),
)


class Masker:
    """Masks *secrets*, and text that looks like one."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {s.strip() for s in secrets}
        spelt = {form for s in known if len(s) >= MIN_SECRET for form in _spellings(s)}
        # The longest first: one may be a part of another.
        self._known = sorted(spelt, key=len, reverse=True)

    def mask(self, text: str) -> str:
        for secret in self._known:
            text = text.replace(secret, MASK)
        text = mask_urls(text)
        for pattern, instead in _PATTERNS:
            text = re.sub(pattern, instead, text)
        return text


def names_secret(name: str) -> bool:
    """Whether the value of a variable *name* is likely to be a secret."""
    return re.search(_SENSITIVE_NAME, name) is not None


def mask_urls(text: str) -> str:
    """*text* without the logins and queries of its URLs."""
    return re.sub(_QUERY, r"\1?***", re.sub(_LOGIN, "***@", text))


def _spellings(secret: str) -> Iterator[str]:
    import json  # noqa: PLC0415  # a server masks no secret when it starts
    from base64 import b64encode  # noqa: PLC0415
    from urllib.parse import quote  # noqa: PLC0415

    yield secret
    yield quote(secret, safe="")
    yield quote(secret)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    raw = secret.encode("utf-8", "surrogateescape")
    yield b64encode(raw).decode().rstrip("=")


def secrets_of(
    environ: Mapping[str, str], is_harmless: Callable[[str, str], bool]
) -> Iterator[str]:
    """The values in *environ* with names of secrets, and the logins and queries of its URLs.

    Args:
        environ: names and values.
        is_harmless: returns whether a name, or its value, is known not to be a secret.
    """
    for name, value in environ.items():
        found = [value] if names_secret(name) and not is_harmless(name, value) else []
        for url in re.findall(r"[A-Za-z][\w+.-]*://\S+", value):
            found += _secrets_of_url(url)
        found += secrets_in(value.split())
        yield from (secret for secret in found if not _is_common(secret))


def _secrets_of_url(url: str) -> list[str]:
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415

    try:
        parts = urlsplit(url)
    except ValueError:  # the patterns still apply
        return []
    login = parts.netloc.rpartition("@")[0]
    values = [word.partition("=")[2] for word in parts.query.split("&")]
    found = [login, *login.split(":", 1), parts.query, *(v for v in values if len(v) >= 8)]
    return found + [unquote(secret) for secret in found]


def secrets_in(words: Sequence[str]) -> Iterator[str]:
    """The values in a command line whose flag or name marks them as secret."""
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if not re.search(_SENSITIVE_WORD, name):
            continue
        if not equals:
            value = following if name.startswith("-") and not following.startswith("-") else ""
        if not _is_common(value):
            yield value


def masked_words(words: Sequence[str]) -> list[str]:
    """A command line with all such values masked."""
    masked = []
    is_secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_named = bool(re.search(_SENSITIVE_WORD, name))
        if is_secret and not word.startswith("-"):
            masked.append(MASK)
        else:
            masked.append(f"{name}={MASK}" if equals and is_named else word)
        is_secret = is_named and name.startswith("-") and not equals
    return masked


def _is_common(value: str) -> bool:
    """Whether *value* is too common to be a secret: masking it would hide half of a text."""
    return re.fullmatch(_COMMON, value) is not None
