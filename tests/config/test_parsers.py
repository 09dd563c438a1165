from __future__ import annotations

import pytest

from llama_gguf.config.settings import SETTINGS


def parse(variable: str, text: str) -> object:
    return SETTINGS[variable.lower()].parse(text)


WHOLE = "CTX"
PORT = "PORT"
SECONDS = "MAX_QUEUE_WAIT"
FLAG = "AUTH_ENABLED"
KEY = "BACKEND_API_KEY"
ORIGINS = "CORS_ORIGINS"
PROXIES = "TRUSTED_PROXIES"
PEERS = "PEERS"
COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((WHOLE, text) for text in ("+5", "-1", "1_000", "1,000", "1.0", "1e3", "0x10", "five")),
        *((WHOLE, text) for text in ("\u0665", "\uff15", "\u00b2", "5 5", "5k", "NaN", "inf")),
        *((WHOLE, text) for text in ("9" * 18, "9" * 5000, "--", "")[:3]),
        *((PORT, text) for text in ("0", "65536", "-1", "80.0")),
        *((SECONDS, text) for text in ("+5", "-1", "1_000", "nan", "NaN", "inf", "Infinity")),
        *((SECONDS, text) for text in ("1e3", ".5", "5.", "5s", "\u0665", "1,5", "0x1", "9" * 10)),
        ("REQUEST_TIMEOUT", "0"),
        ("MAX_REQUESTS_PER_MINUTE", "0"),
        *((FLAG, text) for text in ("2", "t", "enabled", "truee", "tru\u0435")),
        ("EXPOSED_ROUTES", "everything"),
        ("HEALTH_MODE", "live,ready"),
        *((KEY, text) for text in ("a b", "a\tb", "a\r\nX: y", "k\u00e9y", "a\x00", "a" * 513)),
        *((ORIGINS, text) for text in ("app.example", "https://", "https://a/b", "https://a b")),
        *((ORIGINS, text) for text in ("*, a", "https://a\r\nX: y", "null", "https://*.a.example")),
        *((ORIGINS, text) for text in ("http://localhost:*", "https://a:0", "https://a:70000")),
        *((ORIGINS, text) for text in ("https://u@a", "https://a?b", "https://\u00e4.example")),
        *((ORIGINS, text) for text in ("http://[::1", "http://[1::2::3]", "https://a:")),
        *((PROXIES, text) for text in ("10.0.0.1/8", "10.0.0.0/33", "proxy", "unix", "10.0.0")),
        *((PROXIES, text) for text in ("::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1:80")),
        *((PEERS, text) for text in ("10.0.0.1:8080", "http://a", "http://a:0", "http://a:99999")),
        *(
            (PEERS, text)
            for text in ("http://a:1/v1", "http://a:1?k=1", "http://u:p@a:1", "ftp://a:1")
        ),
        *(
            (PEERS, text)
            for text in ("unix:a.sock", "unix:/a\x00", "dns+unix:/a", "http://[::x]:1")
        ),
        *(
            (COLLECTOR, text)
            for text in ("collector:4318", "grpc://a:4317", "http://", "http://a b")
        ),
        *((COLLECTOR, text) for text in ("http://a:0", "http://a:70000", "http://\u00e4.example")),
        ("MODEL_PATH", "/a\x00b"),
        ("EXTRA_ARGS", "a\nb"),
        *(
            ("HOST", text)
            for text in ("a\r\nb", "0.0.0.0:8000", "http://a", "[::1]:80", "a b", "[a]")
        ),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_value_that_is_not_exactly_valid_is_rejected(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(name, text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        (
            PROXIES,
            "10.0.0.0/8, 2001:DB8::/32,192.0.2.1",
            ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32"),
        ),
        (PROXIES, "", ()),
        (
            PEERS,
            "http://A.example:081/, https://[::1]:82,unix:/run/e.sock,dns+http://e:83,http://a.example:81",
            (
                *("http://a.example:81", "https://[::1]:82", "unix:/run/e.sock"),
                "dns+http://e:83",
            ),
        ),
        (
            PEERS,
            "RAY://Head:8002/,ray://,ray://[::1]:9",
            ("ray://head:8002", "ray://", "ray://[::1]:9"),
        ),
        ("CTX", "0", 0),
        ("CTX", "007", 7),
        ("PORT", "65535", 65535),
        ("MAX_REQUEST_BODY_SIZE", "10485760", 10485760),
        ("MAX_QUEUE_WAIT", "0", 0.0),
        ("MAX_QUEUE_WAIT", "2.5", 2.5),
        ("REQUEST_TIMEOUT", "0.1", 0.1),
        ("AUTH_ENABLED", "False", False),
        ("AUTH_ENABLED", "0", False),
        ("AUTH_ENABLED", "off", False),
        ("METRICS_AUTH_ENABLED", "YES", True),
        ("METRICS_AUTH_ENABLED", "1", True),
        ("LOG_FORMAT", "JSON", "json"),
        ("EXPOSED_ROUTES", "All", "all"),
        ("BACKEND_API_KEY", "~k:%=/+", "~k:%=/+"),
        ("CORS_ORIGINS", "*", ("*",)),
        (
            "CORS_ORIGINS",
            "https://a.example, http://localhost:3000,",
            (*("https://a.example", "http://localhost:3000"),),
        ),
        ("HOST", "[::]", "::"),
        ("HOST", "::1", "::1"),
        ("HOST", "my-host.example", "my-host.example"),
        ("BACKEND_HOST", "[2001:db8::1]", "2001:db8::1"),
        # As browsers send them: lower case, without default ports.
        ("CORS_ORIGINS", "HTTPS://App.Example:443", ("https://app.example",)),
        ("CORS_ORIGINS", "http://a:80,http://a:443", ("http://a", "http://a:443")),
        ("CORS_ORIGINS", "http://localhost:3000", ("http://localhost:3000",)),
        ("CORS_ORIGINS", "http://127.0.0.1:3000/", ("http://127.0.0.1:3000",)),
        ("CORS_ORIGINS", "http://[0:0::1]:8080", ("http://[::1]:8080",)),
        ("CORS_ORIGINS", "vscode-webview://0aB", ("vscode-webview://0aB",)),
        ("CORS_ORIGINS", "chrome-extension://abc", ("chrome-extension://abc",)),
        ("MODEL_PATH", "/m/\u00e4 b.gguf", "/m/\u00e4 b.gguf"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_good_value_is_understood(name: str, text: str, value: object) -> None:
    assert parse(name, text) == value
