"""Requests that two readers could read in two ways: refused, and the end of their connection."""

from __future__ import annotations

import json

import pytest

from tests.gateway.test_client_requests import BODY, CHUNKED, LENGTH, post
from tests.support.fakes import Rig
from tests.support.messages import OK, bytewise, chunk, code_of, request

SMUGGLED = request("GET", "/v1/health")

# Each is followed by a whole request, which must never be taken for one.
HOSTILE = {
    "length and chunked": (400, post(LENGTH, CHUNKED)),
    "chunked and length": (400, post(CHUNKED, LENGTH, body=chunk(BODY) + b"0\r\n\r\n")),
    "two lengths": (400, post(LENGTH, "Content-Length: 1")),
    "two equal lengths": (400, post(LENGTH, LENGTH)),
    "two lengths in one field": (400, post("Content-Length: 5, 5", body=b"12345")),
    "two lengths with a space": (400, post("Content-Length: 5 5", body=b"12345")),
    "a length with a plus": (400, post("Content-Length: +5", body=b"12345")),
    "a length with a minus": (400, post("Content-Length: -5", body=b"12345")),
    "a length with an underscore": (400, post("Content-Length: 1_0", body=b"1234567890")),
    "a hexadecimal length": (400, post("Content-Length: 0x5", body=b"12345")),
    "a length with a fraction": (400, post("Content-Length: 5.0", body=b"12345")),
    "a huge length": (400, post("Content-Length: 99999999999999999999999")),
    "a length beyond 64 bits": (400, post(f"Content-Length: {2**64 + 5}", body=b"12345")),
    "an empty length": (400, post("Content-Length:")),
    # Behind a good request it differs from that one's head in nothing but the digits.
    "an empty length behind a space": (400, post("Content-Length: ")),
    "a length of spaces": (400, post("Content-Length:   ")),
    "a length of digits of another script": (400, post("Content-Length: \xb2")),
    "chunked twice": (400, post(CHUNKED, CHUNKED)),
    "chunked, chunked": (400, post("Transfer-Encoding: chunked, chunked")),
    "chunked and identity": (400, post("Transfer-Encoding: chunked, identity")),
    "identity": (400, post("Transfer-Encoding: identity")),
    "gzip before chunked": (400, post("Transfer-Encoding: gzip, chunked")),
    "chunked in quotes": (400, post('Transfer-Encoding: "chunked"')),
    "xchunked": (400, post("Transfer-Encoding: xchunked")),
    "chunked with a tail": (400, post("Transfer-Encoding: chunked;q=1")),
    "chunked with a vertical tab": (400, post("Transfer-Encoding: \x0bchunked")),
    "chunked with a vertical tab behind it": (400, post("Transfer-Encoding: chunked\x0b")),
    "chunked with a form feed behind a space": (400, post("Transfer-Encoding: chunked \x0c")),
    "xchunked with a tab": (400, post("Transfer-Encoding: xchunked\t")),
    "chunked, a tab and more": (400, post("Transfer-Encoding: chunked\tx")),
    "chunked, a space and more": (400, post("Transfer-Encoding: chunked x")),
    "gzip before chunked with a tab": (400, post("Transfer-Encoding: gzip, chunked\t")),
    "chunked twice with tabs": (400, post(CHUNKED + "\t", CHUNKED + "\t")),
    "chunked with a tab and a length": (400, post(CHUNKED + "\t", LENGTH)),
    "a length and chunked with a tab": (400, post(LENGTH, CHUNKED + " \t")),
    "chunked with a tab, folded": (400, post(CHUNKED + "\t\r\n x")),
    "chunked with a tab and a line of spaces": (400, post(CHUNKED + "\t\r\n \t")),
    "chunked with a tab in HTTP/1.0": (400, post(CHUNKED + "\t", version="1.0")),
    "chunked with a tab and a bare LF": (400, post(CHUNKED + "\t\n")),
    "chunked with a tab and a bare CR": (400, post(CHUNKED + "\t\r")),
    "a space before the colon, a tab behind": (400, post("Transfer-Encoding : chunked\t")),
    "a tab behind chunked that is another field's": (
        400,
        post(LENGTH, "X: a\r\n " + CHUNKED + "\t"),
    ),
    "no coding at all": (400, post("Transfer-Encoding:")),
    "chunked in HTTP/1.0": (400, post(CHUNKED, version="1.0")),
    "HTTP/0.9": (400, post(LENGTH, version="0.9")),
    "HTTP/1.2": (400, post(LENGTH, version="1.2")),
    "HTTP/2.0": (400, post(LENGTH, version="2.0")),
    "HTTP/9.9": (400, post(LENGTH, version="9.9")),
    "HTTP/1.10": (400, post(LENGTH, version="1.10")),
    "no version": (400, b"GET /v1/health\r\n\r\n"),
    "HTTP/2's preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a version in small letters": (400, b"GET /v1/health http/1.1\r\nHost: a\r\n\r\n"),
    "a space behind the version": (400, b"GET /v1/health HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "a bare CR in a value": (400, post(LENGTH, "X: a\rb")),
    "a bare LF in a value": (400, post(LENGTH, "X: a\nContent-Length: 99")),
    "a bare LF behind the request line": (400, b"GET /v1/health HTTP/1.1\nHost: a\r\n\r\n"),
    "a NUL in a value": (400, post(LENGTH, "X: a\0b")),
    "a NUL in a name": (400, post(LENGTH, "X\0Y: a")),
    "a NUL in the target": (400, b"GET /v1/mo\0dels HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a folded field": (400, post(LENGTH, "X: a\r\n b")),
    "a field folded with a tab": (400, post(LENGTH, "X: a\r\n\tb")),
    "a folded first field": (400, b"GET /v1/health HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n"),
    "a space before the colon": (400, post(f"Content-Length : {len(BODY)}")),
    "a tab before the colon": (400, post("Transfer-Encoding\t: chunked")),
    "no colon": (400, post(LENGTH, "nonsense")),
    "no name": (400, post(LENGTH, ": nonsense")),
    "a name with an obs-text byte": (400, post(LENGTH, "X\xe9: y")),
    "no Host": (400, post(LENGTH, host=None)),
    "two Hosts": (400, post(LENGTH, "Host: b")),
    "two equal Hosts": (400, post(LENGTH, "Host: a")),
    "two Hosts in HTTP/1.0": (400, post(LENGTH, "Host: b", version="1.0")),
    "a Host with a path": (400, post(LENGTH, host="Host: a/b")),
    "a Host with a user": (400, post(LENGTH, host="Host: a@b")),
    "a Host with a space": (400, post(LENGTH, host="Host: a b")),
    "a Host with a bad port": (400, post(LENGTH, host="Host: a:b")),
    "two Hosts in one field": (400, post(LENGTH, host="Host: a:1:2")),
    "a method in small letters": (400, b"get /v1/health HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an unknown method": (400, b"BREW /v1/health HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (405, b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"),
    "CONNECT with a path": (405, b"CONNECT /v1/health HTTP/1.1\r\nHost: a\r\n\r\n"),
    "TRACE": (405, request("TRACE", "/v1/health")),
    "TRACE with a Max-Forwards": (405, request("TRACE", "/v1/health", "Max-Forwards: 0")),
    "GET *": (400, request("GET", "*")),
    "a target without a slash": (400, request("GET", "v1/models")),
    "a target of another scheme": (400, request("GET", "ftp://a/v1/health")),
    "a target with a user": (400, request("GET", "http://u@a/v1/health")),
    "a target without authority": (400, request("GET", "http:///v1/health")),
    "obs-text in the target": (400, request("GET", "/v1/mod\xe9ls")),
    "obs-text in the query": (400, request("GET", "/v1/health?\xe9")),
    "an unknown expectation": (417, post(LENGTH, "Expect: the-best")),
    "two expectations": (417, post(LENGTH, "Expect: 100-continue, x")),
    # RTSP and ICE are other protocols that llhttp happens to know.
    "ICE": (400, b"SOURCE /v1/health ICE/1.0\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "raw"), HOSTILE.values(), ids=HOSTILE.keys())
def test_it_is_refused_behind_a_good_request_as_well(status: int, raw: bytes, rig: Rig) -> None:
    rig.respond_with(OK)
    for before in (post(LENGTH), post(body=b""), post(CHUNKED, body=chunk(BODY) + b"0\r\n\r\n")):
        rig.requests.clear()
        client = rig.send_request(before, raw + SMUGGLED)

        assert [a.status for a in client.responses][1:] == [status]
        assert client.is_closed
        assert len(rig.requests) == 1


@pytest.mark.parametrize(("status", "raw"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(
    status: int, raw: bytes, rig: Rig
) -> None:
    for pieces in ((raw + SMUGGLED,), (raw, SMUGGLED), bytewise(raw + SMUGGLED)):
        client = rig.send_request(*pieces)

        assert client.response.status == status, pieces
        assert code_of(client.response)
        assert client.response["connection"] == "close"
        assert client.is_closed
        assert rig.requests == []
        assert rig.is_at_rest


# Their blank line never comes.
HOPELESS = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS_CERT_FILE"),
    "bare line feeds": (b"GET /ping HTTP/1.1\nHost: a\n\n", "LF"),
    "bare line feeds behind a good line": (b"GET /ping HTTP/1.1\r\nHost: a\n\n", "LF"),
    "a blank line of one LF": (b"GET /ping HTTP/1.1\r\nHost: a\r\n\n", "LF"),
    "one bare line feed": (b"GET /ping HTTP/1.1\r\nHost: a\nX: y\r\n", "LF"),
    "an LF in front": (b"\nGET /ping HTTP/1.1\r\n", "method"),
    "a CR in front": (b"\rGET /ping HTTP/1.1\r\n", "method"),
    "a space in front": (b" GET /ping HTTP/1.1\r\n", "method"),
    "SOCKS": (b"\x05\x01\x00", "method"),
    "the PROXY protocol's second version": (b"\r\n\r\n\x00\r\nQUIT\n!", "method"),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n", "HTTP/1.1"),
    "HTTP/0.9": (b"GET /ping\r\n", "HTTP/1.1"),
}


@pytest.mark.parametrize(("raw", "names"), HOPELESS.values(), ids=HOPELESS.keys())
def test_what_cannot_become_a_request_is_400_without_waiting_for_its_end(
    raw: bytes, names: str, rig: Rig
) -> None:
    for pieces in ((raw,), bytewise(raw)):
        client = rig.send_request(*pieces)

        assert client.response.status == 400, pieces
        assert names in json.loads(client.response.body)["error"]["message"]
        assert client.response["connection"] == "close"
        assert client.is_closed
        assert rig.is_at_rest


@pytest.mark.parametrize(("raw", "names"), HOPELESS.values(), ids=HOPELESS.keys())
def test_the_same_holds_behind_a_request_that_was_good(raw: bytes, names: str, rig: Rig) -> None:
    del names
    rig.respond_with(OK)
    good = request("GET", "/v1/health")
    for pieces in ((good, raw), (good + raw,), bytewise(good + raw)):
        client = rig.send_request(*pieces)

        assert [response.status for response in client.responses] == [200, 400], pieces
        assert client.is_closed


MALFORMED_CHUNKS = {
    "a size with 0x": b"0x5\r\n12345\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\n12345\r\n0\r\n\r\n",
    "a negative size": b"-5\r\n12345\r\n0\r\n\r\n",
    "a size with an underscore": b"1_0\r\n1234567890123456\r\n0\r\n\r\n",
    "a size with a space before": b" 5\r\n12345\r\n0\r\n\r\n",
    "a size with a space behind": b"5 \r\n12345\r\n0\r\n\r\n",
    "no size": b"\r\n12345\r\n0\r\n\r\n",
    "only an extension": b";a=b\r\n12345\r\n0\r\n\r\n",
    "no hexadecimal digit": b"g\r\n12345\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000005\r\n12345\r\n0\r\n\r\n",
    "a bare LF behind the size": b"5\n12345\r\n0\r\n\r\n",
    "a bare CR in the extension": b"5;a\rb\r\n12345\r\n0\r\n\r\n",
    "a bare LF in the extension": b"5;a\n12345\r\n0\r\n\r\n",
    "a NUL in the extension": b"5;a\0\r\n12345\r\n0\r\n\r\n",
    "data longer than its size": b"5\r\n123456\r\n0\r\n\r\n",
    "any two bytes behind the data": b"5\r\n12345XX0\r\n\r\n",
    "a bare LF behind the data": b"5\r\n12345\n0\r\n\r\n",
    "data shorter than its size": b"5\r\n123\r\n0\r\n\r\n",
    "an extension without end": b"5;" + b"a" * 2000,
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a trailer with a space before the colon": b"0\r\nX : a\r\n\r\n",
    "a trailer with a bare CR": b"0\r\nX: a\rb\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: a\n\r\n",
    "a trailer line without end": b"0\r\nX: " + b"a" * 2000,
    "trailers without end": b"0\r\n" + b"X: abcdefgh\r\n" * 1000,
}


@pytest.mark.parametrize("body", MALFORMED_CHUNKS.values(), ids=MALFORMED_CHUNKS.keys())
def test_a_malformed_chunked_body_is_400_and_ends_the_connection(body: bytes, rig: Rig) -> None:
    raw = request("POST", "/v1/embeddings", CHUNKED) + body
    for pieces in ((raw,), (raw + SMUGGLED,), bytewise(raw)):
        client = rig.send_request(*pieces)

        assert client.response.status == 400, pieces
        assert client.is_closed
        assert rig.requests == []
        assert rig.is_at_rest
