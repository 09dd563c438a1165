"""The workflows: pinned actions, only targets of the Makefile, minimal permissions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE: Final = (ROOT / "Makefile").read_text()


def name_of(workflow: Path) -> str:
    return workflow.stem


each: Final = pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)


def jobs(workflow: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(workflow.read_text())["jobs"])


def steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in jobs(workflow).values():
        yield from job["steps"]


def test_the_required_workflows_exist() -> None:
    assert {name_of(w) for w in WORKFLOWS} == {"ci", "cd", "release", "docs", "drift"}


@pytest.mark.processes
def test_files_other_than_python_pass_their_linters() -> None:
    """The linters are shellcheck, hadolint, zizmor and the schemas of workflows and Compose."""
    done = subprocess.run(
        ["make", "-s", "lint-files", f"VENV={sys.prefix}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@each
def test_every_action_is_pinned_by_commit_with_its_version(workflow: Path) -> None:
    for line in workflow.read_text().splitlines():
        if "uses:" in line:
            assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_an_action_has_one_version_in_all_workflows() -> None:
    used = {line for w in WORKFLOWS for line in re.findall(r"uses: (.*)", w.read_text())}

    assert len(used) == len({line.partition("@")[0] for line in used}), sorted(used)


@each
def test_workflows_run_only_make_targets(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    for step in steps(workflow):
        if "run" in step:
            command, *words = step["run"].removeprefix("sudo ").split()
            assert command == "make", step["run"]
            plain = re.sub(r'\w+=("[^"]*"|\S+)', "", " ".join(words)).split()
            assert plain
            assert set(plain) <= targets, step["run"]


@each
def test_a_workflow_has_no_permissions_and_a_job_only_explained_ones(workflow: Path) -> None:
    text = workflow.read_text()

    assert yaml.safe_load(text)["permissions"] == {}
    for name, job in jobs(workflow).items():
        assert isinstance(job["permissions"], dict), name
        assert job["timeout-minutes"] <= 90, name
    for line in re.findall(r"^ {6}[a-z-]+: (?:read|write).*", text, re.MULTILINE):
        assert re.search(r" # \w+", line), line


def test_ci_skips_no_test_for_a_missing_program() -> None:
    ci = jobs(ROOT / ".github" / "workflows" / "ci.yml")
    runs = [step["run"] for step in ci["test"]["steps"] if "run" in step]

    assert runs == ["sudo make test-tools", "make test PYTHON=python"]
    assert "make -s test-tools" in (ROOT / ".ci" / "run").read_text()
    installs = MAKEFILE.partition("\ntest-tools:")[2].partition("\n\n")[0]
    assert {"prometheus", "chromium"} <= set(re.findall(r"\w+", installs))


def test_the_tests_run_on_every_declared_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}

    ci = jobs(ROOT / ".github" / "workflows" / "ci.yml")

    assert set(ci["test"]["strategy"]["matrix"]["python"]) == declared


def dry(*argv: str, **environ: str) -> str:
    """What `make` would run."""
    done = subprocess.run(
        ["make", "-n", *argv],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("\\\n", "")


@pytest.mark.processes
def test_images_are_pushed_with_labels_sbom_and_provenance_in_lower_case() -> None:
    output = dry(
        "image-push", "IMAGE=ghcr.io/Owner/Name", "TAGS=cpu-amd64 v1-cpu-amd64", "REVISION=r"
    )

    assert "-t ghcr.io/owner/name:cpu-amd64 -t ghcr.io/owner/name:v1-cpu-amd64" in output
    for part in ("--sbom=true", "--provenance=mode=max", "--build-arg REVISION=r", "VERSION=0."):
        assert part in output


@pytest.mark.processes
def test_an_index_has_the_images_of_all_architectures() -> None:
    output = " ".join(dry("image-index", "IMAGE=i", "TAGS=cpu v1-cpu").split())

    assert "create -t i:cpu i:cpu-amd64 i:cpu-arm64 &&" in output
    assert "create -t i:v1-cpu i:v1-cpu-amd64 i:v1-cpu-arm64 &&" in output


def substituted(values: Mapping[str, Any], row: Mapping[str, Any], tag: str) -> dict[str, str]:
    """*values* with the expressions of the release workflow, for one row of its matrix."""
    known = {f"matrix.{name}": str(value) for name, value in row.items()}
    known |= {"github.ref_name": tag, "github.repository": "owner/name"}
    return {
        name: re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda m: known.get(m[1], ""), str(value))
        for name, value in values.items()
    }


def pushed_by_release(tag: str) -> set[str]:
    """The tags of the images that the release workflow pushes for the git tag *tag*."""
    release = ROOT / ".github" / "workflows" / "release.yml"
    pushed = set()
    for job in jobs(release).values():
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            environ = substituted(job.get("env", {}), row, tag)
            for step in job["steps"]:
                if step.get("run", "").startswith("make image-"):
                    output = dry(*step["run"].split()[1:], **environ)
                    pushed |= set(re.findall(r"-t [\w-]+:(\S+)", output))
    return pushed


@pytest.mark.processes
def test_a_release_moves_the_tags_without_a_version() -> None:
    pushed = pushed_by_release("v1.2.3")

    for kind in ("cpu", "cuda", "cuda-root"):
        assert {kind, f"{kind}-amd64", f"v1.2.3-{kind}", f"v1.2.3-{kind}-amd64"} <= pushed
    assert {"cpu-arm64", "v1.2.3-cpu-arm64"} <= pushed


@pytest.mark.processes
@pytest.mark.parametrize("tag", ["v1.2.3rc1", "v1.2.3a2", "v1.2.3b10"])
def test_a_prerelease_moves_no_other_tag_and_is_marked_as_one(tag: str) -> None:
    assert {t for t in pushed_by_release(tag) if not t.startswith(f"{tag}-")} == set()
    assert "--prerelease" in dry("github-release", TAG=tag)
    assert "--prerelease" not in dry("github-release", TAG="v1.2.3")


@pytest.mark.processes
def test_the_image_for_roots_volumes_runs_as_root() -> None:
    (row,) = (
        row
        for row in jobs(ROOT / ".github" / "workflows" / "release.yml")["image"]["strategy"][
            "matrix"
        ]["include"]
        if row["kind"] == "cuda-root"
    )

    assert f"--build-arg UID={row['uid']} " in dry("image-push", IMAGE_UID=str(row["uid"]))
    assert row["uid"] == 0
    assert "UID=" not in dry("image-push")


def test_pages_are_published_only_where_they_are_enabled() -> None:
    docs = jobs(ROOT / ".github" / "workflows" / "docs.yml")

    assert "github.event.repository.has_pages" in docs["publish"]["if"]
