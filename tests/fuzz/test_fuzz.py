from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz.cases import SETTINGS, RequestCase, cases
from tests.fuzz.runner import failures
from tests.support.fakes import Rig
from tests.support.keys import KEY
from tests.support.messages import OK


def test_malformed_input_is_not_passed_on_and_all_resources_are_released(tmp_path: Path) -> None:
    for failure in failures(tmp_path, islice(cases(seed=1), 4000)):
        assert failure is None, failure


@pytest.mark.parametrize(
    "lines",
    [
        # RFC 9112 section 3: the LF ends a request line of HTTP/0.9, and " HTTP/1.1" ends a field.
        b"GET /v1/models\nX: HTTP/1.1\r\nHost: a",
        # RFC 9112 section 3: one space between the parts.
        b"GET  /v1/models HTTP/1.1\r\nHost: a",
        b"GET /v1/models  HTTP/1.1\r\nHost: a",
        # RFC 3986 section 2.1: two hexadecimal digits after a percent sign.
        b"GET /v1/models HTTP/1.1\r\nHost: a%",
    ],
)
def test_an_invalid_request_line_does_not_reach_the_engine(lines: bytes, tmp_path: Path) -> None:
    raw = lines + b"\r\nAuthorization: Bearer %b\r\n\r\n" % KEY.encode()

    with closing(Rig(tmp_path, **SETTINGS)) as rig:
        RequestCase((raw,), OK, "disconnect").check(rig)
