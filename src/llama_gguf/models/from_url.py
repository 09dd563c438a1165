"""Downloads a model from a URL.

Resumes: after an interruption, within a run (``MAX_BREAKS``) and in the next one, if the server
sends a strong entity tag. Verifies: the GGUF header and the size that follows from it, and the
SHA-256 if one is given. Every failure is a ``UserError``.

A range is requested with If-Range (RFC 9110 section 13.1.5): if the file on the server has
changed, the response is the whole new file with status 200, and not a part of it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from types import MappingProxyType
from typing import IO, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
    proxy_bypass,
)

from llama_gguf import __version__
from llama_gguf.errors import UserError
from llama_gguf.files.sizes import size_text
from llama_gguf.models.download_files import check_model, check_space, sha256_of
from llama_gguf.models.gguf import check_start
from llama_gguf.models.gguf_cursor import GgufError
from llama_gguf.models.part_file import PartFile
from llama_gguf.models.progress import Meter
from llama_gguf.models.urls import UNTRUSTED, is_untrusted, shown

SILENCE_SECONDS: Final = 60.0
"""The connection counts as broken after this time without data."""
MAX_BREAKS: Final = 10
"""Interruptions after which a pull fails; one without any progress is enough to fail at once."""
_CHUNK_BYTES: Final = 1 << 18
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_SAFE: Final = "/%!$&'()*+,;=:@~?"
_PAGE: Final = re.compile(r"/blob/")
"""In the URLs of pages about a file, on model hubs and other hosts of repositories."""


class _Cut(OSError):
    """The response ended before its length."""


@dataclass(frozen=True, slots=True)
class _Source:
    url: str
    headers: Mapping[str, str]
    opener: OpenerDirector
    proxy: str
    """Its URL; empty without one."""

    def open(self, request: Request) -> HTTPResponse:
        response: HTTPResponse = self.opener.open(request, timeout=SILENCE_SECONDS)
        return response

    def request(self) -> Request:
        """A request for the whole file; credentials are sent to this host only."""
        parts = urlsplit(self.url)
        login, _, host = parts.netloc.rpartition("@")
        path = quote(parts.path or "/", safe=_SAFE)
        query = quote(parts.query, safe=_SAFE)
        request = Request(  # noqa: S310  # the opener knows no other schemes than http and https
            urlunsplit((parts.scheme, host, path, query, "")),
            headers={"User-Agent": f"llama-gguf/{__version__}", "Accept-Encoding": "identity"},
        )
        if login:
            basic = base64.b64encode(unquote(login).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        return request


class _Redirects(HTTPRedirectHandler):
    """Keeps the credentials on redirects within a host.

    A hub redirects from the old name of a repository to the new one, which requires the login too.
    """

    def redirect_request(  # noqa: PLR0917  # the signature of the base class
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and (new.type, new.host) == (req.type, req.host):
            for name, value in req.unredirected_hdrs.items():
                new.add_unredirected_header(name, value)
        return new


class _Proxies(ProxyHandler):
    """The proxies in *environ*, as curl, pip and huggingface_hub determine them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        found = {}
        for scheme in ("http", "https"):
            names = f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"
            found[scheme] = next(filter(None, (environ.get(n, "").strip() for n in names)), "")
        self._by_scheme = {scheme: proxy for scheme, proxy in found.items() if proxy}
        self._exceptions = {"no": environ.get("no_proxy") or environ.get("NO_PROXY", "")}
        super().__init__(self._by_scheme)

    def proxy_open(self, req: Request, proxy: str, type: str) -> HTTPResponse | None:
        if proxy_bypass(req.host, self._exceptions):
            return None
        response: HTTPResponse | None = super().proxy_open(req, proxy, type)
        return response

    def needed_for(self, url: str) -> str:
        """The proxy for *url*; empty if there is none, or no_proxy has its host.

        Raises:
            UserError: it cannot be used.
        """
        parts = urlsplit(url)
        host, proxy = parts.netloc.rpartition("@")[2], self._by_scheme.get(parts.scheme, "")
        if not proxy or proxy_bypass(host, self._exceptions):
            return ""
        kind, separator, _ = proxy.partition("://")
        if separator and kind.lower() not in {"http", "https"}:
            raise UserError(
                f"The proxy {shown(proxy)} cannot be used: only HTTP proxies can. Set "
                f"{parts.scheme}_proxy to one, or no_proxy to reach {host} without a proxy."
            )
        return proxy


def fetch(
    url: str,
    final: str,
    *,
    meter: Meter,
    environ: Mapping[str, str],
    sha256: str = "",
    headers: Mapping[str, str] = _NO_HEADERS,
) -> None:
    """Download *url* to *final*, which exists only once it is complete and verified.

    After an interruption, the received bytes are kept in ``FINAL.part`` if the download can be
    resumed, by this call or the next. Bytes with the wrong hash or format are deleted.

    Args:
        url: http or https.
        final: path of the model file to create.
        meter: called with the bytes received so far.
        environ: for proxy variables.
        sha256: the expected hash, in lower case; empty to accept any.
        headers: such as credentials; sent only to the host of *url*.

    Raises:
        UserError: there is no space, the server cannot be reached or refuses the request, the
            connection broke too often, the content is not a model or has another hash, or another
            pull of the same file is running.
    """
    proxies = _Proxies(environ)
    source = _Source(url, headers, _opener(proxies), proxies.needed_for(url))
    with PartFile(final) as part:
        _receive_all(source, part=part, meter=meter)
        _verify(url, part, sha256=sha256)
        part.finish()


def _receive_all(source: _Source, *, part: PartFile, meter: Meter) -> None:
    for retries in reversed(range(MAX_BREAKS)):
        before = part.size
        try:
            return _receive(source, part=part, meter=meter)
        except HTTPError as error:
            with error:
                raise UserError(_refused(source.url, error.code)) from None
        except (OSError, HTTPException) as error:
            if not part.etag or part.size <= before or not retries:
                raise UserError(_broken(source, error, part)) from None


def _receive(source: _Source, *, part: PartFile, meter: Meter) -> None:
    response = _request_rest(source, part)
    if response is None:
        return
    with response:
        total = _begin(response, part)
        if total is not None:
            check_space(part.folder, total - part.size)
        meter(part.size, total)
        while chunk := response.read(_CHUNK_BYTES):
            if part.size == 0:
                _check_first(source.url, chunk, part)
            part.write(chunk)
            meter(part.size, total)
    if total is not None and part.size != total:
        raise _Cut(f"it ended after {part.size} of {total} bytes")


def _request_rest(source: _Source, part: PartFile) -> HTTPResponse | None:
    """Request the bytes that *part* lacks; None if it is complete.

    1. There is nothing to resume, or no tag to resume it by: the whole file.
    2. The range after the bytes in *part*; if the file has changed, the server sends the whole.
    3. The server has no bytes after them (416), and the file is exactly as long: complete.
    4. It is not as long: the whole file.
    """
    request = source.request()
    if not part.size or not part.etag:
        return source.open(request)  # 1
    request.add_header("Range", f"bytes={part.size}-")
    request.add_header("If-Range", part.etag)
    try:
        return source.open(request)  # 2
    except HTTPError as error:
        if error.code != 416:
            raise
        with error:
            if error.headers.get("Content-Range") == f"bytes */{part.size}":
                return None  # 3
        part.start_over("")
        return source.open(source.request())  # 4


def _begin(response: HTTPResponse, part: PartFile) -> int | None:
    """Prepare *part* for the body of *response*; return the size of the whole file, if known."""
    if response.status != 206:
        part.start_over(response.headers.get("ETag", ""))
        return response.length  # None with chunked coding
    span = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)",
        response.headers.get("Content-Range", ""),
    )
    if span is None or int(span[1]) != part.size:
        part.start_over("")
        raise _Cut("the server sent a different range than requested")
    return None if span[2] == "*" else int(span[2])


def _check_first(url: str, chunk: bytes, part: PartFile) -> None:
    try:
        check_start(chunk[:64])
    except GgufError as error:
        part.discard()
        advice = (
            "\nThis is the URL of a page about the file; that of the file has /resolve/ or /raw/ "
            "instead of /blob/."
        )
        raise UserError(
            f"The content of {shown(url)} is {error}.{advice if _PAGE.search(url) else ''}"
        ) from None


def _verify(url: str, part: PartFile, *, sha256: str) -> None:
    try:
        check_model(part.path, shown(url))
        if sha256 and (found := sha256_of(part.path)) != sha256:
            raise UserError(
                f"The content of {shown(url)} is not the expected file:\n"
                f"its SHA-256 is {found}\ninstead of      {sha256}."
            )
    except UserError:
        part.discard()
        raise


def _opener(proxies: _Proxies) -> OpenerDirector:
    """An opener for http and https only, so that no redirect leads to another scheme."""
    opener = OpenerDirector()
    for handler in (
        proxies,
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        _Redirects(),
        HTTPErrorProcessor(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _refused(url: str, code: int) -> str:
    if code in (401, 403, 407):
        return f"{shown(url)} requires a login (status {code})."
    if code in (404, 410):
        return f"{shown(url)} does not exist (status {code}). Check the spelling."
    return f"{shown(url)} cannot be fetched (status {code}). Try again later."


def _broken(source: _Source, error: Exception, part: PartFile) -> str:
    url = source.url
    if isinstance(error, URLError):
        reason = getattr(error.reason, "strerror", None) or error.reason
        way = f" through the proxy {shown(source.proxy)}" if source.proxy else ""
        message = f"{shown(url)} cannot be reached{way}: {reason}."
        if is_untrusted(error.reason):
            message += f"\n{UNTRUSTED}"
    else:
        message = (
            f"The download of {shown(url)} was interrupted: {str(error) or type(error).__name__}."
        )
    if part.size and part.etag:
        message += f"\n{size_text(part.size)} are kept: the same command resumes the download."
    return message
