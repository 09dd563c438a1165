"""Fetch a model into MODELS_DIR, with a progress bar.

Examples:
  llama-gguf pull smollm2                   a known name, see --list
  llama-gguf pull hf:OWNER/NAME:Q4_K_M      from a hub, by quantisation; HF_TOKEN is the token
  llama-gguf pull hf:OWNER/NAME/FILE.gguf   from a hub, by file; of a split model, any part
  llama-gguf pull OWNER/NAME:Q4_K_M         the same without a prefix, or with hf.co/
  llama-gguf pull https://HOST/FILE.gguf    from a URL

The same command resumes an interrupted download from a hub or a URL.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from llama_gguf.cli.context import Context
from llama_gguf.cli.terminal import Meter, download_meter, echo, print_table
from llama_gguf.config.settings import flag
from llama_gguf.errors import UserError
from llama_gguf.files.sizes import size_text
from llama_gguf.models.catalogue import CATALOGUE
from llama_gguf.models.download_files import Pulled
from llama_gguf.models.model_file import kind_at, not_a_model
from llama_gguf.models.progress import MeterFactory
from llama_gguf.models.pull import is_there, pull


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="model to fetch [MODEL_NAME]")
    parser.add_argument("--list", action="store_true", help="list the known names")
    parser.add_argument("--force", action="store_true", help="fetch it even if it is present")
    parser.add_argument(
        "--sha256", default="", metavar="HEX", help="expected SHA-256 of a URL's file"
    )
    parser.add_argument("--name", default="", metavar="FILE.gguf", help="name for a URL's file")
    parser.add_argument("--quiet", action="store_true", help="print only the path")
    # For `serve`, which fetches with this command; the advice would be to run `serve`.
    parser.add_argument("--no-advice", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--progress-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, context: Context) -> int:
    """Fetch the model that *arguments* name, or list the known names."""
    if arguments.list:
        _list(context.settings.model.models_dir, as_json=arguments.json)
        return 0
    wanted = arguments.model or context.settings.model.model_name
    if not wanted:
        raise UserError("Specify a model, as in `llama-gguf pull smollm2`, or use --list.", 2)
    meter_factory: MeterFactory = _no_meter if arguments.quiet else download_meter
    if arguments.progress_fd is not None:
        from llama_gguf.cli import output
        from llama_gguf.supervisor.fetch import reporting

        output.take_over()  # as in `serve`, whose start waits for the model
        meter_factory = reporting(arguments.progress_fd, meter_factory)
    pulled = pull(
        wanted,
        context.settings.model.models_dir,
        meter_factory=meter_factory,
        environ=context.environ,
        name=arguments.name,
        sha256=arguments.sha256,
        force=arguments.force,
    )
    if arguments.json:
        echo(json.dumps(_fields(pulled)))
    elif arguments.quiet:
        echo(pulled.path)
    else:
        _show(pulled, wanted, context=context, advises=not arguments.no_advice)
    return 0


@contextmanager
def _no_meter(_label: str) -> Iterator[Meter]:
    yield lambda done, total: None


def _list(models_dir: str, *, as_json: bool) -> None:
    if as_json:
        echo(
            json.dumps(
                [
                    {"name": e.name, "file": e.file, "bytes": e.file_bytes, "licence": e.licence}
                    for e in CATALOGUE.values()
                ]
            )
        )
        return
    print_table(
        ("NAME", "MODEL", "SIZE", "LICENCE", "FETCHED"),
        [
            (
                e.name,
                e.title,
                size_text(e.file_bytes),
                e.licence,
                "yes" if is_there(e, models_dir) else "no",
            )
            for e in CATALOGUE.values()
        ],
    )


def _fields(pulled: Pulled) -> dict[str, str | int]:
    fields: dict[str, str | int] = {
        "path": pulled.path,
        "bytes": pulled.bytes,
        "fetched": pulled.fetched,
    }
    if pulled.projector:
        fields["projector"] = pulled.projector
    return fields | ({"sha256": pulled.sha256} if pulled.sha256 else {})


def _show(pulled: Pulled, wanted: str, *, context: Context, advises: bool) -> None:
    name = wanted if wanted in CATALOGUE else os.path.basename(pulled.path)
    folder = _folder_flags(context)
    there = "fetched and checked" if pulled.fetched else "already present; --force fetches it again"
    echo(f"{pulled.path} ({size_text(pulled.bytes)}): {there}.")
    kind = kind_at(pulled.path)
    if kind is not None:
        echo(not_a_model(pulled.path, kind))
    elif advises:
        echo(f"Serve it: llama-gguf serve {shlex.quote(name)}{folder}")
    if pulled.projector:
        file = os.path.join(os.path.dirname(pulled.path), pulled.projector.rpartition("/")[2])
        echo(
            "Its projector, for images or audio, is another file:\n"
            f"  llama-gguf pull {shlex.quote(pulled.projector)}{folder}\n"
            f"Then serve it with --extra-args {shlex.quote(f'--mmproj {shlex.quote(file)}')}"
        )


def _folder_flags(context: Context) -> str:
    """The flags for the same folder, unless the environment or the default has it."""
    places = {name: context.sources[name] for name in ("data_dir", "models_dir")}
    names = {name for name, source in places.items() if source == "flag"}
    in_files = set(places.values()) & set(context.files)
    if "config-file" in in_files and context.sources["config_file"] == "flag":
        names.add("config_file")
    flags = [
        f" {flag(name)} {shlex.quote(str(context.settings.value(name)))}" for name in sorted(names)
    ]
    if "env-file" in in_files:
        flags.append(f" --env-file {shlex.quote(context.files['env-file'])}")
    return "".join(flags)
