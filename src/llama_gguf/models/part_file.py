"""An incomplete download: ``NAME.part``, and ``NAME.part.etag`` with the whole file's tag."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from llama_gguf.errors import UserError
from llama_gguf.files.remedies import remedy
from llama_gguf.models.download_files import put_in_place, take_lock


def part_bytes(final: str) -> int:
    """The number of bytes of *final* that an earlier attempt has left."""
    path = final + ".part"
    return os.path.getsize(path) if os.path.isfile(path) else 0


class PartFile:
    """``FINAL.part``, locked for this process inside the ``with`` block.

    The entity tag of the whole file is in ``FINAL.part.etag``. Only a strong tag guarantees the
    same bytes (RFC 9110 section 8.8.1), so a download without one cannot be resumed, and its part
    is deleted at the end of the block.

    Raises:
        UserError: another pull has locked it.
    """

    def __init__(self, final: str) -> None:
        self._final = final
        self.folder = os.path.dirname(final)
        self.path = final + ".part"
        self._etag_path = self.path + ".etag"
        self.size = 0
        """Bytes in the file; the offset of the next write."""
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
        # A part that cannot be resumed is useless. It is deleted before the lock is released.
        if not self._finished and not (self.size and self.etag):
            self.discard()
        os.close(self._descriptor)

    def _same_file(self) -> None:
        # Between open and lock, another pull may have renamed the file: it is the model now.
        held = os.fstat(self._descriptor)
        if not (os.path.exists(self.path) and os.path.samestat(held, os.stat(self.path))):
            raise UserError("Another pull of the same file has just ended. Run this command again.")

    @property
    def etag(self) -> str:
        """The strong entity tag of the whole file; empty if there is none."""
        try:
            with open(self._etag_path, encoding="latin-1") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def start_over(self, etag: str) -> None:
        """Discard all bytes; those written from now on are of the file that *etag* identifies."""
        with self._on_disk():
            os.ftruncate(self._descriptor, 0)
            self.size = 0
            with suppress(FileNotFoundError):
                os.unlink(self._etag_path)
            if etag.startswith('"'):  # W/"..." is weak
                with open(self._etag_path, "w", encoding="latin-1") as file:
                    file.write(etag)

    def write(self, chunk: bytes) -> None:
        # At an offset and not at the end: where locks do not work, two pulls of the same file
        # then write the same bytes to the same offsets.
        with self._on_disk():
            while chunk:
                written = os.pwrite(self._descriptor, chunk, self.size)
                self.size += written
                chunk = chunk[written:]

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Report an error of the disk as such: else the caller would take it for the network's."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}. {remedy(error, self.path)}"
            ) from None

    def discard(self) -> None:
        for path in (self.path, self._etag_path):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def finish(self) -> None:
        """Rename the part to the final file."""
        put_in_place(self.path, self._final)
        self._finished = True
        with suppress(FileNotFoundError):
            os.unlink(self._etag_path)
