"""The pages agree with the code: generated pages, commands, flags, variables and links."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from docs import reference
from llama_gguf.cli.arguments import command_parser
from llama_gguf.cli.main import COMMANDS, OTHERS
from llama_gguf.config import settings as settings_module
from llama_gguf.engines import exit_reasons
from tests.project import messages

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src" / "llama_gguf"
SOURCES: Final = sorted(
    m.relative_to(SOURCE).as_posix() for m in SOURCE.rglob("*.py") if messages.of(m)
)
PAGES: Final = sorted(
    p
    for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/*.md")]
    if p.is_file()
)
WRITTEN: Final = [p for p in PAGES if str(p.relative_to(ROOT)) not in reference.PAGES]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_in(text: str) -> Iterator[str]:
    """Every line of a code block, and every code span in a line."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            yield line.partition("#")[0].strip()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", prose)


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


# Generated pages ----------------------------------------------------------------------------------


def test_the_generated_pages_are_up_to_date() -> None:
    assert reference.out_of_date(ROOT) == [], "`make reference` prints them anew"


# The README ---------------------------------------------------------------------------------------


def test_the_readme_begins_with_two_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    first = re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[0]

    commands = [line.partition("#")[0].strip() for line in first.splitlines()]
    assert commands == ["make run", "make test"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("what", ["CPU per request", "CPU per event"])
def test_the_numbers_in_the_readme_are_the_measured_ones(what: str) -> None:
    readme, performance = (
        next(line for line in page.read_text("utf-8").splitlines() if line.startswith(f"| {what}"))
        for page in (ROOT / "README.md", ROOT / "docs" / "performance.md")
    )

    figures = set(re.findall(r"\d\.\d", readme))
    assert figures
    assert figures <= set(re.findall(r"\((\d\.\d)\)", performance))


def test_the_licence_exists() -> None:
    assert "MIT" in (ROOT / "README.md").read_text("utf-8")
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("MIT License")


# Commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_mentioned_make_target_exists(page: Path) -> None:
    named = {
        target
        for code in code_in(page.read_text("utf-8"))
        if code.startswith("make ")
        for target in code.split()[1:]
        if re.fullmatch(r"[a-z-]+", target)
    }

    assert named <= make_targets()


def test_every_target_without_a_file_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.findall(r"^\.PHONY: (.*)", makefile, re.MULTILINE)

    assert set(" ".join(phony).split()) == make_targets()


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_mentioned_command_and_flag_exists(page: Path) -> None:
    for code in code_in(page.read_text("utf-8")):
        words = code.split()
        if words[:1] != ["llama-gguf"] or len(words) == 1 or words[1].startswith("-"):
            continue
        if words[1] in OTHERS:
            continue
        assert words[1] in COMMANDS, code
        known = command_parser(words[1]).format_help() + _actions_help(words)
        for word in words[2:]:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word.partition('=')[0])}\b", known), code


def _actions_help(words: list[str]) -> str:
    """The help of `keys ACTION` if *words* are such a command."""
    if words[1] != "keys" or len(words) < 3:
        return ""
    parser = command_parser("keys")
    actions = next(a for a in parser._actions if a.choices)
    assert words[2] in (actions.choices or ()), words
    return str(dict(actions.choices)[words[2]].format_help())  # type: ignore[arg-type]


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_mentioned_variable_is_a_setting(page: Path) -> None:
    settings = {settings_module.variable(name) for name in settings_module.SETTINGS}
    sections = {name.split("_")[0] for name in settings}
    others = {"LLAMA_API_KEY", "HF_TOKEN", "AUTH_FAILURES_PER_MINUTE", "LLAMA_GGUF_COMPILE"}
    named = {
        word
        for code in code_in(page.read_text("utf-8"))
        for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", code)
        if word.split("_")[0] in sections and not word.startswith(("LLAMA_ARG_", "OTEL_"))
    }

    assert named - others <= settings


# Messages -----------------------------------------------------------------------------------------

PRINTED_BY_COMMANDS = (
    "access/key_admin.py",
    "cli/keys.py",
    "cli/bench",
    "cli/diagnose.py",
    "cli/ray.py",
    "cli/terminal.py",
    "cluster/on_ray.py",
)
"""Modules of commands that people run interactively, whose messages state what to do."""


@pytest.mark.parametrize("module", [m for m in SOURCES if not m.startswith(PRINTED_BY_COMMANDS)])
def test_every_message_of_a_start_is_in_troubleshooting(module: str) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    pieces = [messages.anchor(text) for text in messages.of(SOURCE / module)]

    assert [piece for piece in pieces if _without_code(piece) not in _without_code(page)] == []


def _without_code(text: str) -> str:
    return text.replace("`", "")


def test_every_exit_reason_is_in_troubleshooting() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    by_status = [exit_reasons.explain(status, []) for status in (-signal.SIGRTMAX, 0, 1)]
    explained = [*exit_reasons._SIGNALS.values(), *by_status]
    reasons = {c.reason for c in exit_reasons.CAUSES} | {reason for reason, _ in explained}

    shown = {re.sub(r"\{\w+\}", "…", reason) for reason in reasons}
    assert {reason for reason in shown if reason not in page} == set()


def test_messages_are_found_in_every_form_of_code() -> None:
    source = """
GONE: Final = "it is gone for good\\nlook elsewhere"
def f():
    raise UserError(GONE)
    raise UserError(f"{path} cannot be opened now: {why}", 2)
    raise UserError(_told(x))
    raise UserError(str(error))
    _log.warning("few_left", "only {count} of {what:>9} are left", count=1, what="x")
    _log.info("all_is_well", "this is no trouble at all")
def _told(x):
    return f"{x} was told by another"
"""

    assert sorted(messages.Messages(source)) == [
        "it is gone for good",
        "only … of … are left",
        "… cannot be opened now: …",
        "… was told by another",
    ]


# Links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_has_an_existing_target(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`\n]*`", "", prose)
    inline = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose)
    for target in inline + re.findall(r"^\[[^\]]*\]: (\S+)$", prose, re.MULTILINE):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), target


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_every_page_that_code_refers_to_exists() -> None:
    for source in [*ROOT.glob("src/**/*.py"), ROOT / "pyproject.toml"]:
        for path in re.findall(r"docs/[\w/.-]+\.md", source.read_text("utf-8")):
            assert (ROOT / path).is_file(), f"{source}: {path}"


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_mentioned_file_exists(page: Path) -> None:
    places = (ROOT, SOURCE, SOURCE.parent, ROOT / "tests", ROOT / "docs", page.parent)
    named = {
        path
        for code in code_in(page.read_text("utf-8"))
        for path in re.findall(
            r"(?<![\w$/~*.-])[a-z][\w-]*/[\w/.-]+\.(?:py|md|toml|mjs|sh)\b", code
        )
    }

    assert {path for path in named if not any((place / path).exists() for place in places)} == set()


@pytest.mark.parametrize("name", ["Makefile", "pyproject.toml", ".ci/run", "hatch_build.py"])
def test_every_file_that_the_build_mentions_exists(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    paths = set(
        re.findall(r"(?<![\w/])(?:docker|docs|locks|perf|scripts|src|tests)/[\w/.-]*\w", text)
    )
    tests = set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", text))

    assert {path for path in paths if not (ROOT / path).exists()} == set()
    for path, test in tests:
        assert f"def {test}(" in (ROOT / path).read_text("utf-8")


# Decisions ----------------------------------------------------------------------------------------


def test_every_decision_is_in_the_list_with_its_title() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text("utf-8")

    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    for decision in decisions:
        number, _, title = (
            decision.read_text("utf-8").splitlines()[0].removeprefix("# ").partition(": ")
        )
        assert number == decision.name[:4]
        assert f"| [{number}]({decision.name}) | {title} |" in listed
    assert listed.count("](0") == len(decisions)


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(p.name[:4]) for p in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))]

    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")), ids=name_of)
def test_a_decision_has_context_decision_and_consequences(page: Path) -> None:
    text = page.read_text("utf-8")

    for part in ("Context", "Decision", "Consequences"):
        assert f"**{part}.**" in text


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")), ids=name_of)
def test_a_decision_begins_with_its_status(page: Path) -> None:
    status = page.read_text("utf-8").split("\n\n")[1].replace("\n", " ")

    link = r"\[\d{4}\]\(\d{4}-[\w-]+\.md\)"
    amended = rf"( Amended by {link}( and {link})?: .+\.)?"
    assert re.fullmatch(
        rf"Accepted, \d{{4}}-\d{{2}}\.{amended}|Superseded by {link}.*, \d{{4}}-\d{{2}}\.", status
    )


# Changes ------------------------------------------------------------------------------------------


def test_every_changelog_fragment_is_of_a_collected_kind() -> None:
    kinds = ("added", "changed", "fixed", "security")
    for fragment in (ROOT / "changes").glob("*.md"):
        if fragment.name != "README.md":
            assert fragment.name.split(".")[-2] in kinds, fragment.name
            assert fragment.read_text("utf-8").strip()


@pytest.mark.processes
def test_files_with_secrets_or_models_are_never_committed() -> None:
    for path in ("api_keys.txt", "data/api_keys.txt", ".env", "m.gguf", "data/models/m.gguf"):
        result = subprocess.run(
            ["git", "check-ignore", "-q", path], cwd=ROOT, timeout=30, check=False
        )
        if result.returncode == 128:
            pytest.skip("this is no git checkout")
        assert result.returncode == 0, path
