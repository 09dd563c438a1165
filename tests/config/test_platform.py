from __future__ import annotations

import pytest

from llama_gguf.config.platform import resolve
from llama_gguf.config.settings import Settings


@pytest.mark.parametrize(
    ("folders", "data_dir"),
    [
        ({"/runpod-volume", "/workspace", "/data"}, "/runpod-volume"),
        ({"/workspace", "/data"}, "/workspace"),
        ({"/data"}, "/data"),
        (set(), "/data"),
    ],
)
def test_the_data_folder_is_the_platforms_and_the_rest_is_in_it(
    folders: set[str], data_dir: str
) -> None:
    settings = resolve(Settings.of(), folders.__contains__, "box")

    assert settings == Settings.of(
        data_dir=data_dir,
        models_dir=f"{data_dir}/models",
        auth_keys_file=f"{data_dir}/api_keys.txt",
        log_dir=f"{data_dir}/logs",
        instance_id="box",
    )


def test_a_data_folder_that_is_set_wins_over_the_platforms() -> None:
    settings = resolve(Settings.of(data_dir="/srv"), {"/runpod-volume"}.__contains__, "box")

    assert (settings.model.data_dir, settings.model.models_dir) == ("/srv", "/srv/models")


def test_explicit_settings_are_not_replaced() -> None:
    given = Settings.of(
        data_dir="/d", models_dir="/m", auth_keys_file="/k", log_dir="/l", instance_id="i"
    )

    assert resolve(given, lambda _: True, "box") == given
