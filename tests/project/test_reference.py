from __future__ import annotations

import sys
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

import llama_gguf
from docs import reference
from llama_gguf.cli.main import COMMANDS
from llama_gguf.config import settings as settings_module
from llama_gguf.config.load import load
from llama_gguf.config.settings import Settings
from llama_gguf.errors import GatewayError
from llama_gguf.gateway import client_connection, lifecycle, upstream_connection
from llama_gguf.scheduling import exchange
from llama_gguf.supervisor import replacement, restart_policy, states
from llama_gguf.telemetry.metric_table import METRICS

SOURCE = Path(llama_gguf.__file__).parents[1]


CACHED = {name: cache(page) for name, page in reference.PAGES.items()}
"""Each page is generated once: some read all modules."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without pages, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "PAGES", CACHED)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["reference", *argv])
    return reference.main()


# Content of the pages -----------------------------------------------------------------------------


def test_every_setting_has_a_row_with_its_default() -> None:
    rows = [line.split(" | ") for line in reference.settings_page().splitlines()]
    found = {row[0].strip("| `"): row[1].strip("`") for row in rows if len(row) == 3}

    for name in settings_module.SETTINGS:
        default = settings_module.default_text(name)
        assert found[settings_module.variable(name)] == (default or "(empty)")


def test_the_example_has_the_defaults() -> None:
    lines = reference.env_example().splitlines()
    values = [line[1:].split("=", 1) for line in lines if line[:1] == "#" and line[1:2] != " "]

    assert [name for name, _ in values] == [
        settings_module.variable(n) for n in settings_module.SETTINGS
    ]
    assert load(dict(values)).settings == Settings.of()


def test_every_line_of_the_example_is_commented_out() -> None:
    assert all(line.startswith("#") for line in reference.env_example().splitlines() if line)


def test_every_command_is_on_its_page() -> None:
    page = reference.cli_page()

    for name in COMMANDS:
        assert f"## llama-gguf {name}\n\n```text\nusage: llama-gguf {name} " in page


def test_every_metric_is_on_its_page() -> None:
    page = reference.metrics_page()

    for metric in METRICS:
        assert f"| `{metric.name}" in page
    assert page.count("\n| `") == len(METRICS)


def test_every_error_with_its_own_code_is_on_its_page() -> None:
    kinds = kinds_of(GatewayError)

    page = reference.errors_page()

    for kind in kinds:
        assert f"| {kind.status} | `{kind.code}` | `{kind.type}` | " in page
    assert page.count("\n| ") == len({kind.code for kind in kinds}) + 1


def test_every_module_is_on_its_page_with_its_docstring() -> None:
    page = reference.modules_page()

    for module in reference._modules(Path(llama_gguf.__file__).parent):
        assert f"## {module.parent.relative_to(SOURCE).as_posix()}/" in page
        assert f"| `{module.name}` | {reference._docstring_line(module)}" in page


def test_every_transition_of_a_state_machine_is_drawn() -> None:
    page = reference.states_page()

    assert "    READING --> QUEUED: QUEUE" in page
    assert "    LOADING --> READY: SERVES" in page
    assert "    STOPPING --> HURRYING: STOP" in page
    moves = len(restart_policy.TRANSITIONS) + len(states.TRANSITIONS) + len(lifecycle.TRANSITIONS)
    moves += sum(map(len, exchange.TRANSITIONS.values()))
    moves += len(replacement.TRANSITIONS)
    assert page.count(" --> ") == moves + 5  # the arrows to the initial states
    for state in client_connection.State:
        assert f"| {state.name} | " in page
    for phase in upstream_connection.Phase:
        assert f"| {phase.name} | " in page
    assert " | IDLE, CLOSED |\n" in page, "of a connection to llama-server that is CLOSED"


def kinds_of(family: type[GatewayError]) -> set[type[GatewayError]]:
    """All subclasses of *family* that define a code."""
    found = {kind for kind in family.__subclasses__() if "code" in vars(kind)}
    for kind in family.__subclasses__():
        found |= kinds_of(kind)
    return found


def test_no_cell_breaks_its_table() -> None:
    for page in (
        reference.settings_page,
        reference.metrics_page,
        reference.errors_page,
        reference.modules_page,
    ):
        for is_table, lines in groupby(page().splitlines(), lambda line: line.startswith("|")):
            columns = {line.replace("\\|", "").count("|") for line in lines}
            assert not is_table or len(columns) == 1


# Writing and checking -----------------------------------------------------------------------------


def test_missing_pages_are_written_and_then_up_to_date(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.out_of_date(root) == list(reference.PAGES)

    assert run(monkeypatch) == 0

    assert capsys.readouterr().out.splitlines() == [f"written: {n}" for n in reference.PAGES]
    assert reference.out_of_date(root) == []
    assert run(monkeypatch, "--check") == 0
    assert capsys.readouterr() == ("", "")


def test_a_check_names_an_edited_page_and_does_not_change_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    page = root / "docs" / "cli.md"
    page.write_text("by hand")
    capsys.readouterr()

    assert run(monkeypatch, "--check") == 1

    assert capsys.readouterr().err == (
        "out of date: docs/cli.md. `make reference` generates them.\n"
    )
    assert page.read_text() == "by hand"
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out == "written: docs/cli.md\n"


def test_line_breaks_of_usages_do_not_count_as_differences(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch)
    page = root / "docs" / "cli.md"
    usage, rest = page.read_text().split("] ", 1)

    page.write_text(f"{usage}]\n      {rest}")

    assert reference.out_of_date(root) == []
