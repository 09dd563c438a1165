from __future__ import annotations

import pytest

from llama_gguf.cli import mistakes
from llama_gguf.cli.main import COMMANDS, OTHERS, main

SECRET = "sk-Zq8vN2xLw5TfR7mB"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("srve", "unknown command srve; did you mean serve?"),
        ("SERVE", "unknown command SERVE; did you mean serve?"),
        ("chekc", "did you mean check?"),
        ("hepl", "did you mean help?"),
        ("verison", "did you mean version?"),
        ("run", "unknown command run; did you mean serve?"),
        ("download", "did you mean pull?"),
        ("ls", "did you mean pull --list?"),
        ("generate", "did you mean keys generate?"),
        ("m.gguf", "did you mean `llama-gguf serve m.gguf`?"),
        ("smollm2", "did you mean `llama-gguf serve smollm2`?"),
        ("hf:o/n:Q4", "did you mean `llama-gguf serve hf:o/n:Q4`?"),
        ("zebra", "unknown command zebra (commands: serve, "),
        ("--port", "unknown flag --port: flags follow the command"),
    ],
)
def test_an_unknown_command_is_reported_with_what_is_meant(word: str, message: str) -> None:
    assert message in mistakes.about_command(word, COMMANDS, OTHERS)


def test_every_command_that_is_suggested_exists() -> None:
    assert {name.partition(" ")[0] for name in mistakes._COMMANDS.values()} <= COMMANDS.keys()
    assert not mistakes._COMMANDS.keys() & COMMANDS.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("serve --name alice", "--name is a flag of `llama-gguf keys generate` and `llama-gguf p"),
        ("check --create-key", "--create-key is a flag of `llama-gguf serve`, not of `llama-gguf"),
        ("keys list --hashed", "--hashed is a flag of `llama-gguf keys generate` and "),
        ("keys --name=a generate", "--name must follow the action, as in `llama-gguf keys gener"),
        ("serve --prot 1", "unknown flag --prot; did you mean --port?"),
        ("serve --ctx-sizes 1", "unknown flag --ctx-sizes; did you mean --ctx-size?"),
        ("serve --flash-attn on", "(flags of llama-server: --extra-args '--flag value')"),
        ("pull --zebra", "unknown flag --zebra; see --help"),
        ("serve -hf o/n", "-hf: use `llama-gguf serve hf:OWNER/NAME:TAG`"),
        ("serve --hf-repo=o/n", "--hf-repo: use `llama-gguf serve hf:OWNER/NAME:TAG`"),
        (f"serve --api-key {SECRET}", "`llama-gguf keys generate NAME` creates one"),
        (f"gateway --api-key={SECRET}", "`llama-gguf keys import FILE` takes existing ones"),
        ("serve --api-key-file f", "`llama-gguf keys import FILE` takes existing ones"),
        (f"serve --backend-api-key={SECRET}", "can only be set in the environment or a file"),
    ],
)
def test_an_unknown_flag_is_reported_with_what_is_meant(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words.split(), {})

    output = capsys.readouterr().err
    assert left.value.code == 2
    assert message in output
    assert SECRET not in output


def test_a_hidden_flag_is_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gateway", "--listen-fb", "3"], {})

    assert "did you mean" not in capsys.readouterr().err
