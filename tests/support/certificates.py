"""Certificates, issued on demand, and contexts of clients that trust them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import trustme
from cryptography.hazmat.primitives import serialization

_CA: Final = trustme.CA()
CA_PEM: Final = _CA.cert_pem.bytes()


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, both as PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path) -> dict[str, str]:
        """Write it into *folder*, over an earlier one; returns the settings for it."""
        (folder / "cert.pem").write_bytes(self.chain)
        (folder / "key.pem").write_bytes(self.key)
        return {
            "TLS_CERT_FILE": str(folder / "cert.pem"),
            "TLS_KEY_FILE": str(folder / "key.pem"),
        }

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as folder:
            context.load_cert_chain(*self.write(Path(folder)).values())
        return context

    @property
    def encrypted_key(self) -> bytes:
        return serialization.load_pem_private_key(self.key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )


def issue(*names: str, not_before: int | None = None, not_after: int | None = None) -> Pair:
    """A certificate for 127.0.0.1 and *names*, valid between these years."""
    leaf = _CA.issue_cert(
        "127.0.0.1", *names, not_before=_new_year(not_before), not_after=_new_year(not_after)
    )
    return Pair(b"".join(p.bytes() for p in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


def _new_year(year: int | None) -> datetime | None:
    return None if year is None else datetime(year, 1, 1, tzinfo=UTC)


def names_in(certificate: Mapping[str, Any] | None) -> set[str]:
    """The names in *certificate*, from ``getpeercert``, without 127.0.0.1."""
    assert certificate is not None
    return {name for _, name in certificate["subjectAltName"]} - {"127.0.0.1"}


def trusting() -> ssl.SSLContext:
    """A client that trusts these certificates, and rejects an end without a close_notify."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=CA_PEM.decode())
    client.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return client
