"""Hostile peers: each is bounded in memory and time, told with the right code, and invisible to a caller beside it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.frames import Frame, Opcode

from tests.e2e.serving import ServerProcess, serving
from tests.faults.chatting import NO_VOICE, Chat
from tests.faults.workers_of import resident_mib

ENGINE = "tests.faults.fault_engines:Answering"
SETTINGS = [f"{key}={value}" for key, value in {**NO_VOICE, "stages.reply.engine": ENGINE}.items()]
MAX_MESSAGE_BYTES = 262_144
MAY_GROW_MIB = 24.0  # allocators round up; a leak of what is thrown at it would be hundreds
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(
        *SETTINGS,
        f"server.max_message_bytes={MAX_MESSAGE_BYTES}",
        "server.handshake_timeout_ms=1000",
        "server.slow_reader_timeout_ms=1500",
        "session.history_items=4",
        "server.check_laws=true",
        "backpressure.max_talkers=10000",
        "backpressure.tenant_share=1",
    ) as server:
        with Chat(server.url) as first:
            assert first.talk("hello") == "You said hello."
        yield server


class Bystander(threading.Thread):
    """A well-behaved caller beside the hostile one; every answer must come, and none may be late by much."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._is_over = threading.Event()
        self._chat = Chat(url)
        self.waits_s: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._is_over.is_set() or not self.waits_s:
                begun = time.monotonic()
                assert (
                    self._chat.talk(f"number {len(self.waits_s)}") == f"You said number {len(self.waits_s)}."
                )
                self.waits_s.append(time.monotonic() - begun)
                time.sleep(0.02)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._is_over.set()
        self.join(60)
        self._chat.socket.close()
        assert self.error is None, self.error
        assert not self._chat.said("server.busy"), self._chat.said("server.busy")


@pytest.fixture
def bystander(server: ServerProcess) -> Iterator[Bystander]:
    """Beside every test; and the server's memory is looked at before and after."""
    before_mib = resident_mib(server.process.pid)
    one = Bystander(server.url)
    one.start()
    yield one
    one.finish()
    grown_mib = resident_mib(server.process.pid) - before_mib
    assert grown_mib < MAY_GROW_MIB
    assert not [entry for entry in server.log if "fault" in entry["event"]], server.log


class Peer:
    """A raw socket that may say anything."""

    def __init__(self, server: ServerProcess, path: str = "/v1/stream", *, upgrades: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self.rest = b""
        if upgrades:
            self.socket.sendall(UPGRADE.replace("{path}", path).encode())
            while b"\r\n\r\n" not in self.rest:
                self.rest += self.socket.recv(65_536)
            head, _, self.rest = self.rest.partition(b"\r\n\r\n")
            assert b" 101 " in head, head

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, opcode: Opcode, payload: bytes, *, fin: bool = True) -> None:
        self.socket.sendall(Frame(opcode, payload, fin).serialize(mask=True))

    def flood(self, data: bytes, times: int) -> None:
        """Until the server has had enough of it."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(times):
                self.socket.sendall(data)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """(opcode, payload) of what the server says, to the end of the stream."""
        while True:
            data = self.rest
            if len(data) >= 2:
                length, at = data[1], 2
                if length == 126:
                    length, at = int.from_bytes(data[2:4], "big"), 4
                elif length == 127:
                    length, at = int.from_bytes(data[2:10], "big"), 10
                if len(data) >= at + length:
                    self.rest = data[at + length :]
                    yield data[0] & 15, data[at : at + length]
                    continue
            try:
                got = self.socket.recv(65_536)
            except ConnectionResetError:
                return
            if not got:
                return
            self.rest += got

    def read_end(self) -> tuple[list[dict[str, object]], int | None]:
        """The JSON events up to the close frame, and its code."""
        events: list[dict[str, object]] = []
        for opcode, payload in self._frames():
            if opcode == Opcode.TEXT:
                events.append(json.loads(payload))
            elif opcode == Opcode.CLOSE:
                return events, int.from_bytes(payload[:2], "big")
        return events, None

    def read_events(self, count: int) -> list[dict[str, object]]:
        """The next so many JSON events."""
        events: list[dict[str, object]] = []
        for opcode, payload in self._frames():
            if opcode == Opcode.TEXT:
                events.append(json.loads(payload))
                if len(events) == count:
                    break
        return events


def masked_head(head: int, length: int) -> bytes:
    return bytes((head, 0x80 | 127)) + struct.pack("!Q", length) + b"mask"


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda peer: peer.socket.sendall(masked_head(0x82, 2**62)), 1009),
        (lambda peer: peer.send(Opcode.BINARY, bytes(MAX_MESSAGE_BYTES + 2)), 1009),
        (lambda peer: peer.send(Opcode.TEXT, b"\xc3\x28 \xff"), 1007),
        (lambda peer: peer.socket.sendall(b"\xc1\x80mask"), 1002),
        (lambda peer: peer.socket.sendall(b"\x83\x80mask"), 1002),
        (lambda peer: peer.socket.sendall(b"\x81\x05hello"), 1002),
        (lambda peer: peer.socket.sendall(b"\x80\x80mask"), 1002),
        (lambda peer: peer.socket.sendall(b"\x89\xfe\0\x7emask" + bytes(126)), 1002),
        (lambda peer: peer.socket.sendall(b"\xff" * 64), 1002),
        (lambda peer: peer.send(Opcode.CLOSE, b"\x03"), 1002),
    ],
    ids=[
        "says it is huge", "oversize", "invalid UTF-8", "reserved bit", "bad opcode", "unmasked",
        "continues nothing", "long ping", "garbage", "half a close code",
    ],
)  # fmt: skip
def test_a_broken_frame_is_told_with_its_code(
    server: ServerProcess, bystander: Bystander, send: Callable[[Peer], None], code: int
) -> None:
    with Peer(server) as peer:
        send(peer)
        events, told = peer.read_end()
    assert told == code
    assert events[-1]["type"] == "session.closing"


def test_fragments_without_end(server: ServerProcess, bystander: Bystander) -> None:
    with Peer(server) as peer:
        peer.send(Opcode.BINARY, b"", fin=False)
        peer.flood(Frame(Opcode.CONT, b"", False).serialize(mask=True) * 100, 500)
        assert peer.read_end()[1] == 1009
    with Peer(server) as peer:
        peer.send(Opcode.TEXT, b"", fin=False)
        peer.flood(Frame(Opcode.CONT, bytes(16_384), False).serialize(mask=True), 200)
        assert peer.read_end()[1] == 1009


def test_tens_of_thousands_of_tiny_messages(server: ServerProcess, bystander: Bystander) -> None:
    """All are answered by their kind, and others get their turn between them."""
    with Peer(server) as peer:
        peer.flood(Frame(Opcode.BINARY, b"\0\0").serialize(mask=True) * 1_000, 50)
        peer.flood(Frame(Opcode.PONG, b"").serialize(mask=True) * 1_000, 20)
        peer.send(Opcode.TEXT, b'{"type":"session.close"}')
        events, code = peer.read_end()
        closing = events[-1]["accounting"]
        assert isinstance(closing, dict)
        assert closing["received_ms"] == 50_000 / 16
        assert code == 1000


def test_a_flood_of_pings_whose_answers_nobody_reads(server: ServerProcess, bystander: Bystander) -> None:
    with Peer(server) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.socket.settimeout(2)
        frames = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 500
        ended = False
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            try:
                peer.socket.sendall(frames)
            except TimeoutError:
                continue  # the server has stopped reading us
            except OSError:
                ended = True
        assert ended, "still connected"


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 100_000,
        b'{"type":' + b'{"a":' * 20_000,
        b'{"type":"session.update","tools":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"type":"item.append","item":{"role":"user","text":' + b'"' + b"x" * 200_000,
        b'{"type":"reply.create","temperature":' + b"9" * 100_000 + b"}",
        b'{"' + b'","'.join(b"k%d" % n for n in range(2_000)) + b'":1}',
        b"{" + b",".join(b'"k%d":1' % n for n in range(10_000)) + b"}",
        b'"\\ud800"',
    ],
    ids=["arrays", "objects", "deep tools", "unended", "digits", "not pairs", "many keys", "half a pair"],
)
def test_json_bombs_are_a_mistake_like_any_other(
    server: ServerProcess, bystander: Bystander, bomb: bytes
) -> None:
    with Peer(server) as peer:
        for _ in range(20):
            peer.send(Opcode.TEXT, bomb)
        answers = peer.read_events(21)[1:]
        assert {event["type"] for event in answers} == {"error"}
        assert all(len(str(event["message"])) < 1_000 for event in answers)
        peer.send(Opcode.TEXT, b'{"type":"session.close"}')
        assert peer.read_end()[1] == 1000


def test_handshakes_that_never_finish_are_told_and_dropped(
    server: ServerProcess, bystander: Bystander
) -> None:
    taken = server.get("/v1/capacity")[1]["connections"]
    peers = [Peer(server, upgrades=False) for _ in range(300)]
    for index, peer in enumerate(peers):
        peer.socket.sendall((b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"", b"G")[index % 3])
    assert server.get("/v1/capacity")[1]["connections"] == taken  # they hold no place
    for peer in peers:
        with peer:
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while got := peer.socket.recv(4_096):
                    answer += got
            assert answer.startswith(b"HTTP/1.1 408 "), answer


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1/stream HTTP/1.1\r\n" + b"X-Long: " + b"x" * 40_000, 431),
        (b"\0" * 50_000, 431),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 400),
    ],
    ids=["long header", "zeros", "long path", "version", "empty", "long body"],
)
def test_heads_that_are_none(server: ServerProcess, bystander: Bystander, head: bytes, status: int) -> None:
    with Peer(server, upgrades=False) as peer:
        peer.flood(head, 1)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while got := peer.socket.recv(4_096):
                answer += got
    found = re.match(rb"HTTP/1.1 (\d+) ", answer)
    assert found is not None, answer
    assert int(found[1]) == status


def test_half_open_and_half_closed_connections_leave_no_place_taken(
    server: ServerProcess, bystander: Bystander
) -> None:
    taken = server.get("/v1/capacity")[1]["connections"]
    peers = [Peer(server) for _ in range(100)]
    for index, peer in enumerate(peers):
        if index % 2:
            peer.socket.shutdown(socket.SHUT_WR)
        else:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.socket.close()
    deadline = time.monotonic() + 30
    while server.get("/v1/capacity")[1]["connections"] != taken:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for peer in peers:
        peer.socket.close()


def test_a_reader_that_stops_costs_bounded_bytes_and_is_closed_for_it(
    server: ServerProcess, bystander: Bystander
) -> None:
    seen = len(server.log)
    with Peer(server) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        peer.socket.settimeout(3)
        text = "w" * 20_000
        event = json.dumps({"type": "item.append", "item": {"role": "user", "text": text}}).encode()
        ask = b'{"type":"reply.create"}'
        ended = False
        deadline = time.monotonic() + 30
        while not ended and time.monotonic() < deadline:
            try:
                peer.send(Opcode.TEXT, event)
                peer.send(Opcode.TEXT, ask)
                time.sleep(0.01)
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended, "still connected"
    deadline = time.monotonic() + 10
    while not any(entry.get("reason") == "slow_reader" for entry in server.log[seen:]):
        assert time.monotonic() < deadline, server.log[seen:]
        time.sleep(0.02)


def slow_readers(server: ServerProcess) -> float:
    found = re.search(r'code="slow_reader"\} (\S+)', server.get("/metrics")[1])
    return float(found[1]) if found is not None else 0.0


def test_a_reader_that_stopped_and_reads_on_soon_finds_the_reason_behind_the_rest(
    server: ServerProcess, bystander: Bystander
) -> None:
    with Peer(server) as peer:
        seen = len([entry for entry in server.log if entry["event"] == "session closed"])
        before = slow_readers(server)
        text = json.dumps({"type": "item.append", "item": {"role": "user", "text": "w" * 20_000}}).encode()
        peer.socket.settimeout(0.05)
        deadline = time.monotonic() + 30
        while slow_readers(server) == before:
            assert time.monotonic() < deadline
            with contextlib.suppress(TimeoutError):  # when the server reads no more either
                peer.send(Opcode.TEXT, text)
                peer.send(Opcode.TEXT, b'{"type":"reply.create"}')
        peer.socket.settimeout(30)
        events, code = peer.read_end()
    assert [event.get("code") for event in events if event["type"] == "error"][-1:] == ["slow_reader"]
    assert (events[-1]["type"], events[-1]["reason"], code) == ("session.closing", "slow_reader", 1008)
    deadline = time.monotonic() + 30
    while len([entry for entry in server.log if entry["event"] == "session closed"]) == seen:
        assert time.monotonic() < deadline
        time.sleep(0.02)
