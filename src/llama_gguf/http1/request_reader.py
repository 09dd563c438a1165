"""Interprets a complete request head: its fields, its route, and what is forwarded of it."""

from __future__ import annotations

from typing import Final

from llama_gguf.config.schema import ClientLimits, RouteSettings
from llama_gguf.errors import HeadTooLarge
from llama_gguf.http1.fields import VIA_PSEUDONYM, check_head_size, read_request, request_rules
from llama_gguf.http1.local_response import Cors
from llama_gguf.http1.request import Request, RequestHead, unread
from llama_gguf.http1.routes import Router

FULL_LINES_PER_HEAD: Final = 8
"""The limit of a whole head: a request line and this many header lines of the greatest size."""


class RequestReader:
    """Interprets heads by the rules that its arguments give.

    Args:
        limits: on the size of a head.
        routes: which paths are served, and to which origins.
        keep_credentials: whether the client's credentials are forwarded to the engine.
    """

    def __init__(
        self, limits: ClientLimits, routes: RouteSettings, *, keep_credentials: bool
    ) -> None:
        self.cors = Cors(routes.cors_origins)
        self.unread = unread(self.cors.fields(None))
        """Stands for a request whose head could not be parsed."""
        self.router = Router(
            expose_all=routes.exposed_routes == "all",
            dashboard=routes.dashboard,
            web_ui=routes.web_ui,
        )
        self._max_fields = limits.max_headers
        self._max_line = limits.max_request_line_size
        self._max_field = limits.max_header_line_size
        self._rules = request_rules(
            keep_credentials=keep_credentials,
            keep_conversations=self.router.exposes_all,
        )

    def check_size(self, head: bytes) -> None:
        """Reject a head that is too large, complete or not.

        Raises:
            UriTooLong, HeadTooLarge: a line, or the head, exceeds its limit.
        """
        total = self._max_line + FULL_LINES_PER_HEAD * self._max_field
        check_head_size(head, line=self._max_line, field=self._max_field, total=total)

    def understand(self, head: RequestHead, cors: bytes) -> Request:
        """Determine the properties of the request with *head*.

        Raises:
            HeadTooLarge: it has too many fields.
            BadRequest: framing or Host is missing, double or malformed.
            ExpectationFailed: it has an expectation other than 100-continue.
        """
        if len(head.fields) > self._max_fields:
            raise HeadTooLarge("The request has too many header fields.", close=True)
        return Request(
            head,
            cors=cors,
            sorted_fields=read_request(head.fields, version=head.version, rules=self._rules),
            route=self.router.route(head.method, head.path),
            via=VIA_PSEUDONYM,
        )
