"""Text to value, and back.

Each parser raises ValueError with what is valid, worded to follow "must be". Modules for addresses
are imported by those that need them: with the defaults, a start loads none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from llama_gguf.values import Value

Parser = Callable[[str], object]


def text(value: str) -> str:
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise ValueError("text without control characters")
    return value


def path(value: str) -> str:
    return text(value)


def host_name(value: str) -> str:
    """An address, or a name of one; IPv6 may be in brackets, as in a URL."""
    address = value[1:-1] if re.fullmatch(r"\[.*:.*\]", value) else value
    if ":" in address:
        from ipaddress import IPv6Address  # noqa: PLC0415

        try:
            return str(IPv6Address(address))
        except ValueError:
            raise ValueError("an address or a name, without a port: PORT is separate") from None
    if not address or re.fullmatch(r"[^\s/\[\]\x00-\x1f\x7f]+", address) is None:
        raise ValueError("an address or the name of a host")
    return address


def http_url(value: str) -> str:
    """The URL of a server; empty = none."""
    if not value:
        return ""
    from urllib.parse import urlsplit  # noqa: PLC0415

    try:
        parts = urlsplit(value)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("a URL such as http://HOST:4318")
    return value


def store_url(value: str) -> str:
    """The URL of a Redis or Valkey server; empty = none."""
    if value:
        from llama_gguf.config.store_address import StoreAddress  # noqa: PLC0415

        StoreAddress.of(value)
    return value


def boolean(value: str) -> bool:
    low = value.lower()
    if low in ("true", "1", "yes", "on"):
        return True
    if low in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def whole(low: int, high: int) -> Parser:
    def parse(value: str) -> int:
        # int() alone would accept "+5", "1_000" and digits of other scripts.
        if re.fullmatch(r"-?[0-9]{1,18}", value) and low <= int(value) <= high:
            return int(value)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def whole_or(low: int, high: int, **words: object) -> Parser:
    """As ``whole``, or one of *words*, with what it stands for."""
    parse_whole = whole(low, high)

    def parse(value: str) -> object:
        if value.lower() in words:
            return words[value.lower()]
        try:
            return parse_whole(value)
        except ValueError as expected:
            raise ValueError(" or ".join([str(expected), *words])) from None

    return parse


def seconds(low: float) -> Parser:
    def parse(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) and float(value) >= low:
            return float(value)
        raise ValueError(f"seconds, {low:g} or more, such as 30 or 2.5")

    return parse


class Choice(Value):
    """One of *options*, in any case."""

    options: tuple[str, ...]

    def __call__(self, value: str) -> str:
        if value.lower() in self.options:
            return value.lower()
        raise ValueError(f"one of: {', '.join(self.options)}")


def choice(*options: str) -> Parser:
    return Choice(options)


def api_key(value: str) -> str:
    # It is sent in a header field, which must have no control characters (RFC 9110 section 5.5).
    if re.fullmatch(r"[\x21-\x7e]{1,512}", value):
        return value
    raise ValueError("printable ASCII without spaces, at most 512 characters")


def key_ids(value: str) -> tuple[str, ...]:
    ids = tuple(i.strip() for i in value.split(",") if i.strip())
    if all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key_id) for key_id in ids):
        return ids
    raise ValueError("key ids of 1 to 64 characters A-Z a-z 0-9 _ -, separated by commas")


def names(value: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in value.split(",") if name.strip())
    if all(name.isprintable() and len(name) <= 256 for name in found):
        return found
    raise ValueError("names of up to 256 printable characters, separated by commas")


def networks(value: str) -> tuple[str, ...]:
    return tuple(_network(part.strip()) for part in value.split(",") if part.strip())


def _network(value: str) -> str:
    from ipaddress import ip_network  # noqa: PLC0415

    try:
        network = ip_network(value)
        # An IPv4 address in the form of IPv6 is the IPv4 address here, and zones are ignored.
        if not value.lower().startswith("::ffff:") and "%" not in value:
            return str(network)
    except ValueError:
        pass
    raise ValueError(
        "networks or addresses separated by commas, such as 10.0.0.0/8,2001:db8::/32, "
        "without bits after the prefix"
    )


def origins(value: str) -> tuple[str, ...]:
    return tuple(_origin(o.strip()) for o in value.split(",") if o.strip())


# The schemes whose hosts and default ports browsers normalise (https://url.spec.whatwg.org/).
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
_ORIGIN: Final = (
    r"(?i)(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^/\s:@?#*\[\]]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


def _origin(value: str) -> str:
    """*value* as a browser sends it, since a field is compared byte for byte."""
    if value == "*":
        return value
    match = re.fullmatch(_ORIGIN, value.removesuffix("/"))
    if match is None or not value.isascii():
        raise ValueError(
            "origins as a browser sends them (https://app.example.com), without a path and "
            "without * in them, separated by commas, or * alone"
        )
    scheme, host = match["scheme"].lower(), match["host"]
    if scheme not in _DEFAULT_PORTS:
        return f"{scheme}://{value.partition('://')[2].removesuffix('/')}"
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 1 << 16:
        raise ValueError("origins with a port from 1 to 65535")
    end = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{_host(host)}{end}"


def _host(host: str) -> str:
    if host.startswith("["):
        from ipaddress import IPv6Address  # noqa: PLC0415

        try:
            return f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            raise ValueError("origins with a valid IPv6 address") from None
    return host.lower()


_PEER: Final = (
    r"(?i)(?P<scheme>(?:dns\+)?https?|ray)://(?P<host>\[[0-9a-f:.]+\]|[^/\s:@?#\[\]]+)"
    r":(?P<port>[0-9]{1,5})/?"
)
_CLUSTER: Final = "ray://"
_PEERS: Final = (
    "http://HOST:PORT, https://HOST:PORT, unix:/PATH, dns+http://NAME:PORT, "
    "dns+https://NAME:PORT, ray://HOST:PORT or ray://, separated by commas; without a path or a "
    "login"
)


def peers(value: str) -> tuple[str, ...]:
    """Addresses of engines, in one spelling each, without repetitions."""
    return tuple(dict.fromkeys(_peer(part.strip()) for part in value.split(",") if part.strip()))


def _peer(value: str) -> str:
    if value.startswith("unix:/") and text(value):
        return value
    if value.lower() == _CLUSTER:  # of this machine
        return _CLUSTER
    match = re.fullmatch(_PEER, value)
    if match is None or not value.isascii() or not 0 < int(match["port"]) < 1 << 16:
        raise ValueError(_PEERS)
    scheme = match["scheme"].lower()
    try:
        host = _host(match["host"])
    except ValueError:
        raise ValueError(_PEERS) from None
    return f"{scheme}://{host}:{int(match['port'])}"


def as_text(value: object) -> str:
    """*value* in the syntax that its parser reads."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.9f}".rstrip("0").rstrip(".")  # without exponent, and without loss
    return str(value)
