"""The address of a Redis or Valkey server: SHARED_LIMITS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from llama_gguf.values import Value

if TYPE_CHECKING:
    from urllib.parse import SplitResult

FORMS: Final = (
    "redis://HOST:PORT/DATABASE, rediss://HOST:PORT/DATABASE for TLS, or "
    "unix:///PATH?db=DATABASE; with USER:PASSWORD@ or :PASSWORD@ before the host or path, in which "
    "/ ? # @ : and % are written as %2F %3F %23 %40 %3A %25"
)
DEFAULT_PORT: Final = 6379


class StoreAddress(Value, hidden=("password",)):
    """Where the server listens, and what it needs to know."""

    host: str
    port: int
    path: str
    """Of a unix socket; empty for TCP."""
    has_tls: bool
    database: int
    user: str
    password: str

    def __str__(self) -> str:
        """Without user and password."""
        if self.path:
            return f"unix:{self.path} (database {self.database})"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.has_tls else 'redis'}://{host}:{self.port}/{self.database}"

    @classmethod
    def of(cls, url: str) -> Self:
        """The address in *url*.

        Raises:
            ValueError: it has none of the ``FORMS``; the message contains nothing of it.
        """
        from urllib.parse import urlsplit  # noqa: PLC0415

        try:
            return cls._of(urlsplit(url))
        except ValueError:
            raise ValueError(FORMS) from None

    @classmethod
    def _of(cls, parts: SplitResult) -> Self:
        from urllib.parse import parse_qs, unquote  # noqa: PLC0415

        path, database, host = "", parts.path.removeprefix("/"), parts.hostname or ""
        if parts.scheme == "unix":
            path = unquote(parts.path)
            query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
            if host or len(path) < 2 or query.keys() - {"db"}:
                raise ValueError
            database = query.get("db", [""])[-1]
        elif parts.scheme not in ("redis", "rediss") or not host or parts.query:
            raise ValueError
        if parts.fragment or (database and not (database.isascii() and database.isdigit())):
            raise ValueError
        port = DEFAULT_PORT if parts.port is None else parts.port
        texts = [unquote(parts.username or ""), unquote(parts.password or ""), host, path]
        if not port or any(not text.isprintable() for text in texts) or len(database) > 9:
            raise ValueError
        return cls(
            host=host,
            port=port,
            path=path,
            has_tls=parts.scheme == "rediss",
            database=int(database or 0),
            user=texts[0],
            password=texts[1],
        )
