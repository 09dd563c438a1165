from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.from_url import MAX_BREAKS, fetch
from llama_gguf.models.part_file import PartFile
from tests.support.certificates import issue
from tests.support.file_server import FileServer
from tests.support.gguf_files import METADATA, Tensor, gguf

CONTENT = gguf(METADATA, [Tensor((200_000,))])
OTHER = gguf(METADATA | {"general.name": "Another"}, [Tensor((200_000,))])


class Ticks:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT) as running:
        yield running


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def get(url: str, final: Path, *, sha256: str = "", **environ: str) -> Ticks:
    ticks = Ticks()
    fetch(url, str(final), meter=ticks, environ=environ, sha256=sha256)
    return ticks


def refusal(url: str, final: Path, *, sha256: str = "", **environ: str) -> str:
    with pytest.raises(UserError) as caught:
        get(url, final, sha256=sha256, **environ)
    return str(caught.value)


def names(final: Path) -> list[str]:
    return sorted(p.name for p in final.parent.iterdir())


def leave_part(final: Path, content: bytes, etag: str = '"one"') -> None:
    with PartFile(str(final)) as part:
        part.start_over(etag)
        part.write(content)


# A whole download ----------------------------------------------------------------------------


def test_a_complete_download_leaves_only_the_model(server: FileServer, final: Path) -> None:
    ticks = get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert names(final) == ["m.gguf"]
    assert ticks.seen[0] == (0, len(CONTENT))
    assert ticks.seen[-1] == (len(CONTENT), len(CONTENT))
    assert ticks.seen == sorted(ticks.seen)


def test_a_file_of_unknown_length_is_downloaded_completely(server: FileServer, final: Path) -> None:
    server.behaviour.chunked = True

    ticks = get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert ticks.seen[-1] == (len(CONTENT), None)


def test_an_older_file_is_replaced(server: FileServer, final: Path) -> None:
    final.write_bytes(b"old")

    get(server.url(), final)

    assert final.read_bytes() == CONTENT


def test_the_expected_hash_is_accepted(server: FileServer, final: Path) -> None:
    get(server.url(), final, sha256=hashlib.sha256(CONTENT).hexdigest())

    assert final.exists()


def test_a_redirect_is_followed(server: FileServer, final: Path) -> None:
    server.behaviour.redirects["/old.gguf"] = "/m.gguf?signed=1"

    get(server.url("/old.gguf"), final)

    assert final.read_bytes() == CONTENT


def test_credentials_in_the_url_are_sent_to_its_host_only(server: FileServer, final: Path) -> None:
    with FileServer(CONTENT) as other:
        server.behaviour.redirects = {"/old.gguf": "/new.gguf", "/new.gguf": other.url()}

        get(f"http://me:p%40ss@{server.address}/old.gguf", final)

    assert [s.authorization for s in server.seen] == ["Basic bWU6cEBzcw=="] * 2
    assert [s.authorization for s in other.seen] == [None]


def test_additional_headers_are_sent_to_that_host_only(server: FileServer, final: Path) -> None:
    with FileServer(CONTENT) as other:
        server.behaviour.redirects["/m.gguf"] = other.url()
        headers = {"Authorization": "Bearer x"}

        fetch(server.url(), str(final), meter=Ticks(), environ={}, headers=headers)

    assert [s.authorization for s in (*server.seen, *other.seen)] == ["Bearer x", None]


def test_a_name_with_spaces_and_non_ascii_letters_is_percent_encoded(
    server: FileServer, final: Path
) -> None:
    get(server.url("/a b/mödel.gguf?x=y z"), final)

    assert server.seen[0].path == "/a%20b/m%C3%B6del.gguf?x=y%20z"


def test_a_proxy_from_the_environment_is_used(server: FileServer, final: Path) -> None:
    get("http://models.invalid/m.gguf", final, http_proxy=server.url(""))

    assert server.seen[0].path == "http://models.invalid/m.gguf"


def test_the_proxy_for_all_schemes_is_used_and_that_of_the_scheme_preferred(
    server: FileServer, final: Path
) -> None:
    get("http://models.invalid/a.gguf", final, ALL_PROXY=server.url(""))
    get("http://models.invalid/b.gguf", final, HTTP_PROXY=server.url(""), all_proxy="http://x")

    assert [seen.path for seen in server.seen] == [
        *("http://models.invalid/a.gguf", "http://models.invalid/b.gguf"),
    ]


def test_a_proxy_that_cannot_be_used_is_named_unless_it_is_not_needed(
    server: FileServer, final: Path
) -> None:
    message = refusal("http://models.invalid/m.gguf", final, ALL_PROXY="socks5://me:pw@10.0.0.1:1")
    assert message.startswith("The proxy socks5://10.0.0.1:1 cannot be used: only HTTP proxies can")

    get(server.url(), final, ALL_PROXY="socks5://10.0.0.1:1", no_proxy="127.0.0.1")


def test_a_proxy_that_does_not_respond_is_named(server: FileServer, final: Path) -> None:
    message = refusal("http://models.invalid/m.gguf", final, http_proxy="http://me:pw@127.0.0.1:1")

    assert message.startswith(
        "http://models.invalid/m.gguf cannot be reached through the proxy http://127.0.0.1:1: "
    )


# Resuming ------------------------------------------------------------------------------------


def test_a_broken_connection_is_resumed_at_once(server: FileServer, final: Path) -> None:
    server.behaviour.cuts = [300_000, 300_000]

    get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert [s.range for s in server.seen] == [None, "bytes=300000-", "bytes=600000-"]
    assert server.seen[1].if_range == '"one"'
    assert names(final) == ["m.gguf"]


def test_a_later_pull_resumes_an_interrupted_one(server: FileServer, final: Path) -> None:
    server.behaviour.cuts = [300_000, 0]
    message = refusal(server.url(), final)
    assert "it ended after 300000 of" in message
    assert "0.3 MB are kept" in message
    assert final.with_name("m.gguf.part").read_bytes() == CONTENT[:300_000]

    ticks = get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert server.seen[-1].range == "bytes=300000-"
    assert ticks.seen[0] == (300_000, len(CONTENT))
    assert names(final) == ["m.gguf"]


def test_a_file_that_has_changed_on_the_server_is_downloaded_completely(
    server: FileServer, final: Path
) -> None:
    leave_part(final, CONTENT[:300_000])
    server.behaviour.content, server.behaviour.etag = OTHER, '"two"'

    get(server.url(), final)

    assert final.read_bytes() == OTHER
    assert server.seen[0].range == "bytes=300000-"


def test_a_complete_part_becomes_the_model_without_a_download(
    server: FileServer, final: Path
) -> None:
    leave_part(final, CONTENT)

    get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert names(final) == ["m.gguf"]


def test_a_part_longer_than_the_file_is_discarded(server: FileServer, final: Path) -> None:
    leave_part(final, CONTENT + b"more")

    get(server.url(), final)

    assert final.read_bytes() == CONTENT
    assert [s.range is None for s in server.seen] == [False, True]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_a_download_without_a_strong_tag_is_not_resumed(
    server: FileServer, final: Path, etag: str
) -> None:
    server.behaviour.etag, server.behaviour.cuts = etag, [300_000]

    assert "kept" not in refusal(server.url(), final)
    assert names(final) == []


def test_a_range_other_than_the_requested_one_is_rejected(server: FileServer, final: Path) -> None:
    leave_part(final, CONTENT[:300_000])
    server.behaviour.headers = {"Content-Range": f"bytes 0-9/{len(CONTENT)}"}

    assert "a different range" in refusal(server.url(), final)
    assert names(final) == []


def test_a_download_fails_after_too_many_interruptions(server: FileServer, final: Path) -> None:
    server.behaviour.cuts = [1000] * 100

    assert "kept" in refusal(server.url(), final)
    assert len(server.seen) == MAX_BREAKS


# Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "word"),
    [(404, "does not exist"), (403, "requires a login"), (500, "Try again later")],
)
def test_the_error_for_a_refusal_shows_no_secrets_of_the_url(
    server: FileServer, final: Path, status: int, word: str
) -> None:
    server.behaviour.status = status

    message = refusal(f"http://me:secret@{server.address}/m.gguf?token=secret", final)

    assert word in message
    assert f"http://{server.address}/m.gguf " in message
    assert "secret" not in message
    assert names(final) == []


def test_the_error_for_an_unreachable_server_shows_no_secrets_of_the_url(final: Path) -> None:
    with FileServer(b"") as gone:
        address = gone.address

    message = refusal(f"http://me:secret@{address}/m.gguf?token=secret", final)

    assert message == f"http://{address}/m.gguf cannot be reached: Connection refused."
    assert names(final) == []


def test_an_html_page_is_rejected_by_its_first_bytes(server: FileServer, final: Path) -> None:
    server.behaviour.content = b"<!doctype html><title>Sign in</title>" * 100_000

    assert "looks like an HTML page" in refusal(server.url(), final)
    assert names(final) == []


def test_the_url_of_a_page_about_a_file_is_recognised(server: FileServer, final: Path) -> None:
    server.behaviour.content = b"<!doctype html><title>m.gguf at main</title>"

    assert "page about the file" in refusal(server.url("/o/n/blob/main/m.gguf"), final)
    assert "page about the file" not in refusal(server.url("/o/n/raw/main/m.gguf"), final)


def test_the_remedy_for_a_certificate_that_is_not_trusted_is_shown(
    final: Path,
) -> None:
    with FileServer(b"", tls=issue().server_context()) as server:
        assert "SSL_CERT_FILE" in refusal(server.url(), final)


def test_an_empty_response_is_rejected(server: FileServer, final: Path) -> None:
    server.behaviour.content = b""

    assert "is empty" in refusal(server.url(), final)
    assert names(final) == []


def test_a_model_that_is_truncated_on_the_server_is_rejected(
    server: FileServer, final: Path
) -> None:
    server.behaviour.content = CONTENT[:-1]

    assert "needs at least" in refusal(server.url(), final)
    assert names(final) == []


def test_content_with_another_hash_is_rejected_and_deleted(server: FileServer, final: Path) -> None:
    message = refusal(server.url(), final, sha256="0" * 64)

    assert hashlib.sha256(CONTENT).hexdigest() in message
    assert names(final) == []


def test_a_file_larger_than_the_free_space_is_rejected_before_the_download(
    server: FileServer, final: Path
) -> None:
    server.behaviour.headers = {"Content-Length": str(1 << 60)}

    assert "are needed" in refusal(server.url(), final)
    assert names(final) == []


@pytest.mark.parametrize("target", ["ftp://x.invalid/m.gguf", "file:///etc/passwd"])
def test_a_redirect_to_another_scheme_is_rejected(
    server: FileServer, final: Path, target: str
) -> None:
    server.behaviour.redirects["/m.gguf"] = target

    refusal(server.url(), final)

    assert names(final) == []
