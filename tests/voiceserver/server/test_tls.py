"""A certificate that is exchanged under a running server: who connects next meets the new one, whatever kind its key is of."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from voiceserver.errors import ConfigError
from voiceserver.server.tls import tls_context, use_instead

TLS = Path(__file__).resolve().parents[2] / "e2e" / "tls"
EC = (str(TLS / "cert.pem"), str(TLS / "key.pem"))
RSA = (str(TLS / "rsa-cert.pem"), str(TLS / "rsa-key.pem"))


def greeted_with(served: ssl.SSLContext, name: str | None = None) -> bytes:
    """The certificate (DER) that a client of ``served`` is shown, without a socket."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    server = served.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def der_of(cert: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(cert).read_text())


@pytest.mark.parametrize(("first", "second"), [(EC, RSA), (RSA, EC), (RSA, RSA)])
@pytest.mark.parametrize("name", [None, "localhost"])
def test_the_next_caller_meets_the_new_certificate(
    first: tuple[str, str], second: tuple[str, str], name: str | None
) -> None:
    served = tls_context(*first)
    assert greeted_with(served, name) == der_of(first[0])
    use_instead(served, tls_context(*second))
    assert greeted_with(served, name) == der_of(second[0])
    use_instead(served, tls_context(*first))
    assert greeted_with(served, name) == der_of(first[0])


def test_a_key_of_another_certificate_is_refused_before_it_is_used() -> None:
    with pytest.raises(ConfigError, match=r"server\.tls_cert"):
        tls_context(RSA[0], EC[1])
