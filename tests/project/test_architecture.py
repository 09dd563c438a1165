"""A module with logic has a test file of its name.

``access/rate_limit.py`` is tested by ``access/test_rate_limit.py``. Large test files may be split
by topic, as ``http1/test_fields_framing.py``. Permitted imports are checked by import-linter
(``make imports``), not here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]
SOURCE: Final = TESTS.parent / "src" / "llama_gguf"
BENCH: Final = SOURCE.with_name("llama_gguf_bench")  # its tests are in tests/bench

TESTED_ELSEWHERE: Final = {
    "files/stamps.py": "access/test_key_store.py",  # detects a new keys file
    "cli/command.py": "cli/test_main.py",  # runs what main has recognised
    "cli/help_format.py": "cli/test_arguments.py",
    "cli/key_views.py": "cli/test_keys.py",  # the output of `keys`
    # Commands that need a running server.
    "cli/neighbours.py": "supervisor/test_serve_operated.py",
    "cli/restart.py": "supervisor/test_serve_operated.py",
    "cli/status.py": "supervisor/test_serve_operated.py",
    "cli/stop.py": "supervisor/test_serve_operated.py",
    "supervisor/operations.py": "supervisor/test_serve_operated.py",
    "models/gguf_cursor.py": "models/test_gguf.py",  # reads bytes for models/gguf.py alone
}
"""Modules without a test file of their name, and the file whose tests cover them."""


def has_logic(module: Path) -> bool:
    """Whether it contains a function: tables, values and errors alone need no test file."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(ast.parse(module.read_text()))
    )


def mirrors_of(name: str) -> Iterator[Path]:
    """The test files that mirror the module *name*."""
    module = Path(name)
    folder = TESTS / module.parent
    yield from folder.glob(f"test_{module.stem}.py")
    yield from folder.glob(f"test_{module.stem}_*.py")


MODULES: Final = sorted(
    str(folder / module.relative_to(package))
    for folder, package in ((Path(), SOURCE), (Path("bench"), BENCH))
    for module in package.rglob("*.py")
    if has_logic(module)
)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in TESTED_ELSEWHERE])
def test_every_module_with_logic_has_a_test_file_of_its_name(name: str) -> None:
    assert any(mirrors_of(name))


@pytest.mark.parametrize(("name", "elsewhere"), TESTED_ELSEWHERE.items())
def test_a_module_tested_elsewhere_exists_and_has_no_test_file_of_its_name(
    name: str, elsewhere: str
) -> None:
    assert (SOURCE / name).is_file()
    assert (TESTS / elsewhere).is_file()
    assert not any(mirrors_of(name))


def generators_with_a_name(module: Path) -> list[int]:
    """The lines of generator expressions that are not consumed where they stand."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Assign | ast.Return | ast.AnnAssign)
        and isinstance(node.value, ast.GeneratorExp)
    ]


COMPILED_ROOMS: Final = ("access", "gateway", "http1", "net", "scheduling", "telemetry")


@pytest.mark.parametrize("room", COMPILED_ROOMS)
def test_no_generator_expression_is_kept_where_mypyc_makes_it_a_list(room: str) -> None:
    found = {str(module): generators_with_a_name(module) for module in (SOURCE / room).glob("*.py")}

    assert {name: lines for name, lines in found.items() if lines} == {}
