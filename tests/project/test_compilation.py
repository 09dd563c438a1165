"""When a build compiles the hot modules, and the reason that it shows where it does not."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import hatch_build
from hatch_build import BUILD_DEPENDENCIES, MODULES, SMALL, VARIABLE, CompileHook
from llama_gguf.form import FORM

ROOT = Path(__file__).parents[2]


class App:
    """What hatchling shows."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


def hook(monkeypatch: pytest.MonkeyPatch, **environ: str) -> tuple[CompileHook, App]:
    app = App()
    for name in (VARIABLE, "CC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config: Any = None
    return CompileHook(str(ROOT), {}, config, config, "", "wheel", app=app), app  # type: ignore[arg-type]


def built(made: CompileHook) -> dict[str, Any]:
    """What the hook adds to a wheel."""
    data: dict[str, Any] = {"force_include": {}, "pure_python": True}
    made.initialize("standard", data)
    made.finalize("standard", data, "")
    return data


def no_modules(_source: Path, _folder: Path) -> list[Path]:
    raise hatch_build.CompilationError("mypyc failed.\nTraceback\nNo module named 'mypyc'")


def test_each_module_to_compile_for_size_is_one_of_those_to_compile() -> None:
    stems = [Path(module).stem for module in MODULES]

    assert {name: stems.count(name) for name in SMALL} == dict.fromkeys(SMALL, 1)


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({VARIABLE: "0"}, f"{VARIABLE}=0"),
        ({"CC": "no-such-compiler -O2"}, "there is no C compiler (no-such-compiler -O2)"),
    ],
)
def test_what_cannot_or_must_not_be_compiled_is_built_without_it(
    environ: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, app = hook(monkeypatch, **environ)

    assert made.dependencies() == []
    assert built(made) == {"force_include": {}, "pure_python": True}
    assert app.warnings == [f"The gateway is not compiled, and slower: {reason}"]


def test_without_pythons_headers_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("CC", "sh")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))

    assert hatch_build.obstacle().endswith("(on Debian and Ubuntu: apt install python3-dev)")


def test_a_compilation_that_fails_leaves_a_wheel_without_it_and_one_line_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, app = hook(monkeypatch)
    monkeypatch.setattr(hatch_build, "obstacle", lambda: "")
    monkeypatch.setattr(hatch_build, "compile_modules", no_modules)

    assert made.dependencies() == BUILD_DEPENDENCIES
    assert built(made)["pure_python"]
    assert app.warnings == [
        "The gateway is not compiled, and slower: No module named 'mypyc'",
    ]


def test_a_compilation_that_is_required_and_fails_ends_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = hook(monkeypatch, **{VARIABLE: "1"})
    monkeypatch.setattr(hatch_build, "compile_modules", no_modules)

    with pytest.raises(SystemExit, match="No module named 'mypyc' LLAMA_GGUF_COMPILE=0 builds"):
        built(made)


def test_an_editable_installation_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made, app = hook(monkeypatch, **{VARIABLE: "1"})
    monkeypatch.setattr(hatch_build, "compile_modules", no_modules)

    made.initialize("editable", {})

    assert app.warnings == []


# The wheels of a release --------------------------------------------------------------------------

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WHEELS: Final = PROJECT["tool"]["cibuildwheel"]


def test_wheels_are_compiled_for_every_python_that_is_supported() -> None:
    classifiers = " ".join(PROJECT["project"]["classifiers"])
    pythons = re.findall(r"Python :: 3\.(\d+)", classifiers)

    assert WHEELS["build"].split() == [f"cp3{minor}-*" for minor in pythons]
    assert WHEELS["environment"] == {VARIABLE: "1"}
    assert "skip" not in WHEELS  # neither musl nor an architecture


def test_wheels_are_built_on_both_architectures_and_checked_before_they_are_published() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]

    assert jobs["wheels"]["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert "wheels" in jobs["provenance"]["needs"]
    assert "provenance" in jobs["pypi"]["needs"]


@pytest.mark.processes
def test_what_is_run_with_each_wheel_accepts_a_gateway_that_works_in_the_expected_form() -> None:
    def smoke(form: str) -> subprocess.CompletedProcess[str]:
        script = WHEELS["test-command"].replace("{project}", str(ROOT)).split()[1]
        argv = [sys.executable, script, form]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    assert smoke(FORM).returncode == 0
    other = smoke("another form")
    assert other.returncode == 1
    assert "not another form" in other.stderr


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_is_compiled_exists(name: str) -> None:
    assert (ROOT / "src" / name).is_file()
