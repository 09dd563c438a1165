from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llama_gguf.cli.main import COMMANDS, main

pytestmark = pytest.mark.processes


@pytest.fixture
def scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The directory of the scripts for all shells, with a few files to complete."""
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell], {}) == 0
        (tmp_path / shell).write_text(capsys.readouterr().out)
    (tmp_path / "my model.gguf").touch()
    (tmp_path / "my.toml").touch()
    return tmp_path


def run(shell: str, script: str, folder: Path) -> list[str]:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    result = subprocess.run(
        [program, "-c", script],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout.splitlines()


def in_bash(folder: Path, *words: str) -> list[str]:
    script = (
        "source ./bash; COMP_WORDS=({words}); COMP_CWORD={at}; _llama_gguf; "
        'printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    quoted = " ".join(f"'{word}'" for word in ("llama-gguf", *words))
    return [w for w in run("bash", script.format(words=quoted, at=len(words)), folder) if w]


def in_fish(folder: Path, *words: str) -> list[str]:
    line = " ".join(("llama-gguf", *words))
    found = run("fish", f"source ./fish; complete -C '{line}'", folder)
    return [line.partition("\t")[0] for line in found]


@pytest.mark.parametrize("complete", [in_bash, in_fish])
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["se"], {"serve"}),
        (["keys", "ge"], {"generate"}),
        (["keys", "generate", "--ra"], {"--rate-limit"}),
        (["keys", "create", "--expi"], {"--expires"}),
        (["serve", "--ctx"], {"--ctx", "--ctx-size"}),
        (["serve", "-n"], {"-ngl", "-np"}),
        (["serve", "--log-format", ""], {"text", "json"}),
        (["serve", "--auth-enabled", "t"], {"true"}),
        (["serve", "--port", ""], set()),
        (["serve", "smol"], {"smollm2"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["serve", "--config", "my.t"], {"my.toml"}),
    ],
)
def test_commands_flags_and_values_are_completed(
    scripts: Path, complete: object, words: list[str], found: set[str]
) -> None:
    assert callable(complete)
    completed = set(complete(scripts, *words))
    # fish also offers to add flags of one letter.
    assert {each for each in completed if not re.fullmatch("-n[a-z]", each)} <= found
    assert found <= completed


@pytest.mark.parametrize("complete", [in_bash, in_fish])
def test_all_commands_are_offered(scripts: Path, complete: object) -> None:
    assert callable(complete)
    assert COMMANDS.keys() <= set(complete(scripts, ""))


def test_bash_completes_a_value_behind_an_equals_sign(scripts: Path) -> None:
    assert in_bash(scripts, "serve", "--log-format", "=", "j") == ["json"]
    assert set(in_bash(scripts, "serve", "--log-format", "=")) == {"text", "json"}


def test_bash_keeps_a_files_name_with_spaces_in_one_piece(scripts: Path) -> None:
    assert in_bash(scripts, "serve", "my ") == ["my model.gguf"]


def test_zsh_accepts_the_script(scripts: Path) -> None:
    functions = "autoload -Uz compinit; compinit -D; source ./zsh; print $_comps[llama-gguf]"

    assert run("zsh", f"emulate zsh; {functions}", scripts) == ["_llama_gguf"]


def test_an_invalid_setting_does_not_break_the_start_of_a_shell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["completion", "bash"], {"PORT": "x", "CONFIG_FILE": "/no/such"}) == 0
    assert capsys.readouterr().err == ""


def test_an_unknown_shell_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"], {})

    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
