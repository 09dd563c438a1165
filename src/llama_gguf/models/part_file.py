"""An incomplete download: ``NAME.part``, and a file with the entity tag of the whole."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType

from llama_gguf.errors import UserError
from llama_gguf.models.landing import put_in_place, take_lock


def part_bytes(final: str) -> int:
    """How many bytes of *final* an earlier try has left."""
    path = final + ".part"
    return os.path.getsize(path) if os.path.isfile(path) else 0


class PartFile:
    """Holds ``FINAL.part``, for this process alone, from ``with`` to its end.

    The entity tag of what it is a part of is kept in ``FINAL.part.etag``. Only a strong tag
    promises the same bytes (RFC 9110 section 8.8.1), so without one there is no going on.

    Raises:
        UserError: another pull holds it.
    """

    def __init__(self, final: str) -> None:
        self._final = final
        self.folder = os.path.dirname(final)
        self.path = final + ".part"
        self._etag_path = self.path + ".etag"
        self.size = 0
        """Bytes that are there; where the next one goes."""
        self._finished = False

    def __enter__(self) -> PartFile:
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            take_lock(self._descriptor, os.path.basename(self._final))
            self._same_file()
        except UserError:
            os.close(self._descriptor)
            raise
        self.size = os.fstat(self._descriptor).st_size
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What cannot be gone on with is of no use to anybody. It goes before the lock does.
        if not self._finished and not (self.size and self.etag):
            self.discard()
        os.close(self._descriptor)

    def _same_file(self) -> None:
        # Between open and lock another pull may have renamed the file: it is the model now.
        held = os.fstat(self._descriptor)
        if not (os.path.exists(self.path) and os.path.samestat(held, os.stat(self.path))):
            raise UserError("Another pull of the same file has just ended. Run this command again.")

    @property
    def etag(self) -> str:
        """The strong entity tag of what this is a part of; empty if there is none."""
        try:
            with open(self._etag_path, encoding="latin-1") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def start_over(self, etag: str) -> None:
        """Drop every byte; what comes now is a part of what *etag* names."""
        os.ftruncate(self._descriptor, 0)
        self.size = 0
        with suppress(FileNotFoundError):
            os.unlink(self._etag_path)
        if etag.startswith('"'):  # W/"..." is weak
            with open(self._etag_path, "w", encoding="latin-1") as file:
                file.write(etag)

    def write(self, chunk: bytes) -> None:
        # At its place and not at the end: where locks do not work, two pulls of the same
        # thing then write the same bytes to the same places.
        try:
            while chunk:
                written = os.pwrite(self._descriptor, chunk, self.size)
                self.size += written
                chunk = chunk[written:]
        except OSError as error:  # of the disk's, not to be taken for one of the network's
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from None

    def discard(self) -> None:
        for path in (self.path, self._etag_path):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def finish(self) -> None:
        """Make it the model."""
        put_in_place(self.path, self._final)
        self._finished = True
        with suppress(FileNotFoundError):
            os.unlink(self._etag_path)
