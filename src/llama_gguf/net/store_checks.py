"""What shared limits need on this machine, checked before anything is started."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from llama_gguf.config.schema import SharedLimitSettings
from llama_gguf.config.store_address import StoreAddress
from llama_gguf.errors import UserError, how_to_install

if TYPE_CHECKING:
    import ssl


def check(settings: SharedLimitSettings) -> None:
    """Check that a server could be connected to.

    Raises:
        UserError: packages or the file with issuers are missing.
    """
    if not settings.shared_limits:
        return
    if find_spec("hiredis") is None:
        raise UserError(
            "SHARED_LIMITS needs packages that are not installed. Install them with "
            f"{how_to_install('redis')}, or unset it.",
            exit_status=2,
            settings=("shared_limits",),
        )
    context_of(settings)


def context_of(settings: SharedLimitSettings) -> ssl.SSLContext | None:
    """What verifies the server's certificate; None without TLS.

    Raises:
        UserError: the file with issuers cannot be used.
    """
    if not StoreAddress.of(settings.shared_limits).has_tls:
        return None
    from llama_gguf.net import tls  # noqa: PLC0415  # most stores have no TLS

    return tls.verifying_context("SHARED_LIMITS_CA_FILE", settings.shared_limits_ca_file)
