"""The image's HEALTHCHECK: would a request be served now?

Asks the gateway's ``GET /health``, which is public and never touches the engine. Reads the same
variables as ``serve``; flags of ``serve`` it cannot see, so say PORT in the environment.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Final

TIMEOUT_SECONDS: Final = 4.0
_ANY: Final = ("", "0.0.0.0", "::")  # noqa: S104  # compared with, not bound to


def url(environ: Mapping[str, str]) -> str:
    """Where the gateway of this container answers."""
    host = environ.get("HOST", "")
    host = "127.0.0.1" if host in _ANY else f"[{host}]" if ":" in host else host
    scheme = "https" if environ.get("TLS_CERT_FILE") else "http"
    return f"{scheme}://{host}:{environ.get('PORT') or 8000}/health"


def main() -> int:
    # The certificate is for the clients' name of us, and this is ourselves on the loopback.
    context = ssl._create_unverified_context()  # noqa: S323
    try:
        with urllib.request.urlopen(  # noqa: S310  # the URL is http or https
            url(os.environ),  # noqa: TID251  # a program of its own
            timeout=TIMEOUT_SECONDS,
            context=context,
        ) as answer:
            told, is_healthy = answer.read(4096), True
    except urllib.error.HTTPError as error:
        told, is_healthy = error.read(4096), False
    except OSError as error:
        told, is_healthy = str(error).encode(), False
    sys.stdout.write(told.decode(errors="replace") + "\n")  # `docker inspect` shows it
    return 0 if is_healthy else 1


if __name__ == "__main__":
    sys.exit(main())
