"""Which URLs can be fetched, how to show one without secrets, and when its host is not trusted."""

from __future__ import annotations

import re
from typing import Final

from llama_gguf.errors import UserError

UNTRUSTED: Final = (
    "Its certificate is not trusted here. If a proxy of your network replaces certificates, set "
    "SSL_CERT_FILE to a file with the certificate of its authority."
)


def is_untrusted(error: object) -> bool:
    """Whether *error* is that of a certificate, from any library."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def check_url(url: str) -> None:
    """Check that *url* can be requested: http or https, with a host.

    Raises:
        UserError: it cannot; exit status 2.
    """
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = None
    if not usable:
        raise UserError(
            f"{shown(url)} is not a URL that can be fetched; use https://HOST/PATH", exit_status=2
        )


def shown(url: str) -> str:
    """*url* for messages and logs: without login, query and fragment, which may be secret."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path
