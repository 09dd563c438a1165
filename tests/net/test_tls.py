"""Handshakes in memory; ``tests/wire`` has them over sockets."""

from __future__ import annotations

import base64
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.net.tls import ServerContext, client_context, load
from tests.support.certificates import CA_PEM, Pair, issue, names_in, trusting

ONE = issue("one.example")
OTHER = issue("other.example")


class Session:
    """A client and a server with nothing but memory between them."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
        self.server = server.wrap_bio(to_server, to_client, server_side=True)

    def shake_hands(self) -> Session:
        for side in (self.client, self.server) * 3:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
        return self


def names_shown_by(server: ssl.SSLContext) -> set[str]:
    return names_in(Session(server, trusting()).shake_hands().client.getpeercert())


def serving(folder: Path, pair: Pair = ONE) -> ServerContext:
    return ServerContext(*pair.write(folder).values())


# What is spoken -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(version: ssl.TLSVersion, tmp_path: Path) -> None:
    client = trusting()
    client.minimum_version = client.maximum_version = version
    session = Session(serving(tmp_path), client).shake_hands()

    assert session.server.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_1_1_is_refused(tmp_path: Path) -> None:
    client = trusting()
    client.set_ciphers("DEFAULT:@SECLEVEL=0")  # or it would not even ask
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError) as caught:
        Session(serving(tmp_path), client).shake_hands()

    assert caught.value.reason == "UNSUPPORTED_PROTOCOL"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None)],
)
def test_no_protocol_is_agreed_on_but_http_1_1(
    offered: list[str], chosen: str | None, tmp_path: Path
) -> None:
    client = trusting()
    client.set_alpn_protocols(offered)

    assert (
        Session(serving(tmp_path), client).shake_hands().client.selected_alpn_protocol() == chosen
    )


# A new certificate --------------------------------------------------------------------------------


def test_after_a_reload_the_new_certificate_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving(tmp_path, issue("one.example", not_after=2099))
    assert names_shown_by(server) == {"one.example"}
    issue("other.example", not_after=2098).write(tmp_path)
    assert names_shown_by(server) == {"one.example"}, "not before it is asked for"
    with caplog.at_level(logging.INFO):
        server.reload()

    assert names_shown_by(server) == {"other.example"}
    assert f"loaded from {tmp_path}/cert.pem, valid until 2098-01-01T00:00:00+00:00" in caplog.text


def test_an_open_connection_outlives_its_certificate(tmp_path: Path) -> None:
    server = serving(tmp_path)
    session = Session(server, trusting()).shake_hands()
    OTHER.write(tmp_path)
    server.reload()

    session.client.write(b"question")
    assert session.server.read() == b"question"
    session.server.write(b"answer")
    assert session.client.read() == b"answer"


def without_files(folder: Path) -> None:
    (folder / "cert.pem").unlink()
    (folder / "key.pem").unlink()


def half_way(folder: Path) -> None:
    (folder / "cert.pem").write_bytes(OTHER.chain)


def with_half_a_key(folder: Path) -> None:
    Pair(OTHER.chain, OTHER.key[: len(OTHER.key) // 2]).write(folder)


@pytest.mark.parametrize("broken", [without_files, half_way, with_half_a_key])
def test_a_certificate_that_cannot_be_used_leaves_the_old_one_in_use(
    broken: Callable[[Path], None], tmp_path: Path
) -> None:
    server = serving(tmp_path)
    broken(tmp_path)
    with pytest.raises(UserError):
        server.reload()

    assert names_shown_by(server) == {"one.example"}


# What cannot be used ------------------------------------------------------------------------------


def refused(folder: Path, pair: Pair) -> str:
    """The error message for *pair*."""
    with pytest.raises(UserError) as caught:
        serving(folder, pair)
    assert caught.value.exit_status == 2
    return str(caught.value).replace(str(folder), "")


DAMAGED = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
NO_CERTIFICATE = "TLS_CERT_FILE=/cert.pem cannot be used: it is not a certificate in PEM format"
NO_KEY = "TLS_KEY_FILE=/key.pem cannot be used: it is not a private key in PEM format"
NOT_ITS_KEY = "TLS_KEY_FILE=/key.pem cannot be used: it is not the key of the first certificate in"


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Pair(b"", ONE.key), NO_CERTIFICATE),
        (Pair(b"\xff\x00\x80", ONE.key), NO_CERTIFICATE),
        (Pair(ONE.chain[:200], ONE.key), NO_CERTIFICATE),
        (Pair(DAMAGED, ONE.key), NO_CERTIFICATE),
        (Pair(ONE.chain + DAMAGED, ONE.key), NO_CERTIFICATE),
        (Pair(ONE.key, ONE.chain), NO_CERTIFICATE),
        (Pair(ONE.chain, b""), NO_KEY),
        (Pair(ONE.chain, ONE.chain), NO_KEY),
        (Pair(ONE.chain, ONE.key[:60]), NO_KEY),
        (Pair(ONE.chain, OTHER.key), NOT_ITS_KEY),
        (Pair(CA_PEM + ONE.chain, ONE.key), NOT_ITS_KEY),
    ],
    ids=[
        *("empty", "binary", "cut", "damaged", "damaged-issuer", "swapped"),
        *("no-key", "two-certificates", "cut-key", "other-key", "issuer-first"),
    ],
)
def test_an_error_names_the_file_and_the_reason(pair: Pair, said: str, tmp_path: Path) -> None:
    assert refused(tmp_path, pair).startswith(said)


@pytest.mark.parametrize("variable", ["TLS_CERT_FILE", "TLS_KEY_FILE"])
def test_a_file_that_cannot_be_read_is_named_with_its_variable(
    variable: str, tmp_path: Path
) -> None:
    files = ONE.write(tmp_path)
    path = Path(files[variable])
    path.unlink()
    with pytest.raises(
        UserError, match=f"{variable}={path} cannot be used: No such file"
    ) as missing:
        load(*files.values())
    path.mkdir()
    with pytest.raises(UserError, match=f"{variable}={path} cannot be used: Is a directory"):
        load(*files.values())

    assert missing.value.exit_status == 2


def test_an_encrypted_key_is_refused_without_a_prompt_for_its_passphrase(tmp_path: Path) -> None:
    said = refused(tmp_path, Pair(ONE.chain, ONE.encrypted_key))

    assert said.startswith("TLS_KEY_FILE=/key.pem cannot be used: it is encrypted")
    assert "openssl pkey -in /key.pem -out" in said


def test_no_message_has_a_part_of_a_key(tmp_path: Path) -> None:
    said = refused(tmp_path, Pair(OTHER.chain, ONE.key))
    said += refused(tmp_path, Pair(ONE.key, ONE.key))

    secret = b"".join(ONE.key.splitlines()[1:-1]).decode()
    assert len(base64.b64decode(secret)) > 100
    assert not any(secret[at : at + 8] in said for at in range(len(secret) - 8))


# What clients refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (issue(not_before=2001, not_after=2002), "certificate has expired"),
        (issue(not_before=2098, not_after=2099), "certificate is not yet valid"),
    ],
)
def test_a_certificate_out_of_its_time_is_served_with_a_warning(
    pair: Pair, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving(tmp_path, pair)

    assert f"Clients will reject TLS_CERT_FILE={tmp_path}/cert.pem: {why}" in caplog.text


def test_a_valid_certificate_causes_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        serving(tmp_path)

    assert caplog.text == ""


# https peers --------------------------------------------------------------------------------------


def test_a_client_of_peers_verifies_certificate_and_name(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(CA_PEM)
    context = client_context(str(tmp_path / "ca.pem"))

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    assert client_context("").verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_of_issuers_that_cannot_be_used_is_named(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UserError, match=f"PEERS_CA_FILE={path} cannot be used"):
        client_context(str(path))
