"""Which proxy stands before an endpoint, by the variables of the environment. Pure: the variables are an argument.

::

    http_proxy, https_proxy, all_proxy     small or capital letters, the small ones first; without a scheme: http
    no_proxy                               names, ".domain", addresses and networks of IPv4 and IPv6, with or without brackets
                                           and port; "*" is all

Rule: an endpoint on this machine is never asked through a proxy. An entry of ``no_proxy`` that cannot be read matches nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

SCHEMES: Final = ("http", "https", "socks5", "socks5h")


class ProxyError(Exception):
    """A variable names a proxy that cannot be used; the message names the variable."""


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """The address of the proxy for ``url``; "" for none. Raises ProxyError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_this_machine(host) or _is_excepted(host, _variable("no_proxy", environ)[1]):
        return ""
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        variable, value = _variable(name, environ)
        if value:
            return _checked(variable, value)
    return ""


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Of the two spellings the one that is set, and its value."""
    for spelling in (name, name.upper()):
        if value := environ.get(spelling, "").strip():
            return spelling, value
    return name, ""


def _checked(variable: str, value: str) -> str:
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
        parts = urlsplit("")
    if not is_address:
        raise ProxyError(f"{variable} is no address of a proxy, such as http://proxy:3128")
    if parts.scheme.lower() not in SCHEMES:
        raise ProxyError(f"{variable} has the scheme {parts.scheme}; possible are {', '.join(SCHEMES)}")
    return url


def _is_this_machine(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def _is_excepted(host: str, no_proxy: str) -> bool:
    return any(_matches(host, entry) for entry in no_proxy.replace(",", " ").split())


def _matches(host: str, entry: str) -> bool:
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(_without_port(entry), strict=False)
        except ValueError:
            return False
    name = _without_port(entry).removeprefix("*").lstrip(".").lower()
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        inside, _, behind = entry[1:].partition("]")
        return inside + (behind if behind.startswith("/") else "")
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
