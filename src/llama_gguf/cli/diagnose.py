"""Write a support bundle: one file with all information for a remote analysis.

A .tar.gz of text files: versions, settings, findings of `check`, the model's header, GPU, memory,
disk, mounts, ports, processes, the latest logs, and the state of a running server. It is written
even if everything is broken, and then lists what could not be collected. API keys, tokens and
passwords are removed; nevertheless, review it before you send it.

Examples:
  llama-gguf diagnose smollm2                to a file in this directory; MODEL as for `serve`
  llama-gguf diagnose --output - > my.tar.gz to standard output, for example in a container
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from llama_gguf import __version__
from llama_gguf.cli import bundle, known_secrets
from llama_gguf.cli.arguments import add_model
from llama_gguf.cli.context import Context
from llama_gguf.cli.guard import within
from llama_gguf.cli.terminal import echo
from llama_gguf.config.masking import Masker
from llama_gguf.errors import UserError

USAGE = "%(prog)s [MODEL] [--output FILE] [--json] [--SETTING VALUE ...]"

RUNS_WITH_INVALID_SETTINGS: Final = True
"""`main` runs this command even with invalid settings, which the bundle then lists."""
SECTION_SECONDS: Final = 30.0
MAX_SECTION_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    text: str
    trouble: str
    """Why the section is empty or incomplete; empty if it is complete."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, "model that is served")
    parser.add_argument(
        "--output",
        default="",
        metavar="FILE",
        help="file to write; - for standard output [llama-gguf-TIME.tar.gz]",
    )
    parser.add_argument("--json", action="store_true", help="list its contents as JSON")


def run(arguments: argparse.Namespace, context: Context) -> int:
    now = datetime.now(UTC)
    secrets, unread = known_secrets.gather(context)
    masker = Masker(secrets)
    sections = [_masked(section, masker) for section in _collect(context)]
    summary = _summary(sections, [masker.mask(line) for line in unread], now)
    raw = archive([Section("summary", summary, ""), *sections], now)
    if arguments.output == "-":
        _write_out(raw)
        return 0
    path = arguments.output or f"llama-gguf-{now:%Y%m%dT%H%M%SZ}.tar.gz"
    _write(path, raw)
    if arguments.json:
        echo(json.dumps(_fields(path, raw, sections)))
    else:
        _show(path, raw, sections)
    return 0


def _collect(context: Context) -> Iterator[Section]:
    for name, collect in bundle.SECTIONS.items():
        yield _section(name, lambda collect=collect: collect(context))  # type: ignore[misc]
    listing = _section("logs", lambda: "\n".join(bundle.logs(context)))
    yield listing
    for number, path in enumerate(listing.text.splitlines(), start=1):
        name = f"logs/{number:02}-{os.path.basename(path)}.txt"
        yield _section(name, lambda path=path: bundle.tail(path))  # type: ignore[misc]


def _section(name: str, collect: Callable[[], str]) -> Section:
    text, trouble = within(SECTION_SECONDS, collect)
    return Section(name, text or "", trouble)


def _masked(section: Section, masker: Masker) -> Section:
    text, trouble = masker.mask(section.text), masker.mask(section.trouble)
    if len(text) > MAX_SECTION_CHARACTERS:
        text, trouble = text[:MAX_SECTION_CHARACTERS], trouble or "truncated: too long"
    return Section(masker.mask(section.name), text, trouble)


def _summary(sections: list[Section], unread: list[str], now: datetime) -> str:
    lines = [
        f"llama-gguf {__version__}, {now.isoformat(timespec='seconds')}",
        "Known secrets, and text that looks like one, were removed. Review this bundle before",
        "you send it: logs may contain data that clients sent.",
        "",
    ]
    lines += [f"could not be searched for secrets: {what}" for what in unread]
    lines += [f"{s.name}: {_first_line(s.trouble) or 'collected'}" for s in sections]
    return "\n".join(lines)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def archive(sections: list[Section], now: datetime) -> bytes:
    """A .tar.gz with one text file per section."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for section in sections:
            text = section.text + (f"\n\nIncomplete: {section.trouble}" if section.trouble else "")
            content = (text + "\n").encode("utf-8", "replace")
            name = section.name if section.name.endswith(".txt") else f"{section.name}.txt"
            member = tarfile.TarInfo(f"llama-gguf/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(now.timestamp())
            tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def _write(path: str, raw: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(raw)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}.\n"
            "Use --output FILE for another file, or --output - for standard output."
        ) from None


def _write_out(raw: bytes) -> None:
    if sys.stdout.isatty():
        raise UserError("The bundle is binary: redirect standard output to a file.", 2)
    sys.stdout.buffer.write(raw)


def _fields(path: str, raw: bytes, sections: list[Section]) -> dict[str, object]:
    parts = [{"name": s.name, "ok": not s.trouble, "trouble": s.trouble} for s in sections]
    return {"path": os.path.abspath(path), "bytes": len(raw), "sections": parts}


def _show(path: str, raw: bytes, sections: list[Section]) -> None:
    echo(f"{path} ({len(raw)} bytes): {len(sections)} sections, without secrets.")
    for section in sections:
        if section.trouble:
            echo(f"- {section.name} is incomplete: {_first_line(section.trouble)}")
    echo("Review it before you send it: logs may contain data that clients sent.")
