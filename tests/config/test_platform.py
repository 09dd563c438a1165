from __future__ import annotations

import pytest

from llama_gguf.config.platform import data_dir_note, resolve
from llama_gguf.config.settings import Settings


def resolved(
    settings: Settings,
    *folders: str,
    is_root: bool = True,
    environ: dict[str, str] | None = None,
) -> Settings:
    return resolve(
        settings,
        environ=environ or {},
        is_dir=set(folders).__contains__,
        is_writable=lambda folder: is_root and folder == "/",
        host_name="box",
    )


@pytest.mark.parametrize(
    ("folders", "data_dir"),
    [
        (["/runpod-volume", "/workspace", "/data"], "/runpod-volume"),
        (["/workspace", "/data"], "/workspace"),
        (["/data"], "/data"),
        ([], "/data"),
    ],
)
def test_the_data_folder_is_the_platforms_and_the_rest_is_in_it(
    folders: list[str], data_dir: str
) -> None:
    settings = resolved(Settings.of(), *folders)

    assert settings == Settings.of(
        data_dir=data_dir,
        models_dir=f"{data_dir}/models",
        auth_keys_file=f"{data_dir}/api_keys.txt",
        log_dir=f"{data_dir}/logs",
        prompt_cache_dir=f"{data_dir}/cache",
        instance_id="box",
    )
    assert not data_dir_note(settings, "default")


@pytest.mark.parametrize(
    ("environ", "data_dir"),
    [
        ({"HOME": "/home/u"}, "/home/u/.local/share/llama-gguf"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": "/x/"}, "/x/llama-gguf"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": "relative"}, "/home/u/.local/share/llama-gguf"),
        ({"HOME": "/home/u", "XDG_DATA_HOME": ""}, "/home/u/.local/share/llama-gguf"),
        ({"HOME": ""}, "/data"),
    ],
)
def test_a_user_who_cannot_create_the_data_folder_has_it_at_home(
    environ: dict[str, str], data_dir: str
) -> None:
    settings = resolved(Settings.of(), is_root=False, environ=environ)

    assert settings.model.data_dir == data_dir
    assert ("cannot be created by this user" in data_dir_note(settings, "default")) == (
        data_dir != "/data"
    )


def test_an_existing_data_folder_is_used_even_if_it_is_not_writable() -> None:
    settings = resolved(Settings.of(), "/data", is_root=False, environ={"HOME": "/home/u"})

    assert settings.model.data_dir == "/data"


def test_a_data_folder_that_is_set_wins_over_the_platforms() -> None:
    settings = resolved(Settings.of(data_dir="/srv"), "/runpod-volume")

    assert (settings.model.data_dir, settings.model.models_dir) == ("/srv", "/srv/models")
    assert not data_dir_note(settings, "flag")


def test_explicit_settings_are_not_replaced() -> None:
    given = Settings.of(
        data_dir="/d",
        models_dir="/m",
        auth_keys_file="/k",
        log_dir="/l",
        prompt_cache_dir="/c",
        instance_id="i",
    )

    assert resolved(given, "/runpod-volume", "/workspace", "/data") == given
