"""Whatever a connection loses, the server gets every sample and every control event once, each event in its place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from voiceserver_clients.sending import AudioLog, EventLog

RATE_HZ = 1_000  # a sample is a millisecond

# What a person does (audio of so many samples, or a control event), and how many messages of each connection arrive.
steps = st.lists(st.one_of(st.integers(1, 40), st.just("event")), max_size=30)
arrivals = st.lists(st.integers(0, 12), max_size=8)


class Wire:
    """A server behind connections that break after so many messages; what it has, in the order in which it came."""

    def __init__(self) -> None:
        self.samples = 0
        self.events = 0
        self.got: list[tuple[str, int]] = []

    def take(self, item: bytes | str) -> None:
        if isinstance(item, bytes):
            for value in memoryview(item).cast("h"):
                self.got.append(("sample", value))
            self.samples += len(item) // 2
        else:
            self.got.append(("event", int(item)))
            self.events += 1


@given(steps, arrivals, st.integers(1, 9))
def test_each_sample_and_each_event_comes_once_in_its_place(
    said: list[int | str], breaks: list[int], chunk: int
) -> None:
    audio, events, wire = AudioLog(RATE_HZ, keep_ms=10_000.0), EventLog(keep=1_000), Wire()
    expected: list[tuple[str, int]] = []
    samples = count = 0
    for step in said:
        if isinstance(step, int):
            for start in range(0, step, chunk):
                part = range(samples + start, samples + min(start + chunk, step))
                audio.append(b"".join((value % 30_000).to_bytes(2, "little") for value in part))
            expected += [("sample", value % 30_000) for value in range(samples, samples + step)]
            samples += step
        else:
            events.append(str(count), audio.end)
            expected.append(("event", count))
            count += 1
    for arrives in [*breaks, 10**9]:
        audio.rewind(wire.samples * 1000 / RATE_HZ)
        assert events.rewind(wire.events) == 0
        sent = 0
        while True:
            message, piece = events.peek(audio.cursor), audio.peek()
            item = message if message is not None else piece
            if item is None:
                break
            if message is not None:
                events.advance()
            else:
                audio.advance()
            sent += 1
            if sent <= arrives:
                wire.take(item)
            elif sent > arrives + 3:
                break  # the client has noticed
    assert wire.got == expected


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 5))
def test_what_is_no_longer_kept_is_counted(said: int, received: int, keep: int) -> None:
    events = EventLog(keep)
    for number in range(said):
        assert events.append(str(number), 0) == number
        events.advance()
    missing = events.rewind(min(received, said))
    assert missing == max(said - keep - min(received, said), 0)
    assert events.sent == min(max(received, said - keep, 0), said)
