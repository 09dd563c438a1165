"""The TLS certificate: loaded, checked and replaced on reload.

A context in use is never changed: a reload creates a new one, which later connections get if it
can be used. No message contains any part of a key.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Self

from llama_gguf.errors import UserError
from llama_gguf.events import EventLog
from llama_gguf.values import Value

_log: Final = EventLog(__name__)


class Certificate(Value):
    """A certificate that can be served, with its key."""

    context: ssl.SSLContext
    file: str
    valid_until: datetime | None
    """None when clients will refuse it."""
    refusal: str
    """Why clients will refuse it, such as its expiry; mostly empty."""


class ServerContext(ssl.SSLContext):
    """A server's context for its whole life: each connection uses the newest certificate.

    The new certificate is not loaded into the context in use, since a key that does not match it
    is found only when the old pair is gone.

    Args:
        cert_file: TLS_CERT_FILE.
        key_file: TLS_KEY_FILE.

    Raises:
        UserError: they cannot be used.
    """

    def __new__(cls, cert_file: str, key_file: str) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, cert_file: str, key_file: str) -> None:
        self._files = cert_file, key_file
        self.reload()

    def reload(self) -> None:
        """Read the files again.

        Raises:
            UserError: they cannot be used; nothing has changed.
        """
        certificate = load(*self._files)
        self._newest = certificate.context
        end = certificate.valid_until
        _log.info(
            "certificate_loaded",
            "TLS certificate loaded from {file}, valid until {valid_until}"
            if end
            else "TLS certificate loaded from {file}",
            file=certificate.file,
            valid_until=end.isoformat() if end else None,
        )
        if certificate.refusal:
            _log.warning(
                "certificate_doubtful",
                "Clients will reject TLS_CERT_FILE={file}: {reason}",
                file=certificate.file,
                reason=certificate.refusal,
            )

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """The loop calls this for each connection."""
        return self._newest.wrap_bio(*args, **options)


def load(cert_file: str, key_file: str) -> Certificate:
    """Read a certificate chain and its key.

    Raises:
        UserError: they cannot be used; the message names the file, the reason and a remedy.
    """
    chain = _read("TLS_CERT_FILE", cert_file).decode("ascii", "ignore")
    _read("TLS_KEY_FILE", key_file)  # load_cert_chain does not name the missing file
    client = _client(chain, cert_file)
    # Not create_default_context: with SSLKEYLOGFILE set, that writes session keys into a file.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_pair(context, cert_file, key_file)
    try:
        shown = _shown(context, client)
    except ssl.SSLError as error:
        why = getattr(error, "verify_message", error.reason)
        return Certificate(context, cert_file, valid_until=None, refusal=why)
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    return Certificate(context, cert_file, valid_until=end, refusal="")


def client_context(ca_file: str) -> ssl.SSLContext:
    """Of connections to https peers, whose certificate and name are verified.

    Args:
        ca_file: PEERS_CA_FILE: the issuers that are trusted; empty = those of the system.

    Raises:
        UserError: the file cannot be used.
    """
    context = verifying_context("PEERS_CA_FILE", ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def verifying_context(setting: str, ca_file: str) -> ssl.SSLContext:
    """Of connections to servers whose certificate and name are verified.

    Args:
        setting: that has *ca_file*, for errors.
        ca_file: the issuers that are trusted; empty = those of the system.

    Raises:
        UserError: the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies both
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not ca_file:
        context.load_default_certs()
        return context
    chain = _read(setting, ca_file).decode("ascii", "ignore")
    try:
        context.load_verify_locations(cadata=chain)
    except (ssl.SSLError, ValueError):  # ValueError for an empty file
        raise _unusable(
            setting,
            ca_file,
            "it has no certificate in PEM format (-----BEGIN CERTIFICATE-----), or is damaged.",
        ) from None
    return context


def _read(variable: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unusable(
            variable, path, f"{error.strerror}. Check its path, owner and mode."
        ) from None


def _client(chain: str, cert_file: str) -> ssl.SSLContext:
    """A client that trusts just this certificate, and so rejects it only for its own faults."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cadata=chain)
    except (ssl.SSLError, ValueError):  # ValueError for an empty file
        raise _unusable(
            "TLS_CERT_FILE",
            cert_file,
            "it is not a certificate in PEM format (-----BEGIN CERTIFICATE-----), or is damaged.",
        ) from None
    return client


def _load_pair(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    def no_passphrase() -> NoReturn:  # without this, OpenSSL reads one from the terminal
        raise _unusable(
            "TLS_KEY_FILE",
            key_file,
            "it is encrypted, and a passphrase is not supported. "
            f"Decrypt it with: openssl pkey -in {key_file} -out FILE",
        )

    try:
        context.load_cert_chain(cert_file, key_file, password=no_passphrase)
    except OSError as error:  # most are ssl.SSLError; a file may be missing by now
        match getattr(error, "reason", None):
            case "KEY_VALUES_MISMATCH" | "KEY_TYPE_MISMATCH":
                why = (
                    f"it is not the key of the first certificate in TLS_CERT_FILE={cert_file}. "
                    "The server's certificate must come first there, then its issuers."
                )
            case None:
                why = "it is not a private key in PEM format (-----BEGIN PRIVATE KEY-----)."
            case reason:
                why = f"OpenSSL rejects it or its certificate: {reason.lower().replace('_', ' ')}."
        raise _unusable("TLS_KEY_FILE", key_file, why) from None


def _shown(context: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """The certificate as *client* receives it in a handshake, in memory.

    Raises:
        ssl.SSLError: the client refuses it.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking, answering, asking):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return asking.getpeercert() or {}


def _unusable(variable: str, path: str, why: str) -> UserError:
    return UserError(f"{variable}={path} cannot be used: {why}", exit_status=2)
