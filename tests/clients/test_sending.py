"""Credit and audio log against a plain model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver_clients.sending import AudioLog, Credit


class TestCredit:
    def test_a_server_without_a_window_never_makes_the_client_wait(self) -> None:
        credit = Credit()
        assert credit.wait_ms(1e9, now_ms=0) == 0

    def test_busy_allows_exactly_its_credit(self) -> None:
        credit = Credit()
        credit.receive_busy(250, now_ms=0)
        credit.take(200, now_ms=0)
        assert credit.wait_ms(50, now_ms=0) == 0
        assert credit.wait_ms(51, now_ms=1e9) == math.inf

    def test_ready_lifts_what_busy_imposed(self) -> None:
        credit = Credit()
        credit.receive_busy(0, now_ms=0)
        credit.receive_ready(0, now_ms=10)
        assert credit.wait_ms(60_000, now_ms=10) == 0

    def test_window_refills_in_real_time_and_never_above_itself(self) -> None:
        credit = Credit()
        credit.receive_ready(1_000, now_ms=0)
        credit.take(1_000, now_ms=0)
        assert credit.wait_ms(300, now_ms=100) == pytest.approx(200)
        assert credit.left_ms(now_ms=60_000) == 1_000

    def test_chunk_longer_than_the_window_leaves_when_the_window_is_full(self) -> None:
        credit = Credit()
        credit.receive_ready(50, now_ms=0)
        assert credit.wait_ms(100, now_ms=0) == 0
        credit.take(100, now_ms=0)
        assert credit.wait_ms(100, now_ms=0) == pytest.approx(100)

    @given(st.lists(st.floats(0, 500), max_size=60))
    def test_a_microphone_never_waits(self, jitter: list[float]) -> None:
        credit = Credit()
        credit.receive_ready(1_000, now_ms=0)
        for index, late in enumerate(
            jitter
        ):  # a 20 ms chunk every 20 ms, delivered late but within the window
            now_ms = index * 20 + late
            if credit.left_ms(now_ms) > 500:
                assert credit.wait_ms(20, now_ms) == 0
                credit.take(20, now_ms)


class TestAudioLog:
    def test_half_a_sample_is_an_error_and_changes_nothing(self) -> None:
        log = AudioLog(16_000)
        with pytest.raises(ValueError, match="whole number"):
            log.append(b"abc")
        assert log.end_ms == 0

    def test_without_keeping_nothing_stays_behind_the_cursor(self) -> None:
        log = AudioLog(1_000)
        for _ in range(3):
            log.append(bytes(20))
            log.advance()
        assert log.peek() is None
        assert log.rewind(0) == 30  # all of it is gone: the gap is told

    def test_rewind_cuts_a_chunk_at_the_exact_sample(self) -> None:
        log = AudioLog(1_000, keep_ms=1_000)
        log.append(bytes(range(20)))
        log.advance()
        assert log.rewind(3) == 0
        assert log.sent_ms == 3
        assert log.peek() == bytes(range(6, 20))

    def test_restart_keeps_only_what_was_not_sent(self) -> None:
        log = AudioLog(1_000, keep_ms=1_000)
        log.append(b"aa")
        log.append(b"bb")
        log.advance()
        log.restart()
        assert (log.peek(), log.sent_ms, log.end_ms) == (b"bb", 0, 1)

    @given(
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
        steps=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=40),
        keep=st.integers(0, 200),
    )
    def test_server_hears_every_sample_once_in_order_except_told_gaps(
        self, sizes: list[int], steps: list[float | None], keep: int
    ) -> None:
        """None sends the next chunk; a number is a reconnect to a server that has that share of what was sent."""
        total = sum(sizes)
        audio = b"".join(number.to_bytes(2, "little") for number in range(total))
        log = AudioLog(1_000, keep_ms=keep)
        at = 0
        for size in sizes:
            log.append(audio[at * 2 : (at + size) * 2])
            at += size
        heard: list[int] = []
        told_gap_ms = 0.0

        def send() -> None:
            chunk = log.peek()
            if chunk is not None:
                heard.extend(int.from_bytes(chunk[i : i + 2], "little") for i in range(0, len(chunk), 2))
                log.advance()

        for step in steps:
            if step is None:
                send()
                continue
            del heard[int(len(heard) * step) :]  # the tail never arrived
            reached = heard[-1] + 1 if heard else 0
            told_gap_ms += log.rewind(reached)
        while log.peek() is not None:
            send()
        assert heard == sorted(set(heard))
        assert total - len(heard) <= told_gap_ms
        if keep >= total:
            assert heard == list(range(total))
