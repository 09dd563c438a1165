from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.model_file import BROKEN, NOT_NAMED, Model, listing, read_model, resolve
from tests.support.gguf_files import METADATA, U16, Typed, gguf, header, part

KNOWN = {"small": "Small-1.Q4.gguf"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def find(models: Path, name: str = "", path: str = "") -> Model:
    return resolve(model_path=path, model_name=name, models_dir=str(models), pulled=KNOWN)


def refusal(models: Path, name: str = "", path: str = "") -> UserError:
    with pytest.raises(UserError) as caught:
        find(models, name, path)
    return caught.value


# Which file ----------------------------------------------------------------------------------


def test_model_path_overrides_model_name(models: Path, tmp_path: Path) -> None:
    (models / "a.gguf").write_bytes(gguf())
    (tmp_path / "b.gguf").write_bytes(gguf())

    assert find(models, "a.gguf", str(tmp_path / "b.gguf")).path == str(tmp_path / "b.gguf")


@pytest.mark.parametrize("name", ["a.gguf", "a"])
def test_a_name_is_a_file_in_the_models_directory(models: Path, name: str) -> None:
    raw = gguf()
    (models / "a.gguf").write_bytes(raw)

    model = find(models, name)

    assert model.path == str(models / "a.gguf")
    assert model.parts == (model.path,)
    assert model.bytes == len(raw)
    assert model.facts.name == "Test Model"


def test_a_name_with_a_slash_is_a_path(models: Path, tmp_path: Path) -> None:
    (tmp_path / "b.gguf").write_bytes(gguf())

    assert find(models, str(tmp_path / "b.gguf")).path == str(tmp_path / "b.gguf")


def test_a_name_that_is_a_file_here_is_that_file(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / "b.gguf").write_bytes(gguf())
    (tmp_path / "b.gguf").write_bytes(gguf())
    monkeypatch.chdir(tmp_path)

    assert find(models, "b.gguf").path == str(tmp_path / "b.gguf")


def test_a_directory_of_the_same_name_is_ignored(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models / "a.gguf").write_bytes(gguf())
    (models / "a").mkdir()
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)

    assert find(models, "a").path == str(models / "a.gguf")


def test_a_name_in_the_catalogue_is_the_file_that_pull_creates(models: Path) -> None:
    (models / "Small-1.Q4.gguf").write_bytes(gguf())

    assert find(models, "small").path == str(models / "Small-1.Q4.gguf")


def test_a_link_is_followed_and_keeps_its_name(models: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gguf())
    (models / "a.gguf").symlink_to(tmp_path / "blob")

    assert find(models, "a").path == str(models / "a.gguf")


# Split models --------------------------------------------------------------------------------


def write_parts(folder: Path, *numbers: int) -> None:
    for no in numbers:
        (folder / f"big-{no:05}-of-00003.gguf").write_bytes(part(no, 3))


@pytest.mark.parametrize("no", [1, 2, 3])
def test_any_part_selects_the_whole_model(models: Path, no: int) -> None:
    write_parts(models, 1, 2, 3)

    model = find(models, f"big-{no:05}-of-00003")

    assert model.path.endswith("big-00001-of-00003.gguf")
    assert [os.path.basename(p) for p in model.parts] == [
        f"big-{n:05}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert model.bytes == sum(os.path.getsize(p) for p in model.parts)
    assert model.facts.parameters == 8 * (1 + 2 + 3)
    assert model.facts.split_count == 3


def test_missing_parts_are_named(models: Path) -> None:
    write_parts(models, 2)

    error = refusal(models, "big-00002-of-00003")

    assert error.exit_status == BROKEN
    assert "  big-00001-of-00003.gguf\n  big-00003-of-00003.gguf" in str(error)


def test_missing_parts_are_named_even_if_the_given_part_is_missing(models: Path) -> None:
    write_parts(models, 2)

    assert "  big-00001-of-00003.gguf" in str(refusal(models, "big-00001-of-00003.gguf"))


def test_an_empty_part_is_rejected(models: Path) -> None:
    write_parts(models, 1, 2, 3)
    (models / "big-00002-of-00003.gguf").write_bytes(b"")

    assert "big-00002-of-00003.gguf is empty" in str(refusal(models, "big-00001-of-00003"))


def test_a_renamed_part_is_rejected_since_the_engine_would_not_find_the_others(
    models: Path,
) -> None:
    (models / "renamed.gguf").write_bytes(part(1, 3))

    assert "one of 3 parts" in str(refusal(models, "renamed"))


@pytest.mark.parametrize("name", ["x-00000-of-00002.gguf", "x-00003-of-00002.gguf"])
def test_a_name_that_only_resembles_a_part_is_a_single_file(models: Path, name: str) -> None:
    (models / name).write_bytes(gguf())

    assert find(models, name).parts == (str(models / name),)


# Refusals ------------------------------------------------------------------------------------


def test_the_error_without_a_model_shows_how_to_set_one(models: Path) -> None:
    error = refusal(models)

    assert error.exit_status == NOT_NAMED
    assert "llama-gguf serve MODEL" in str(error)
    assert "llama-gguf pull smollm2" in str(error)


def test_an_unknown_name_is_rejected_with_the_available_models(models: Path) -> None:
    (models / "other.gguf").write_bytes(gguf())

    error = refusal(models, "wrong")

    assert error.exit_status == NOT_NAMED
    assert "There is no model wrong." in str(error)
    assert "  other.gguf  0.0 MB" in str(error)


def test_the_error_for_a_catalogue_model_that_is_missing_suggests_pull(models: Path) -> None:
    assert "`llama-gguf pull small`" in str(refusal(models, "small"))


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process see nothing below *folder*, as a user who may not search it; root may."""
    for name in ("stat", "lstat"):
        real = getattr(os, name)

        def look(path: str, *args: Any, real: Any = real, **kwargs: Any) -> os.stat_result:
            if str(path).startswith(f"{folder}/"):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **kwargs)  # type: ignore[no-any-return]

        monkeypatch.setattr(os, name, look)


def test_a_model_that_this_user_may_not_see_is_not_reported_as_misspelt(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, tmp_path / "secret")

    error = refusal(models, path=str(tmp_path / "secret" / "m.gguf"))

    assert error.exit_status == NOT_NAMED
    assert f"{tmp_path}/secret/m.gguf cannot be accessed: Permission denied" in str(error)
    assert "spelling" not in str(error)


def test_a_models_directory_that_cannot_be_read_is_not_reported_as_empty(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert f"{models} cannot be read: Permission denied." in str(refusal(models, "x"))


def test_a_missing_models_directory_has_no_models(tmp_path: Path) -> None:
    assert "There are no .gguf files" in str(refusal(tmp_path / "nowhere", "x"))


def test_a_directory_is_not_a_model(models: Path) -> None:
    error = refusal(models, path=str(models))

    assert error.exit_status == NOT_NAMED
    assert "is a directory" in str(error)


def test_a_pipe_is_rejected_without_blocking(models: Path) -> None:
    os.mkfifo(models / "a.gguf")

    assert "not a regular file" in str(refusal(models, "a"))


def test_a_dangling_symlink_is_reported_as_such(models: Path) -> None:
    (models / "a.gguf").symlink_to(models / "gone")

    assert "a link to a file that does not exist" in str(refusal(models, "a"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_the_error_for_an_unreadable_file_gives_the_reason(models: Path) -> None:
    (models / "a.gguf").write_bytes(gguf())
    (models / "a.gguf").chmod(0)

    assert "cannot be read: Permission denied" in str(refusal(models, "a"))


def test_the_error_for_an_unreachable_path_gives_the_reason(models: Path) -> None:
    (models / "a.gguf").symlink_to(models / "a.gguf")

    assert refusal(models, "a").exit_status == BROKEN


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "is empty."),
        (gguf()[:40], "is cut off within its header"),
        (gguf()[:-1], "needs at least"),
        (b"<html>", "looks like an HTML page"),
    ],
)
def test_the_error_for_a_broken_file_gives_reason_and_remedy(
    models: Path, raw: bytes, word: str
) -> None:
    (models / "a.gguf").write_bytes(raw)

    error = refusal(models, "a")

    assert error.exit_status == BROKEN
    assert word in str(error)
    assert "Fetch it again" in str(error)
    assert f"Models in {models}:" in str(error)


# Files that are no models -------------------------------------------------------------------------


def typed(kind: str, **more: object) -> dict[str, object]:
    return {"general.type": kind} | METADATA | {k.replace("_", "."): v for k, v in more.items()}


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        (typed("mmproj"), "a multimodal projector"),
        ({"general.architecture": "clip"}, "a multimodal projector"),
        (typed("adapter", adapter_type="lora"), "a LoRA adapter"),
        ({"general.architecture": "controlvector"}, "a control vector"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        (typed("vocab"), "only a vocabulary"),
        ({"general.architecture": "llada"}, "a diffusion language model"),
        ({"general.architecture": "flux"}, "a model that makes images"),
        ({"general.architecture": "eagle3"}, "a draft model"),
        ({"general.name": "x"}, "not a model: its header does not name an architecture"),
        ({"general.architecture": 7}, "not a model: its header does not name an architecture"),
    ],
)
def test_a_file_that_is_no_model_is_rejected_as_what_it_is(
    models: Path, metadata: dict[str, object], what: str
) -> None:
    (models / "a.gguf").write_bytes(gguf(metadata))

    error = refusal(models, "a")

    assert error.exit_status == BROKEN
    assert str(error).startswith(f"{models}/a.gguf is {what}")
    assert f"  a.gguf  0.0 MB  ({what}" in str(error)


def test_the_advice_names_the_file(models: Path) -> None:
    (models / "p.gguf").write_bytes(gguf(typed("mmproj")))

    assert f"EXTRA_ARGS='--mmproj {models}/p.gguf'" in str(refusal(models, "p"))


def test_a_model_without_tensors_is_only_a_vocabulary(models: Path) -> None:
    (models / "a.gguf").write_bytes(gguf(METADATA, []))

    assert "is only a vocabulary" in str(refusal(models, "a"))


def test_the_first_part_of_a_split_model_may_be_without_tensors(models: Path) -> None:
    metadata = METADATA | {"split.no": Typed(U16, 0), "split.count": Typed(U16, 2)}
    (models / "a-00001-of-00002.gguf").write_bytes(gguf(metadata, []))
    (models / "a-00002-of-00002.gguf").write_bytes(part(2, 2))

    assert len(find(models, "a-00001-of-00002").facts.tensors) == 1


def test_parts_that_were_joined_with_cat_are_rejected_as_such(models: Path) -> None:
    (models / "joined.gguf").write_bytes(part(1, 2) + part(2, 2))

    error = str(refusal(models, "joined"))

    assert "begins with one of 2 parts, and has more after it" in error
    assert "llama-gguf-split --merge" in error


def test_parts_with_swapped_names_are_rejected(models: Path) -> None:
    (models / "a-00001-of-00002.gguf").write_bytes(part(2, 2))
    (models / "a-00002-of-00002.gguf").write_bytes(part(1, 2))

    assert "a-00001-of-00002.gguf is, according to its header, part 2 of 2." in str(
        refusal(models, "a-00001-of-00002")
    )


# Listing -------------------------------------------------------------------------------------


def test_the_list_ends_after_twenty(models: Path) -> None:
    for number in range(25):
        (models / f"m{number:02}.gguf").write_bytes(header(METADATA, []))

    lines = listing(str(models)).splitlines()

    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "  and 5 more"


def test_a_split_model_is_listed_once_with_the_size_of_all_its_parts(models: Path) -> None:
    for no in (1, 2):
        (models / f"big-{no:05}-of-00002.gguf").write_bytes(part(no, 2).ljust(2_000_000))

    assert listing(str(models)).splitlines()[1:] == ["  big-00001-of-00002.gguf  4.0 MB"]


def test_a_truncated_model_is_listed_as_such(models: Path) -> None:
    whole = gguf()
    (models / "a.gguf").write_bytes(whole)
    (models / "b.gguf").write_bytes(whole[:-8])

    _, a, b = listing(str(models)).splitlines()
    assert a == "  a.gguf  0.0 MB"
    size = len(whole)
    assert b == f"  b.gguf  0.0 MB  (cut off: it has {size - 8} bytes, but needs at least {size})"


def test_other_files_and_folders_are_not_listed(models: Path) -> None:
    (models / "notes.txt").write_text("x")
    (models / "folder.gguf").mkdir()

    assert "no .gguf files" in listing(str(models))


def test_a_relative_path_becomes_absolute(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "a.gguf").write_bytes(gguf())
    monkeypatch.chdir(models)

    assert read_model("a.gguf").path == str(models / "a.gguf")
