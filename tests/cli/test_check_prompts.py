"""What `check` reports of PROMPT_CACHE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_gguf.cli import check_prompts
from llama_gguf.cli.check_result import Level
from llama_gguf.config.settings import Settings
from llama_gguf.engines import locate
from llama_gguf.engines.command import engine_argv, engine_environment, extra_args
from llama_gguf.models.engine_options import options
from llama_gguf.prompt_cache.folder import Folder
from llama_gguf.supervisor import division, plan, prompt_source, prompts
from tests.support import tiny_models

pytestmark = pytest.mark.processes


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


def results(settings: Settings, unwritable: str = "") -> list[tuple[Level, str]]:
    found = check_prompts.results(settings, {}, lambda folder: unwritable)
    return [(each.level, each.text) for each in found]


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
    chosen = settings()
    folder = Folder(chosen.prompts.prompt_cache_dir, 1000)
    folder.open()
    # As `serve` does it.
    model = plan.find_model(chosen.model)
    engine = locate.locate(chosen.engine.llama_server, "", environ={})
    environ, _ = engine_environment({}, api_key="secret", changes=engine.environment_changes)
    divided, _ = division.divided(chosen.engine, {}, model.facts)
    argv = engine_argv(engine.path, divided, model_path=model.path, alias=plan.alias_of(model))
    source = prompt_source.source(
        model.parts,
        argv,
        environ,
        version=locate.version(engine, {}) or "",
        chosen=options(divided, extra_args(divided), environ),
    )
    folder.note(prompts.digest_key(source.identity), "abc")
    folder.note(prompts.verdict_key(prompts.validity(source, "abc")), helps)

    ((found, text),) = results(chosen)
    assert found is level
    assert expected in text
