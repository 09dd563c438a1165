from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from llama_gguf.cli.bench_report import Report, check_outputs, show
from llama_gguf.errors import UserError
from llama_gguf_bench import plots, tables
from llama_gguf_bench.summary import summarise
from tests.support.bench_runs import CIRCUMSTANCES, level

FOUND = [(level(seconds=5), summarise(level(seconds=5), {}))]
REPORT = Report(
    CIRCUMSTANCES,
    tables.columns(FOUND),
    tables.rows(FOUND),
    ["a note"],
    {"format": "x"},
    tables.as_csv(FOUND),
    plots.plots_of(FOUND),
)


def flags(**given: str | None) -> argparse.Namespace:
    return argparse.Namespace(**{"json": None, "csv": None, "html": None, "plot": None, **given})


def test_a_report_has_a_heading_a_table_and_notes(capsys: pytest.CaptureFixture[str]) -> None:
    show(flags(), REPORT)

    heading, table, notes = capsys.readouterr().out.split("\n\n")
    assert heading.startswith("http://127.0.0.1:8000 · Tiny <1B>")
    assert "requests counted" in table
    assert notes == "a note\n"


def test_nothing_is_drawn_without_counted_requests(tmp_path: Path) -> None:
    empty = dataclasses.replace(REPORT, drawn={})

    show(flags(plot=str(tmp_path / "x.png"), html=str(tmp_path / "x.html")), empty)

    assert not (tmp_path / "x.png").exists()
    assert "<svg" not in (tmp_path / "x.html").read_text()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        show(flags(json=str(tmp_path)), REPORT)


def test_a_missing_output_folder_is_reported_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no directory /nowhere"):
        check_outputs(flags(csv="/nowhere/x.csv"))

    check_outputs(flags(csv=str(tmp_path / "x.csv"), json="-"))
