"""Whether prompts can be kept, and what they depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.config.schema import EngineSettings
from llama_gguf.models.engine_options import options
from llama_gguf.supervisor.launch import PromptSource
from llama_gguf.supervisor.prompt_source import obstacle, save_flags, source


def reason(extra: str) -> str:
    words = extra.split()
    return obstacle(options(EngineSettings(), words, {}), words)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("--mmproj /p.gguf", "multimodal"),
        ("--lora /l.gguf", "adapters"),
        ("--embeddings", "embeddings"),
        ("--slot-save-path /mine", "--slot-save-path"),
        ("--slot_save_path /mine", "--slot-save-path"),
        ("--no-slots", "--no-slots"),
        ("--no-cache-prompt", "--no-cache-prompt"),
    ],
)
def test_what_prevents_it_is_named(extra: str, expected: str) -> None:
    assert expected in reason(extra)


def test_usual_flags_prevent_nothing() -> None:
    assert reason("--temp 0 -fa on -ctk q8_0") == ""


def test_the_folder_ends_in_a_separator_and_conversations_keep_their_slots() -> None:
    flags = ["--slot-save-path", "/data/cache/"]

    assert save_flags("/data/cache", []) == [*flags, "--slot-prompt-similarity", "0.5"]
    assert save_flags("/data/cache", ["-sps", "0.2"]) == flags
    assert save_flags("/data/cache", ["--slot_prompt_similarity", "0"]) == flags


def found(tmp_path: Path, *words: str, version: str = "b1") -> PromptSource:
    model = tmp_path / "m.gguf"
    if not model.exists():
        model.touch()
    chosen = options(EngineSettings(), list(words), {})
    argv = ["/bin/llama-server", "--model", str(model), *words]
    return source([str(model)], argv, {}, version=version, chosen=chosen)


def test_flags_build_and_the_files_that_flags_name_count(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.write_text("one")
    flags = ("--chat-template-file", str(template))
    first = found(tmp_path, *flags)

    assert found(tmp_path, *flags) == first
    assert found(tmp_path, *flags, "-ctk", "q8_0").options != first.options
    assert found(tmp_path, *flags, version="b2").build != first.build
    template.write_text("another")
    assert found(tmp_path, *flags).options != first.options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), 8192 << 20),
        (("-cram", "100"), 100 << 20),
        (("-cram", "0"), 0),
        (("--no-cache-idle-slots",), 0),
    ],
)
def test_the_engines_cache_in_ram_limits_how_much_is_restored(
    tmp_path: Path, words: tuple[str, ...], expected: int
) -> None:
    assert found(tmp_path, *words).ram_bytes == expected


def test_no_limit_is_a_large_one(tmp_path: Path) -> None:
    assert found(tmp_path, "-cram", "-1").ram_bytes > 1 << 40
