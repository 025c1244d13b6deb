"""The certificate that the server shows, and how it is replaced while connections are open."""

from __future__ import annotations

import ssl

from voiceserver.errors import ConfigError


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Raises ConfigError for files that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("server.tls_cert", f"{cert!r} with key {key!r} cannot be used: {error}") from None
    return context


def use_instead(served: ssl.SSLContext, fresh: ssl.SSLContext) -> None:
    """``served`` greets with what ``fresh`` has. To load that into ``served`` would leave the old beside it: RSA beside EC."""

    def greet(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = fresh

    served.sni_callback = greet  # asked for each connection, also where the client names no server
