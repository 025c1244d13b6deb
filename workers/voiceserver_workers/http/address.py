"""Where an endpoint is, and the key that it is asked with. Pure: the variables of the environment are an argument.

============  ==============================================================================================
base_url      the parameter, else ``OPENAI_BASE_URL``
key           ``api_key``, else the variable that ``api_key_env`` names, else the engine's own variable, else
              ``OPENAI_API_KEY``
============  ==============================================================================================

Rule: ``OPENAI_API_KEY`` goes only to the host, scheme and port of ``OPENAI_BASE_URL``; where that is not set, of OpenAI itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

BASE_URL: Final = "OPENAI_BASE_URL"
API_KEY: Final = "OPENAI_API_KEY"
OPENAI: Final = "https://api.openai.com/v1"
_PORTS: Final = {"http": 80, "https": 443}


class AddressError(ValueError):
    """``parameter``: the one that is wrong; ``problem``: what is wrong with it."""

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}")
        self.parameter = parameter
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Address:
    """``base_url`` ends without a slash. ``api_key``: empty for none; it never shows in a repr."""

    base_url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Address({self.base_url!r})"


def address_of(
    engine: str, params: Mapping[str, object], environ: Mapping[str, str], *, own_variable: str = ""
) -> Address:
    """params: base_url, api_key and api_key_env, where given. own_variable: of the environment, for a key of this engine alone.

    Raises AddressError."""
    base_url = (str(params.get("base_url", "")) or environ.get(BASE_URL, "")).strip().rstrip("/")
    if not base_url.startswith(("http://", "https://")) or not _host(base_url):
        example = f"such as http://localhost:8000/v1, or the variable {BASE_URL}"
        raise AddressError("base_url", f"the {engine} engine needs an address, {example}")
    return Address(base_url, _api_key(params, environ, base_url, own_variable))


def _api_key(params: Mapping[str, object], environ: Mapping[str, str], base_url: str, own: str) -> str:
    given, name = str(params.get("api_key", "")), str(params.get("api_key_env", ""))
    if not given and name:
        if name not in environ:
            raise AddressError("api_key_env", f"the environment has no {name}")
        given = environ[name]
    if not given and own:
        given = environ.get(own, "")
    if not given and _origin(base_url) == _origin(environ.get(BASE_URL, "") or OPENAI):
        given = environ.get(API_KEY, "")
    api_key = given.strip()
    if not api_key.isascii() or not (api_key.isprintable() or not api_key):
        raise AddressError("api_key", "a key is printable ASCII")
    return api_key


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        return parts.hostname or "" if parts.port != 0 else ""
    except ValueError:
        return ""


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: who would read what is sent to ``url``."""
    host = _host(url)
    if not host:
        return "", "", None
    parts = urlsplit(url)
    return parts.scheme, host, parts.port or _PORTS.get(parts.scheme)


def shown(url: str) -> str:
    """``url`` as a log may have it: without user, password and parameters."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
