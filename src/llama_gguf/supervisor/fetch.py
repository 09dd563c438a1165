"""`pull` as a child of `serve`: it can be stopped at any time, and reports its progress.

It reports through a separate pipe, in lines ``DONE TOTAL`` (bytes). Its standard output and error
remain for the user: a progress bar on a terminal, lines in a log.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from llama_gguf.config import settings as settings_module
from llama_gguf.config.schema import ModelSettings
from llama_gguf.errors import UserError
from llama_gguf.files.sizes import size_text
from llama_gguf.models.progress import Meter, MeterFactory
from llama_gguf.supervisor.child import own_command, spawn

OnProgress = Callable[[str, float | None], None]

END_SECONDS: Final = 5.0
REPORT_SECONDS: Final = 0.5
LAST_LINES_SECONDS: Final = 1.0


async def fetch(
    settings: ModelSettings, environ: Mapping[str, str], on_progress: OnProgress
) -> None:
    """Run `pull` for MODEL_NAME.

    Args:
        settings: MODEL_NAME and MODELS_DIR.
        environ: for the child.
        on_progress: called with the progress as text and as a fraction, None if unknown.

    Raises:
        UserError: it failed; the child has reported the reason.
    """
    ours, theirs = os.pipe()
    try:
        argv = own_command("pull", "--no-advice", "--progress-fd", str(theirs))
        child = await spawn(
            "pull", argv, environ=_environ_of_pull(settings, environ), pass_fds=[theirs]
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    reading = asyncio.get_running_loop().create_task(_read_progress(ours, on_progress))
    try:
        status = await child.wait()
    except asyncio.CancelledError:
        await child.interrupt(within_seconds=END_SECONDS)
        raise
    finally:
        await asyncio.wait([reading], timeout=LAST_LINES_SECONDS)
        reading.cancel()
    if status:
        raise UserError("the model could not be fetched; see the reason above.")


def _environ_of_pull(settings: ModelSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* with the settings that matter. A URL may contain a login, so not in argv."""
    is_default = settings.models_dir == f"{settings.data_dir}/models"
    ours = {settings_module.variable(name) for name in settings_module.SETTINGS}
    return {name: value for name, value in environ.items() if name not in ours} | {
        "MODEL_NAME": settings.model_name,
        "DATA_DIR": settings.data_dir,
        # Only if it is set: errors name the setting that is to be changed.
        "MODELS_DIR": "" if is_default else settings.models_dir,
    }


async def _read_progress(descriptor: int, on_progress: OnProgress) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        async for line in reader:
            on_progress(*progress_in(line))
    finally:
        transport.close()


def progress_in(line: bytes) -> tuple[str, float | None]:
    """The progress in one line of the child's, as text and as a fraction."""
    done, total = map(int, line.split())
    if not total:
        return f"fetching the model: {size_text(done)}", None
    return f"fetching the model: {100 * done // total} % of {size_text(total)}", done / total


def reporting(descriptor: int, meter_factory: MeterFactory) -> MeterFactory:
    """*meter_factory*, with meters that also write to *descriptor*."""

    @contextmanager
    def factory(label: str) -> Iterator[Meter]:
        with meter_factory(label) as shown:
            reported_at = -REPORT_SECONDS

            def report(done: int, total: int | None) -> None:
                nonlocal reported_at
                shown(done, total)
                now = time.monotonic()
                if now - reported_at >= REPORT_SECONDS or done == total:
                    reported_at = now
                    with suppress(OSError):  # the reader has exited; the download continues
                        os.write(descriptor, b"%d %d\n" % (done, total or 0))

            yield report

    return factory
