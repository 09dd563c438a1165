"""Writes the results of `bench` to the terminal and to files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_gguf.cli import bench_facts
from llama_gguf.cli.terminal import echo, print_table
from llama_gguf.errors import UserError
from llama_gguf_bench import plots, tables
from llama_gguf_bench.page import page
from llama_gguf_bench.results import Circumstances

STDOUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """The contents of a report, for all output formats."""

    facts: Circumstances
    columns: tables.Row
    rows: list[tables.Row]
    notes: list[str]
    document: Mapping[str, Any]
    csv: str
    drawn: Mapping[str, plots.Draw]


def show(arguments: argparse.Namespace, report: Report) -> None:
    if STDOUT not in (arguments.json, arguments.csv):
        _print(report)
    if arguments.json:
        write(arguments.json, json.dumps(report.document) + "\n")
    if arguments.csv:
        write(arguments.csv, report.csv)
    if arguments.html:
        svgs = {title: plots.as_svg(draw, title) for title, draw in report.drawn.items()}
        text = page(
            report.facts, columns=report.columns, rows=report.rows, notes=report.notes, plots=svgs
        )
        write(arguments.html, text)
    if arguments.plot and report.drawn:
        plots.write_image(report.drawn, arguments.plot)


def _print(report: Report) -> None:
    echo("\n".join(bench_facts.heading(report.facts)) + "\n")
    print_table(report.columns, report.rows)
    if report.notes:
        echo("\n" + "\n".join(report.notes))


def write(path: str, text: str) -> None:
    if path == STDOUT:
        echo(text.rstrip("\n"))
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def check_outputs(arguments: argparse.Namespace) -> None:
    """Check the output files before the run, since afterwards its results would be lost.

    Raises:
        UserError: a file could not be written, or matplotlib is missing.
    """
    if arguments.json == arguments.csv == STDOUT:
        raise UserError("Only one of --json and --csv can be standard output.", 2)
    for path in (arguments.json, arguments.csv, arguments.html, arguments.plot):
        folder = os.path.dirname(path or "") or "."
        if path and path != STDOUT and not os.path.isdir(folder):
            raise UserError(f"{path} cannot be written: there is no directory {folder}", 2)
    if arguments.html or arguments.plot:
        plots.require()
