"""The image's HEALTHCHECK: whether a request would be served now.

Requests the gateway's ``GET /health``, which needs no key and sends nothing to the engine. Reads
the same variables as ``serve``, but not its flags, so set PORT in the environment.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Final

from llama_gguf.config.load import load_usable

TIMEOUT_SECONDS: Final = 4.0
_ANY: Final = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound to


def url(environ: Mapping[str, str]) -> str:
    """The health URL of this container's gateway."""
    settings = load_usable(environ)[0].settings
    host = settings.listen.host
    host = "127.0.0.1" if host in _ANY else f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls.tls_cert_file else "http"
    return f"{scheme}://{host}:{settings.listen.port}/health"


def main() -> int:
    # The certificate is for the public host name; this connection is to the loopback address.
    context = ssl._create_unverified_context()  # noqa: S323
    # Docker passes the proxy in its configuration to all containers.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(
            url(os.environ),  # noqa: TID251  # a separate program
            timeout=TIMEOUT_SECONDS,
        ) as response:
            body, is_healthy = response.read(4096), True
    except urllib.error.HTTPError as error:
        body, is_healthy = error.read(4096), False
    except OSError as error:
        body, is_healthy = str(error).encode(), False
    sys.stdout.write(body.decode(errors="replace") + "\n")  # `docker inspect` shows it
    return 0 if is_healthy else 1


if __name__ == "__main__":
    sys.exit(main())
