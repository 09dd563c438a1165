"""The real huggingface_hub, with a substitute for the hub on loopback."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models import from_hub
from llama_gguf.models.from_hub import Hub, Remote, fetch
from tests.support.gguf_files import METADATA, Tensor, gguf, part
from tests.support.hub_server import COMMIT, REPO, HubServer

CONTENT = gguf(METADATA, [Tensor((20_000,))])
TOKEN = "hf_" + "t" * 34
PARTS = {f"big/m-0000{no}-of-00002.gguf": part(no, 2) for no in (1, 2)}


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer({"m.gguf": CONTENT, **PARTS}) as running:
        running.does.token = TOKEN
        yield running


def hub_of(server: HubServer, token: str = TOKEN) -> Hub:
    # With a trailing slash, as users often write it.
    environ = {"HF_ENDPOINT": server.endpoint + "/", "HF_TOKEN": token}
    return Hub(environ, importlib.import_module)


def get(server: HubServer, folder: Path, *files: str) -> list[tuple[int, int | None]]:
    ticks: list[tuple[int, int | None]] = []
    targets = {file: str(folder / file.rpartition("/")[2]) for file in files}
    fetch(hub_of(server), REPO, targets, meter=lambda done, total: ticks.append((done, total)))
    return ticks


def refusal(server: HubServer, folder: Path, file: str = "m.gguf") -> str:
    with pytest.raises(UserError) as caught:
        get(server, folder, file)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Metadata ------------------------------------------------------------------------------------


def test_the_files_of_a_repository_are_listed(server: HubServer) -> None:
    assert sorted(hub_of(server).files(REPO)) == sorted(server.files)


def test_a_file_is_pinned_to_its_version_and_its_hash(server: HubServer) -> None:
    remote = hub_of(server).describe(REPO, "m.gguf")

    assert remote.url == f"{server.endpoint}/{REPO}/resolve/{COMMIT}/m.gguf"
    assert remote.bytes == len(CONTENT)
    assert len(remote.sha256) == 64


def test_quotes_around_the_token_are_no_part_of_it(server: HubServer) -> None:
    assert hub_of(server, token=f'"{TOKEN}"').files(REPO)


def test_the_error_for_a_missing_or_private_repository_explains_it(server: HubServer) -> None:
    with pytest.raises(
        UserError, match=r"does not exist, or is private: for a private one, set HF_TOKEN"
    ):
        hub_of(server, token="hf_wrong").files(REPO)


def test_the_error_for_a_missing_file_explains_it(server: HubServer, tmp_path: Path) -> None:
    assert refusal(server, tmp_path, "n.gguf") == (
        f"n.gguf in {REPO}: the repository has no such file."
    )


def test_the_error_for_a_gated_repository_explains_it(server: HubServer, tmp_path: Path) -> None:
    server.does.gated = True

    assert "requires you to accept its terms; do so on the hub" in refusal(server, tmp_path)


def test_the_error_for_an_unreachable_hub_explains_it(tmp_path: Path) -> None:
    with HubServer({}) as gone:
        endpoint = gone.endpoint
    hub = Hub({"HF_ENDPOINT": endpoint}, importlib.import_module)

    with pytest.raises(UserError, match=r"the hub cannot be reached; .* HF_ENDPOINT"):
        hub.describe(REPO, "m.gguf")


def test_an_error_of_an_unknown_kind_shows_its_first_line_without_secrets() -> None:
    error = RuntimeError("no response from https://hub.invalid/m?token=secret\nand much more")

    message = from_hub._explained("m.gguf in o/n", error)

    assert (
        message == "m.gguf in o/n could not be fetched: no response from https://hub.invalid/m?***"
    )


def test_the_error_for_a_certificate_that_is_not_trusted_has_its_remedy() -> None:
    class ConnectError(Exception):
        """The library's name for any failed connection."""

    error = ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")

    message = from_hub._explained("m.gguf in o/n", error)

    assert "SSL_CERT_FILE" in message
    assert "check the network" not in message


def test_the_error_without_the_library_shows_how_to_install_it() -> None:
    def import_module(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    with pytest.raises(UserError, match=r"pip install 'llama-gguf-inference\[hub\]'"):
        Hub({}, import_module)


# Content -------------------------------------------------------------------------------------


def test_credentials_are_sent_to_the_hub_only(server: HubServer, tmp_path: Path) -> None:
    get(server, tmp_path, "m.gguf")

    assert (tmp_path / "m.gguf").read_bytes() == CONTENT
    assert {a.authorization for a in server.requests_for("/resolve/")} == {f"Bearer {TOKEN}"}
    assert [a.authorization for a in server.requests_for("Signature")] == [None]


def test_an_interrupted_download_is_resumed_by_the_next_one(
    server: HubServer, tmp_path: Path
) -> None:
    server.does.cuts = [len(CONTENT) // 2, 0]
    assert "the same command resumes the download" in refusal(server, tmp_path)
    assert names(tmp_path) == ["m.gguf.part", "m.gguf.part.etag"]
    server.requests.clear()

    ticks = get(server, tmp_path, "m.gguf")

    assert [a.range for a in server.requests_for("Signature")] == [f"bytes={len(CONTENT) // 2}-"]
    assert ticks[0] == (len(CONTENT) // 2, len(CONTENT))
    assert names(tmp_path) == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT


def test_content_with_another_hash_is_deleted(server: HubServer, tmp_path: Path) -> None:
    server.does.damage = True

    message = refusal(server, tmp_path)

    assert "is not the expected file" in message
    assert "signed-secret" not in message
    assert names(tmp_path) == []


def test_progress_covers_all_parts_of_a_split_model(server: HubServer, tmp_path: Path) -> None:
    total = sum(map(len, PARTS.values()))

    ticks = get(server, tmp_path, *PARTS)

    assert names(tmp_path) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert {t for _, t in ticks} == {total}
    assert ticks[-1] == (total, total)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


def test_the_space_for_all_parts_is_checked_before_the_first_download(
    server: HubServer, tmp_path: Path
) -> None:
    server.does.sizes["big/m-00002-of-00002.gguf"] = 1 << 50

    with pytest.raises(UserError, match=r"1125899\.9 GB are needed"):
        get(server, tmp_path, *PARTS)

    assert server.requests_for("Signature") == []
    assert names(tmp_path) == []


def test_a_file_above_the_limit_is_downloaded_by_the_library(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_hub, "MAX_PLAIN_BYTES", len(CONTENT) - 1)

    ticks = get(server, tmp_path, "m.gguf")

    assert names(tmp_path) == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == CONTENT
    assert ticks[-1] == (len(CONTENT), len(CONTENT))


def test_a_failure_of_the_library_leaves_no_files(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_hub, "MAX_PLAIN_BYTES", 1)
    hub = hub_of(server)
    remote = Remote(REPO, "gone.gguf", url="", bytes=2, sha256="")

    with pytest.raises(UserError, match="has no such file"):
        hub.fetch(remote, str(tmp_path / "gone.gguf"), lambda done, total: None)

    assert names(tmp_path) == []
