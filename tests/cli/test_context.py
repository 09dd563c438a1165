from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.cli.context import read


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "llama-gguf.toml"
    path.write_text("port = 9000\nctx = 4096\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "vars"
    path.write_text("PORT=9001\nHF_HOME=/hub\nTERM=mine\n")
    path.chmod(0o644)
    return path


def test_the_files_are_named_as_the_origin_of_their_values(config: Path, env_file: Path) -> None:
    context = read({"config_file": str(config)}, {"NGL": "1"}, env_file=str(env_file))

    assert context.origin("port") == str(env_file)
    assert context.origin("ctx") == str(config)
    assert context.origin("ngl") == "environment"
    assert not context.complaint
    assert not context.warnings


@pytest.mark.parametrize("source", ["flag", "environment", "env-file"])
def test_the_configuration_file_is_named_by_a_flag_or_a_variable(
    config: Path, tmp_path: Path, source: str
) -> None:
    variables = tmp_path / "vars"
    variables.write_text(f"CONFIG_FILE={config}\n")

    context = read(
        {"config_file": str(config)} if source == "flag" else {},
        {"CONFIG_FILE": str(config)} if source == "environment" else {},
        env_file=str(variables) if source == "env-file" else None,
    )

    assert context.settings.listen.port == 9000
    assert context.sources["config_file"] == source


def test_a_flag_can_clear_the_configuration_file(config: Path) -> None:
    context = read({"config_file": ""}, {"CONFIG_FILE": str(config)})

    assert context.settings.listen.port == 8000
    assert not context.files


def test_variables_of_an_env_file_reach_children_unless_the_environment_has_them(
    env_file: Path,
) -> None:
    environ = read({}, {"TERM": "", "X": ""}, env_file=str(env_file)).environ

    assert (environ["TERM"], environ["X"], environ["HF_HOME"]) == ("", "", "/hub")


def test_reading_again_takes_what_has_changed(config: Path) -> None:
    flags, environ = {"config_file": str(config)}, {"CTX": "1024"}
    before = read(flags, environ)
    config.write_text("port = 9002\nctx = 8192\n")

    after = read(flags, environ)

    assert (before.settings.listen.port, after.settings.listen.port) == (9000, 9002)
    assert after.settings.engine.ctx == 1024


@pytest.mark.parametrize(
    ("flags", "env_file", "complaint"),
    [
        ({"config_file": "/no/such"}, None, "CONFIG_FILE=/no/such cannot be read: No such file"),
        ({"config_file": "/"}, None, "CONFIG_FILE=/ cannot be read: Is a directory"),
        ({}, "/no/such", "--env-file=/no/such cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_invalid_setting(
    flags: dict[str, str], env_file: str | None, complaint: str
) -> None:
    assert complaint in read(flags, {}, env_file=env_file).complaint


@pytest.mark.parametrize(
    ("mode", "is_exposed"), [(0o600, False), (0o644, True), (0o640, True), (0o400, False)]
)
@pytest.mark.parametrize("kind", ["config", "env"])
def test_a_secret_in_a_file_that_others_can_read_is_warned_about(
    tmp_path: Path, kind: str, mode: int, is_exposed: bool
) -> None:
    path = tmp_path / "file"
    path.write_text("backend_api_key = 'secret-1234'" if kind == "config" else "HF_TOKEN=hf_1234")
    path.chmod(mode)

    if kind == "config":
        context = read({"config_file": str(path)}, {})
    else:
        context = read({}, {}, env_file=str(path))

    assert [f"chmod 600 {path}" in warning for warning in context.warnings] == [True] * is_exposed
    assert "1234" not in "".join(context.warnings)
