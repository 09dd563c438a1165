from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import DEADLINE_SECONDS

pytestmark = pytest.mark.processes

START = """
import sys
from llama_gguf.stand_ins import stand_ins

with stand_ins({"rare": {"known": 1}}):
    import used
print("rare" in sys.modules)
"""


def output(code: str, folder: Path) -> list[str]:
    """What *code* prints, in a process that finds the modules ``used`` and ``rare``."""
    (folder / "used.py").write_text("import rare\nfrom rare import known\n")
    (folder / "rare.py").write_text("known, other = 1, 2\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(folder)!r}){code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    return done.stdout.splitlines()


def test_a_module_is_imported_when_anything_else_of_it_is_used(tmp_path: Path) -> None:
    rest = """
print(used.known, used.rare.known, "rare" in sys.modules)
print(used.rare.other, "rare" in sys.modules)
import rare
print(rare is sys.modules["rare"], type(rare).__name__)
"""
    assert output(START + rest, tmp_path) == ["False", "1 1 False", "2 True", "True module"]


def test_other_modules_get_the_real_one(tmp_path: Path) -> None:
    rest = "import rare\nprint(rare.other, used.rare.other)\n"

    assert output(START + rest, tmp_path) == ["False", "2 2"]


def test_a_module_that_is_loaded_already_is_left_alone(tmp_path: Path) -> None:
    rest = "print(used.rare is sys.modules['rare'])\n"

    assert output(f"\nimport rare{START}{rest}", tmp_path) == ["True", "True"]


def test_what_it_does_not_have_fails_as_in_the_real_one(tmp_path: Path) -> None:
    rest = """
try:
    used.rare.absent
except AttributeError as error:
    print(error)
"""
    assert output(START + rest, tmp_path) == ["False", "module 'rare' has no attribute 'absent'"]


def test_a_failed_import_leaves_no_stand_in(tmp_path: Path) -> None:
    code = """
from llama_gguf.stand_ins import stand_ins

try:
    with stand_ins({"rare": {}}):
        import absent
except ImportError as error:
    print(error)
import rare
print(rare.known)
"""
    assert output(code, tmp_path) == ["No module named 'absent'", "1"]
