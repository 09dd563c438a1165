"""Write a support bundle: what is needed to find out from afar what is wrong.

A .tar.gz of texts: versions, settings, what `check` finds, the model's header, GPU, memory,
disk, mounts, ports, processes, the last logs, and what a running server says of itself. It is
made even when everything is broken, and then says what could not be found out. API keys, tokens
and passwords are taken out; look through it all the same before you send it on.

Examples:
  llama-gguf diagnose smollm2                into a file here; MODEL as for `serve`
  llama-gguf diagnose --output - > my.tar.gz through a pipe, out of a container, say
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from llama_gguf import __version__
from llama_gguf.cli import bundle, known_secrets
from llama_gguf.cli.context import Context, with_model
from llama_gguf.cli.guard import within
from llama_gguf.cli.terminal import say
from llama_gguf.core.masking import Masker
from llama_gguf.errors import UserError

USAGE = "%(prog)s [MODEL] [--output FILE] [--json] [--SETTING VALUE ...]"

DOES_WITHOUT_SETTINGS: Final = True
"""A setting that cannot be used is one of the things to find out."""
SECTION_SECONDS: Final = 30.0
MAX_SECTION_CHARACTERS: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    text: str
    trouble: str
    """Why there is nothing, or not all; empty when all is well."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model that is served")
    parser.add_argument(
        "--output",
        default="",
        metavar="FILE",
        help="the file to write; - for standard output [llama-gguf-TIME.tar.gz]",
    )
    parser.add_argument("--json", action="store_true", help="tell as JSON what is in it")


def run(arguments: argparse.Namespace, context: Context) -> int:
    now = datetime.now(UTC)
    context = replace(context, settings=with_model(context.settings, arguments.model))
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
        say(json.dumps(_fields(path, raw, sections)))
    else:
        _tell(path, raw, sections)
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
        text, trouble = text[:MAX_SECTION_CHARACTERS], trouble or "cut: it was too long"
    return Section(masker.mask(section.name), text, trouble)


def _summary(sections: list[Section], unread: list[str], now: datetime) -> str:
    lines = [
        f"llama-gguf {__version__}, {now.isoformat(timespec='seconds')}",
        "Secrets were taken out where they were known or looked like some. Look through it",
        "before you send it on: logs may hold what clients have sent.",
        "",
    ]
    lines += [f"could not be looked through for secrets: {what}" for what in unread]
    lines += [f"{s.name}: {_first_line(s.trouble) or 'collected'}" for s in sections]
    return "\n".join(lines)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def archive(sections: list[Section], now: datetime) -> bytes:
    """A .tar.gz with a text for each section."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for section in sections:
            text = section.text + (f"\n\nNot all: {section.trouble}" if section.trouble else "")
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
            "Name another place: --output FILE, or --output - for standard output."
        ) from None


def _write_out(raw: bytes) -> None:
    if sys.stdout.isatty():
        raise UserError("A terminal cannot show it: send standard output into a file.", 2)
    sys.stdout.buffer.write(raw)


def _fields(path: str, raw: bytes, sections: list[Section]) -> dict[str, object]:
    parts = [{"name": s.name, "ok": not s.trouble, "trouble": s.trouble} for s in sections]
    return {"path": os.path.abspath(path), "bytes": len(raw), "sections": parts}


def _tell(path: str, raw: bytes, sections: list[Section]) -> None:
    say(f"{path} ({len(raw)} bytes): {len(sections)} texts, without secrets.")
    for section in sections:
        if section.trouble:
            say(f"- {section.name} is not whole: {_first_line(section.trouble)}")
    say("Look through it before you send it on: logs may hold what clients have sent.")
