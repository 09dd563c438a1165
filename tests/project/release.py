"""Checks whether dist/ can be released: ``python -m tests.project.release [--notes] [TAG]``.

All mistakes are reported together. With a TAG, version, tag and changelog must agree, no fragment
may remain, and the installed gateway must pass ``tests/hostile``. Without one, conditions that
only a release must meet are not checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from llama_gguf import __version__

ROOT: Final = Path(__file__).parents[2]
DIST: Final = ROOT / "dist"


def section(changelog: str, version: str) -> str:
    """The section of *version* in *changelog*; empty if there is none."""
    found = re.search(
        rf"^## {re.escape(version)} \([^)]*\)\n(.*?)(?=^## |\Z)",
        changelog,
        re.DOTALL | re.MULTILINE,
    )
    return found[1].strip() if found else ""


def mistakes_of_version(
    version: str, *, tag: str, changelog: str, fragments: Sequence[str]
) -> Iterator[str]:
    """The inconsistencies between tag, version, changelog and fragments."""
    described = section(changelog, version)
    if described and fragments:
        yield f"CHANGELOG.md has {version}, but changes/ still has {' '.join(fragments)}"
    if not tag:
        return
    if tag != f"v{version}":
        yield f"the tag is {tag} but the version {version}: the tag must be v{version}"
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"{version} is not a release version; change it in src/llama_gguf/__init__.py"
    if not described:
        yield f"CHANGELOG.md has no section for {version}: `make changelog` collects the fragments"


def mistakes_of_files(names: Sequence[str], version: str) -> Iterator[str]:
    """Missing and unexpected files in dist/."""
    base = f"llama_gguf_inference-{version}"
    wanted = {f"{base}.tar.gz", f"{base}-py3-none-any.whl"}
    if set(names) != wanted:
        yield f"dist/ has {' '.join(sorted(names))} instead of {' '.join(sorted(wanted))}"


def mistakes_of_sdist(archived: Sequence[str], tracked: Sequence[str]) -> Iterator[str]:
    """Files in the sdist that are not in the repository (remnants, secrets), and the opposite."""
    ours = {name.partition("/")[2] for name in archived} - {"PKG-INFO", ""}
    if strangers := sorted(ours - set(tracked)):
        yield f"the sdist has files that are not in git: {' '.join(strangers)}"
    if missing := sorted(set(tracked) - ours):
        yield f"the sdist lacks files that its tests may read: {' '.join(missing)}"


def mistakes_of_templates(tag: str, templates: Mapping[str, str]) -> Iterator[str]:
    """Images of other versions than *tag* in the templates, which are given by name."""
    for name, text in templates.items():
        named = set(re.findall(r"\b(v\d+\.\d+\.\d+\w*)-(?:cpu|cuda)", text))
        if others := named - {tag}:
            yield f"{name} has an image of {' '.join(sorted(others))}; `make changelog` sets it"


def mistakes_under_attack(outcomes: str) -> Iterator[str]:
    """The bounds broken by hostile clients, from the JSON of ``tests.hostile``."""
    for outcome in json.loads(outcomes):
        yield from (f"hostile clients, {outcome['name']}: {what}" for what in outcome["broken"])


def mistakes_once_installed(wheel: Path, *, is_attacked: bool) -> Iterator[str]:
    """Install *wheel* and its locked dependencies in an empty environment, and run it."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        _run(*pip, "--require-hashes", "-r", str(ROOT / "locks" / "image.txt"))
        _run(*pip, "--no-deps", str(wheel))
        _run(python, "-m", "pip", "check")
        shown = _run(f"{folder}/bin/llama-gguf", "--version").strip()
        _run(f"{folder}/bin/llama-gguf", "serve", "--help")
        if is_attacked:
            yield from mistakes_under_attack(_attack(f"{folder}/bin/llama-gguf"))
    if __version__ not in shown.split():
        yield f"the installed wheel reports {shown!r} instead of {__version__}"


def _attack(program: str) -> str:
    argv = (sys.executable, "-m", "tests.hostile", "--json", "--seconds", "5", "--gateway", program)
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode and not done.stdout:
        raise SystemExit("tests.hostile failed")
    return done.stdout


def _run(*argv: str) -> str:
    # In /, so that no module of the clone is imported.
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def mistakes(tag: str) -> Iterator[str]:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    fragments = sorted(p.name for p in (ROOT / "changes").glob("*.md") if p.name != "README.md")
    yield from mistakes_of_version(__version__, tag=tag, changelog=changelog, fragments=fragments)
    if tag:
        templates = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
        texts = {str(path.relative_to(ROOT)): path.read_text() for path in templates}
        yield from mistakes_of_templates(tag, texts)
    built = sorted(p.name for p in DIST.glob("llama_gguf*"))
    yield from mistakes_of_files(built, __version__)
    for name in built:
        path = DIST / name
        _run(sys.executable, "-m", "twine", "check", "--strict", str(path))
        if name.endswith(".tar.gz"):
            archived = _run("tar", "-tzf", str(path)).split()
            tracked = _run("git", "-C", str(ROOT), "ls-files").split()
            yield from mistakes_of_sdist(archived, tracked)
        elif name.endswith("-none-any.whl"):
            yield from mistakes_once_installed(path, is_attacked=bool(tag))


def notes() -> str:
    """The changes of this version, from CHANGELOG.md or else from the fragments."""
    described = section((ROOT / "CHANGELOG.md").read_text(), __version__)
    if described:
        return described
    towncrier = (sys.executable, "-m", "towncrier", "build", "--draft", "--dir", str(ROOT))
    return section(_run(*towncrier, "--version", __version__), __version__)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notes", action="store_true", help="only print the release notes")
    parser.add_argument("tag", nargs="?", default="", help="the planned tag of the release")
    arguments = parser.parse_args(argv)
    if arguments.notes:
        sys.stdout.write(notes() + "\n")
        return 0
    found = list(mistakes(arguments.tag))
    for mistake in found:
        sys.stderr.write(f"- {mistake}\n")
    if not found:
        sys.stdout.write(
            f"{__version__} can be released{' as ' * bool(arguments.tag)}{arguments.tag}.\n"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
