"""``::`` is every address of both families, and what is bound is said."""

from __future__ import annotations

import socket

import pytest

from voiceserver.server.listening import addresses, dual_stack, is_both_families
from voiceserver.server.multiprocess.supervisor import _hold_port

pytestmark = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def test_a_socket_for_both_families_takes_callers_of_both() -> None:
    with dual_stack(0, reuse_port=False) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port), timeout=5):
                listener.accept()[0].close()
        assert addresses([listener]) == [f"[::]:{port}", f"0.0.0.0:{port}"]


def test_a_port_that_is_held_for_processes_is_one_of_both_families() -> None:
    with _hold_port("::", 0) as held:
        assert addresses([held]) == [f"[::]:{held.getsockname()[1]}", f"0.0.0.0:{held.getsockname()[1]}"]


@pytest.mark.parametrize(
    ("host", "both"), [("::", True), ("[::]", True), ("::1", False), ("0.0.0.0", False), ("", False)]
)
def test_which_host_means_both(host: str, both: bool) -> None:
    assert is_both_families(host) == both


def test_an_address_of_one_family_is_told_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert addresses([listener]) == [f"127.0.0.1:{listener.getsockname()[1]}"]
