"""Who a request comes from, where a proxy may stand between: the client's address through proxies that are trusted, and traces
of any other.

Rule: what a header says of an address is believed of a trusted proxy only (``server.trusted_proxies``). Whether a request came
straight from a program on this machine is decided by a closed list: a header that such a program has no reason to send counts as
the trace of a proxy, also one that nobody has heard of yet.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from websockets.datastructures import Headers

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What browsers, curl and HTTP libraries send by themselves, and what our own paths ask for.
_PLAIN_HEADERS: Final = frozenset(
    {
        *("host", "user-agent", "connection", "keep-alive", "te", "expect", "priority", "origin", "referer"),
        *("accept", "accept-language", "accept-encoding", "accept-charset", "content-type", "content-length"),
        *("authorization", "cookie", "cache-control", "pragma", "dnt", "upgrade-insecure-requests"),
        "x-voiceserver-action",
    }
)
_PLAIN_PREFIXES: Final = ("sec-fetch-", "sec-ch-", "sec-gpc")
_FORWARDED_FOR: Final = re.compile(r'(?:^|[;,])\s*for\s*=\s*(?:"([^"]*)"|([^;,\s]*))', re.IGNORECASE)
_PORT: Final = re.compile(r":\d{1,5}$")


class TrustedProxies:
    """``networks``: addresses or networks of proxies, with commas between. Raises ValueError that names the wrong one."""

    def __init__(self, networks: str = "") -> None:
        self._networks = [_network(one.strip()) for one in networks.split(",") if one.strip()]

    def __contains__(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_address(self, peer: str, headers: Headers) -> str:
        """The address of the client behind trusted proxies; ``peer`` where it is none, or where the headers say nothing.

        The last proxy writes at the end of the list, so the first address from the end that is no trusted proxy is the client:
        what stands before it may be anybody's invention.
        """
        if not self._networks or peer not in self:
            return peer
        found = peer
        for name in reversed(_forwarded(headers)):
            address = _parse(name)
            if address is None:
                return found
            found = str(address)
            if found not in self:
                return found
        return found


def has_traces(headers: Headers) -> bool:
    """Whether anything says that the request came through a proxy."""
    names = {name.lower() for name, _ in headers.raw_items()}
    return any(name not in _PLAIN_HEADERS and not name.startswith(_PLAIN_PREFIXES) for name in names)


def is_loopback(address: str) -> bool:
    parsed = _parse(address)
    return parsed is not None and parsed.is_loopback


def _forwarded(headers: Headers) -> list[str]:
    """The addresses of X-Forwarded-For, else those of Forwarded (RFC 7239), in their order."""
    listed = ",".join(headers.get_all("X-Forwarded-For"))
    if listed:
        return [one.strip() for one in listed.split(",")]
    found = _FORWARDED_FOR.finditer(",".join(headers.get_all("Forwarded")))
    return [one[1] or one[2] or "" for one in found]


def _parse(text: str) -> _Address | None:
    """With or without a port, and with or without brackets. None: no address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = _PORT.sub("", text)
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is neither an address nor a network such as 10.0.0.0/8") from None
