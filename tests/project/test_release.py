"""The mistakes that `make release-check` reports."""

from __future__ import annotations

import json
import re

import pytest
from hatchling.builders.sdist import SdistBuilder

from llama_gguf import __version__
from tests.project import release

CHANGELOG = """\
# Changes

<!-- towncrier release notes start -->

## 1.1.0 (2026-12-01)

### Added

- A second thing.

## 1.0.0 (2026-11-01)

- The first.
"""


def mistakes(version: str, *, tag: str = "", fragments: tuple[str, ...] = ()) -> list[str]:
    return list(
        release.mistakes_of_version(version, tag=tag, changelog=CHANGELOG, fragments=fragments)
    )


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    assert release.section(CHANGELOG, "1.1.0") == "### Added\n\n- A second thing."
    assert release.section(CHANGELOG, "1.0.0") == "- The first."
    assert release.section(CHANGELOG, "1.0") == ""


@pytest.mark.processes
def test_the_notes_before_a_release_are_made_of_the_fragments() -> None:
    notes = release.notes()

    assert re.search(r"^### Added$", notes, re.MULTILINE)
    assert "llama-gguf pull" in notes


def test_a_release_whose_tag_version_and_changelog_agree_has_no_mistakes() -> None:
    assert mistakes("1.1.0", tag="v1.1.0") == []


def test_between_releases_fragments_are_permitted() -> None:
    assert mistakes("1.2.0.dev0", fragments=("new.added.md",)) == []


@pytest.mark.parametrize(
    ("version", "tag", "fragments", "reason"),
    [
        ("1.1.0", "v1.0.0", (), "the tag is v1.0.0"),
        ("1.2.0.dev0", "v1.2.0.dev0", (), "not a release version"),
        ("1.2.0", "v1.2.0", (), "no section for 1.2.0"),
        ("1.1.0", "v1.1.0", ("left.added.md",), "left.added.md"),
        ("1.1.0", "", ("left.added.md",), "left.added.md"),
    ],
)
def test_an_inconsistent_release_is_rejected_with_reasons(
    version: str, tag: str, fragments: tuple[str, ...], reason: str
) -> None:
    assert reason in "\n".join(mistakes(version, tag=tag, fragments=fragments))


def test_a_leftover_in_dist_or_in_the_sdist_is_found() -> None:
    names = [f"llama_gguf_inference-{v}{end}" for v in ("1.0", "1.1") for end in (".tar.gz",)]
    assert "1.0.tar.gz" in "".join(release.mistakes_of_files(names, "1.1"))
    archived = ["p-1/PKG-INFO", "p-1/src/a.py", "p-1/data/api_keys.txt"]
    assert "data/api_keys.txt" in "".join(release.mistakes_of_sdist(archived, ["src/a.py"]))


def test_a_file_that_the_sdist_lacks_is_found() -> None:
    found = list(release.mistakes_of_sdist(["p-1/PKG-INFO", "p-1/a.py"], ["a.py", ".ci/run"]))

    assert found == ["the sdist lacks files that its tests may read: .ci/run"]


def test_the_sdist_has_what_its_tests_read() -> None:
    builder = SdistBuilder(str(release.ROOT))
    included = {file.relative_path for file in builder.recurse_included_files()}

    for name in (".ci/run", ".env.example", ".github/workflows/ci.yml", "compose.yaml", "Makefile"):
        assert name in included
    assert not {name for name in included if name.startswith((".venv/", ".cache/", "data/"))}


def test_a_template_with_an_image_of_another_version_is_found() -> None:
    templates = {"old": "image: x:v1.0.0-cuda-root", "new": "newTag: v1.1.0rc1-cuda", "none": "x"}

    found = list(release.mistakes_of_templates("v1.1.0rc1", templates))

    assert found == ["old has an image of v1.0.0; `make changelog` sets it"]


def test_a_bound_broken_by_hostile_clients_is_a_mistake() -> None:
    outcomes = [{"name": "storm", "broken": []}, {"name": "leavers", "broken": ["ms: 200"]}]

    assert list(release.mistakes_under_attack(json.dumps(outcomes))) == [
        "hostile clients, leavers: ms: 200"
    ]


def test_image_and_makefile_can_read_the_version() -> None:
    init = (release.ROOT / "src" / "llama_gguf" / "__init__.py").read_text()

    assert f'\n__version__ = "{__version__}"\n' in init
