"""What `check` reports of PROMPT_CACHE."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from llama_gguf.cli import check_prompts
from llama_gguf.cli.check_result import Level
from llama_gguf.config.settings import SETTINGS, Settings
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor import prompts
from llama_gguf.supervisor.launch import PromptSource
from llama_gguf.supervisor.preparation import Preparation
from llama_gguf.values import replace
from tests.support import tiny_models
from tests.support.displays import no_meter

pytestmark = pytest.mark.processes

NO_VARIABLES: Final[Mapping[str, str]] = {}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho 'version: 4711 (abc)'\n")
    engine.chmod(0o755)

    def of(architecture: str = "llama", **changes: object) -> Settings:
        model = tmp_path / f"{architecture}.gguf"
        tiny_models.write(architecture, model)
        usual = {
            "prompt_cache": True,
            "prompt_cache_dir": str(tmp_path / "cache"),
            "model_path": str(model),
            "llama_server": str(engine),
        }
        return Settings.of(**{**usual, **changes})

    return of


def results(
    settings: Settings, unwritable: str = "", *, environ: Mapping[str, str] = NO_VARIABLES
) -> list[tuple[Level, str]]:
    found = check_prompts.results(settings, environ, lambda folder: unwritable)
    return [(each.level, each.text) for each in found]


def prompts_of_a_start(settings: Settings, environ: Mapping[str, str]) -> PromptSource:
    """What `serve` finds that saved prompts depend on."""
    upstream = replace(settings.upstream, backend_api_key="sk-generated")
    prepared = Preparation(
        replace(settings, upstream=upstream),
        environ=environ,
        sources=dict.fromkeys(SETTINGS, "default"),
        download_meter=no_meter,
    )
    prepared.check()
    (launch,) = asyncio.run(prepared.prepare(lambda text, share: None))
    assert launch.prompts is not None
    return launch.prompts


def test_nothing_is_shown_without_it(settings: Callable[..., Settings]) -> None:
    assert results(settings(prompt_cache=False)) == []


def test_a_usual_model_is_kept_and_a_restart_shows_whether_it_helps(
    settings: Callable[..., Settings],
) -> None:
    ((level, text),) = results(settings())

    assert level is Level.OK
    assert "the first restart shows" in text


@pytest.mark.parametrize(
    ("architecture", "doubt"), [("gemma3", "sliding window"), ("jamba", "recurrent layers")]
)
def test_a_model_that_cannot_go_back_is_doubted(
    settings: Callable[..., Settings], architecture: str, doubt: str
) -> None:
    ((level, text),) = results(settings(architecture))

    assert level is Level.NOTE
    assert doubt in text


def test_what_prevents_it_is_a_note(settings: Callable[..., Settings]) -> None:
    ((level, text),) = results(settings(extra_args="--lora /l.gguf"))
    assert level is Level.NOTE
    assert "adapters" in text

    assert results(settings(), "/ is not writable") == [
        (Level.NOTE, "no prompts are saved: / is not writable")
    ]


def test_exposed_slots_are_a_note(settings: Callable[..., Settings]) -> None:
    (level, text), _ = results(settings(exposed_routes="all"))

    assert level is Level.NOTE
    assert "every key can save" in text


@pytest.mark.parametrize(
    ("helps", "level", "expected"),
    [(True, Level.OK, "seen to work"), (False, Level.NOTE, "could not use saved prompts")],
)
def test_what_a_run_with_these_options_has_found_is_shown(
    settings: Callable[..., Settings], helps: bool, level: Level, expected: str
) -> None:
    chosen = settings(extra_args="--cache-type-k q8_0")
    environ = {"LLAMA_ARG_CACHE_TYPE_V": "q8_0", "HF_TOKEN": "hf_x"}
    source = prompts_of_a_start(chosen, environ)
    folder = Folder.of(chosen.prompts)
    folder.note(prompts.digest_key(source.identity), "abc")
    folder.note(prompts.verdict_key(prompts.validity(source, "abc")), helps)

    ((found, text),) = results(chosen, environ=environ)
    assert found is level
    assert expected in text
