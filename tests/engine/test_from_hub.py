from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from llama_gguf.engine.from_hub import Address, fetch, parse
from llama_gguf.errors import UserError
from tests.engine.wheels import Meters
from tests.gguf_files import gguf


class GatedRepoError(OSError):
    """Named as the library names it."""


class FakeHub:
    """Stands in for huggingface_hub: hands out *files*, and remembers the calls."""

    def __init__(self, files: Mapping[str, bytes | Exception]) -> None:
        self.files = files
        self.calls: list[tuple[str, str, str | None]] = []
        self.bars = True

    def import_module(self, name: str) -> ModuleType:
        known: dict[str, object] = {
            "huggingface_hub": self,
            "huggingface_hub.utils": SimpleNamespace(disable_progress_bars=self._no_bars),
        }
        return cast("ModuleType", known[name])

    def _no_bars(self) -> None:
        self.bars = False

    def hf_hub_url(self, repo: str, file: str) -> str:
        return f"https://hub.invalid/{repo}/{file}"

    def get_hf_file_metadata(self, url: str, *, token: str | None) -> SimpleNamespace:
        content = self.files[url.split("/", maxsplit=5)[5]]
        if isinstance(content, Exception):
            raise content
        return SimpleNamespace(size=len(content))

    def hf_hub_download(self, repo: str, file: str, *, local_dir: str, token: str | None) -> str:
        self.calls.append((repo, file, token))
        content = self.files[file]
        if isinstance(content, Exception):
            raise content
        path = Path(local_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)


def get(
    import_module: Callable[[str], ModuleType],
    targets: Mapping[str, Path],
    *,
    environ: Mapping[str, str] | None = None,
) -> Meters:
    meters = Meters()
    fetch(
        "owner/name",
        {file: str(path) for file, path in targets.items()},
        meter_factory=meters,
        environ=environ or {},
        import_module=import_module,
    )
    return meters


# Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "file"),
    [
        ("hf:owner/name/m.gguf", "owner/name", "m.gguf"),
        ("hf:o-1/n_2.3/deep/down/m.gguf", "o-1/n_2.3", "deep/down/m.gguf"),
        ("hf:o/n/q/m-00002-of-00003.gguf", "o/n", "q/m-00001-of-00003.gguf"),
    ],
)
def test_an_address_is_a_repository_and_a_file_in_it(text: str, repo: str, file: str) -> None:
    assert parse(text) == Address(repo, file)


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:owner", "hf:owner/name", "hf:owner/name/m.bin", "hf:o/n/../m.gguf", "hf:/n/m.gguf"],
)
def test_anything_else_is_refused_with_what_is_wanted(text: str) -> None:
    with pytest.raises(UserError, match="hf:OWNER/NAME") as caught:
        parse(text)

    assert caught.value.exit_status == 2


# Fetching ------------------------------------------------------------------------------------


def test_a_file_in_folders_is_put_where_it_is_wanted(tmp_path: Path) -> None:
    hub = FakeHub({"deep/m.gguf": gguf()})

    meters = get(hub.import_module, {"deep/m.gguf": tmp_path / "m.gguf"})

    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == gguf()
    assert meters.labels == ["m.gguf"]
    assert meters.ticks[-1] == (len(gguf()), len(gguf()))


def test_the_librarys_own_bars_are_off(tmp_path: Path) -> None:
    hub = FakeHub({"m.gguf": gguf()})

    get(hub.import_module, {"m.gguf": tmp_path / "m.gguf"})

    assert not hub.bars


@pytest.mark.parametrize(("environ", "token"), [({"HF_TOKEN": "hf_x"}, "hf_x"), ({}, None)])
def test_the_token_is_the_one_of_the_environment(
    tmp_path: Path, environ: dict[str, str], token: str | None
) -> None:
    hub = FakeHub({"m.gguf": gguf()})

    get(hub.import_module, {"m.gguf": tmp_path / "m.gguf"}, environ=environ)

    assert hub.calls == [("owner/name", "m.gguf", token)]


def test_a_failure_keeps_the_parts_that_are_whole_and_nothing_else(tmp_path: Path) -> None:
    hub = FakeHub({"a.gguf": gguf(), "b.gguf": ConnectionError("the line broke")})

    with pytest.raises(UserError, match="the line broke"):
        get(hub.import_module, {n: tmp_path / n for n in ("a.gguf", "b.gguf")})

    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    hub = FakeHub({"m.gguf": b"version https://git-lfs.github.com/spec/v1"})

    with pytest.raises(UserError, match=r"m\.gguf in owner/name holds is not a GGUF file"):
        get(hub.import_module, {"m.gguf": tmp_path / "m.gguf"})

    assert list(tmp_path.iterdir()) == []


def test_a_repository_that_wants_its_terms_accepted_says_so(tmp_path: Path) -> None:
    hub = FakeHub({"m.gguf": GatedRepoError("403 Client Error\nand much more")})

    with pytest.raises(UserError, match=r"wants its terms accepted; .* HF_TOKEN"):
        get(hub.import_module, {"m.gguf": tmp_path / "m.gguf"})


def test_an_error_of_an_unknown_kind_shows_its_first_line_without_secrets(tmp_path: Path) -> None:
    error = RuntimeError("no answer from https://hub.invalid/m?token=secret\nand much more")

    with pytest.raises(UserError) as caught:
        get(FakeHub({"m.gguf": error}).import_module, {"m.gguf": tmp_path / "m.gguf"})

    assert str(caught.value).endswith("no answer from https://hub.invalid/m?***")


def test_without_the_library_the_way_to_get_it_is_said(tmp_path: Path) -> None:
    def import_module(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    with pytest.raises(UserError, match=r"pip install 'llama-gguf-inference\[hub\]'"):
        get(import_module, {"m.gguf": tmp_path / "m.gguf"})
