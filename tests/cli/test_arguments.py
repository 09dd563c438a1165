from __future__ import annotations

import argparse
import importlib

import pytest

from llama_gguf.cli import SERVERS, serve
from llama_gguf.cli.arguments import actions_of, add_model, command_parser, joined
from llama_gguf.cli.context import settings_in


def test_the_value_of_extra_args_may_look_like_a_flag() -> None:
    assert list(joined(["-c", "1", "--extra-args", "--mlock", "m"])) == [
        *("-c", "1", "--extra-args=--mlock", "m")
    ]
    assert list(joined(["--extra-args"])) == ["--extra-args"]


def test_only_settings_that_were_given_are_flags() -> None:
    arguments = command_parser("serve").parse_args(["m.gguf", "-np", "2", "--cors-origins="])

    assert settings_in(arguments) == {"model_name": "m.gguf", "parallel": "2", "cors_origins": ""}
    assert not settings_in(command_parser("serve").parse_args([]))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("gateway", []),
        ("gateway", ["--listen-fd", "3", "--channel-fd", "4"]),
        ("gateway", ["-q", "surplus"]),
        ("serve", ["m.gguf", "-v"]),
        ("serve", ["m.gguf", "--log-level=debug"]),
        ("serve", ["-np", "2", "-qv"]),
        ("serve", ["--env-file", "x", "--unknown"]),
        ("health", ["--port-health", "1"]),
    ],
)
def test_a_parser_for_some_words_reads_them_as_one_for_all(command: str, words: list[str]) -> None:
    found, surplus = command_parser(command, words).parse_known_args(words)
    expected, unknown = command_parser(command).parse_known_args(words)

    assert surplus == unknown
    assert {**vars(found), "parser": None} == {**vars(expected), "parser": None}


@pytest.mark.parametrize(
    ("words", "has_settings"),
    [([], False), (["m.gguf", "-v"], False), (["--help"], True), (["-h"], True), (["--p"], True)],
)
def test_the_flags_of_settings_are_declared_only_for_words_that_can_be_flags(
    words: list[str], has_settings: bool
) -> None:
    assert ("--port" in command_parser("serve", words)._option_string_actions) == has_settings


def test_a_setting_may_precede_or_follow_the_action() -> None:
    parser = command_parser("keys")

    for words in (["--data-dir", "/x", "list"], ["list", "--data-dir", "/x"]):
        assert settings_in(parser.parse_args(words)) == {"data_dir": "/x"}


def test_an_action_is_listed_once_although_it_has_aliases() -> None:
    names = [name for name, _ in actions_of(command_parser("keys"))]

    assert names == [*("generate", "set", "list", "show", "remove", "rotate", "import", "hash")]


def test_the_value_of_a_flag_is_shown_once_for_all_of_its_names() -> None:
    assert "  -c, --ctx-size, --ctx CTX " in command_parser("serve").format_help()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("crate", "unknown action crate; did you mean create? (actions: generate, set, list,"),
        ("lst", "unknown action lst; did you mean list?"),
        ("zebra", "unknown action zebra (actions: generate,"),
    ],
)
def test_an_unknown_action_is_reported_with_the_closest_one(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_parser("keys").parse_args([word])

    assert message in capsys.readouterr().err


def test_the_model_may_be_an_argument_or_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_model(parser)
    parser.add_argument("-m", dest="setting_model_name", default=argparse.SUPPRESS)

    assert settings_in(parser.parse_args(["a"])) == {"model_name": "a"}
    assert settings_in(parser.parse_args(["-m", "a"])) == {"model_name": "a"}
    assert not settings_in(parser.parse_args([]))


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_without_arguments_has_those_of_its_parser(name: str) -> None:
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    parsed = vars(command_parser(name).parse_args([]))

    assert vars(command.without_parser([])) | {"parser": parsed["parser"]} == parsed
    assert command.without_parser(["--port", "80"]) is None


@pytest.mark.parametrize("words", [["m.gguf"], ["hf:owner/name"], [""]])
def test_a_model_alone_needs_no_parser(words: list[str]) -> None:
    arguments = serve.without_parser(words)

    assert arguments is not None
    assert settings_in(arguments) == settings_in(command_parser("serve").parse_args(words))


@pytest.mark.parametrize("words", [["-q"], ["--help"], ["--"], ["m.gguf", "-q"], ["a", "b"]])
def test_anything_else_is_parsed(words: list[str]) -> None:
    assert serve.without_parser(words) is None
