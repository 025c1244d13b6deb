"""The listening half of a session: every sample goes to ``vad``; what belongs to a turn is captured for ``stt``.

::

    received --> [ear outbox: vad] --consumed--> detector --Start--> begin(turn) ... --Stop--> end()
                        |                                               |
                        '-- kept: padding, for capture and replay --> [capture outbox: stt] --FINAL--> committed

Audio is captured on the audio clock, only as far as vad has consumed it, so a turn's cut does not depend on timing.
Where nothing detects turns (by hand, or no vad engine) audio passes straight through to the capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from voiceserver.events.events import Accounting, StageAccounting, TurnDetection
from voiceserver.session.endpointing import Endpointer
from voiceserver.session.outbox import PIECE as PIECE
from voiceserver.session.outbox import Outbox
from voiceserver_workers.ipc.messages import RequestKind

DATA = RequestKind.DATA
WARM_MS = 200.0  # kept beside the padding, so that a replayed detector starts warm
SMALL_MS = 20.0  # what comes in shorter messages is kept in longer pieces
LONGEST_MESSAGE_MS = 2_000.0  # live audio comes in messages of this at most
AHEAD_MS = 1_000.0  # a caller whose audio runs further ahead of the clock than this is not live


class AudioInput:
    __slots__ = (
        "_captured_seq",
        "_captures",
        "_grace_ms",
        "_keep",
        "_paced_ms",
        "_turn",
        "awaited_ms",
        "capture",
        "endpointer",
        "ends_seq",
        "is_held_back",
        "is_paused",
        "limit",
        "outbox",
        "rate_hz",
        "received_seq",
    )

    def __init__(
        self,
        rate_hz: int,
        detection: TurnDetection | None,
        max_backlog_ms: float,
        start_seq: int = 0,
        *,
        captures: bool = True,
    ) -> None:
        """``captures`` False: turns are found, but nobody hears what is said in them."""
        self.rate_hz = rate_hz
        self._captures = captures
        self.limit = self.samples(max_backlog_ms)  # of both backlogs together
        self.is_held_back = False  # see ``holds_back``
        # When the audio received so far ends if it is live. A gap is forgotten but for this much, so that a burst after
        # a hiccup of the network is not taken for a recording, nor a recording after a silence for live audio.
        self._paced_ms = -math.inf
        self._grace_ms = max_backlog_ms / 4.0
        self.outbox = Outbox(self.samples(SMALL_MS))
        self.capture = Outbox(self.samples(SMALL_MS))
        self.received_seq = start_seq
        self._captured_seq = start_seq
        self._turn = 0
        self.awaited_ms = 0.0  # wall time at which a live caller's next message is due
        self.ends_seq = 0  # where a turn is ended that the client does not end
        self.is_paused = False  # between a pause and what comes of it
        self.endpointer: Endpointer | None = None
        self._keep = 0
        self.detect(detection)

    def detect(self, detection: TurnDetection | None) -> None:
        """Change how turns are found. None: by hand."""
        if detection is None:
            self.endpointer = None
            self._keep = 0
            return
        self._keep = self.samples(detection.prefix_padding_ms + detection.min_speech_ms + WARM_MS)
        if self.endpointer is None:
            self.endpointer = Endpointer(detection)
            self.endpointer.clock_ms = self.ms(self.outbox.consumed_seq)
        else:
            self.endpointer.settings = detection

    def ms(self, samples: int) -> float:
        return samples * 1000.0 / self.rate_hz

    def samples(self, ms: float) -> int:
        return int(ms * self.rate_hz / 1000.0 + 0.5)

    @property
    def capturing_turn(self) -> int:
        """The turn whose audio is being captured, 0 for none."""
        return self._turn

    @property
    def lag_ms(self) -> float:
        return self.ms(self.outbox.backlog + self.capture.backlog)

    def receive(self, pcm: bytes, now_ms: float) -> None:  # hot
        samples = len(pcm) >> 1
        if not samples:
            return
        if samples > PIECE:
            for at in range(0, samples * 2, PIECE * 2):
                self.receive(pcm[at : at + PIECE * 2], now_ms)
            self.awaited_ms = now_ms + min(self.ms(samples), LONGEST_MESSAGE_MS)
            return
        paced_ms, live_ms = self._paced_ms, now_ms - self._grace_ms
        message_ms = samples * 1000.0 / self.rate_hz
        self._paced_ms = (paced_ms if paced_ms > live_ms else live_ms) + message_ms
        self.awaited_ms = now_ms + message_ms
        self.received_seq += samples
        self.outbox.append(DATA, 0, self.received_seq, pcm, samples, now_ms)

    def holds_back(self, now_ms: float) -> bool:
        """Whether the caller must be read no further: it is ahead of the clock (a recording, sent as fast as it goes), and
        more than half of the bound waits. It lasts until less than a quarter waits; nothing is shed meanwhile."""
        backlog = self.outbox.backlog + self.capture.backlog
        if self.is_held_back:
            self.is_held_back = backlog * 4 > self.limit
        else:
            ahead_ms = self._paced_ms - now_ms
            self.is_held_back = backlog * 2 > self.limit and ahead_ms > min(AHEAD_MS, self._grace_ms)
        return self.is_held_back

    def quiet_due_ms(self, grace_ms: float) -> float:
        """Wall time at which the turn in progress ends because no audio comes any more; inf while that is not the question:
        turns are ended by hand, vad has not heard everything yet, or the server itself reads no further."""
        endpointer = self.endpointer
        if not self._turn or endpointer is None or self.outbox.backlog or self.is_held_back:
            return math.inf
        return self.awaited_ms + endpointer.silence_limit_ms + grace_ms

    def wait_again(self, now_ms: float) -> None:
        """Have ``quiet_due_ms`` come a whole grace after ``now_ms``."""
        if self.endpointer is not None:
            self.awaited_ms = now_ms - self.endpointer.silence_limit_ms

    def pass_through(self) -> None:
        """Nothing detects turns: what was received counts as heard, and is captured."""
        self.consume(self.received_seq)

    def consume(self, seq: int) -> None:  # hot
        outbox = self.outbox
        outbox.consume(seq)
        consumed_seq = outbox.consumed_seq
        keep_from_seq = consumed_seq - self._keep
        if self._turn:
            if self.is_paused:
                keep_from_seq = min(keep_from_seq, self._captured_seq)
            else:
                self._capture_until(consumed_seq)
        outbox.commit(keep_from_seq)

    def begin(self, turn: int, from_ms: float, decided_ms: float, now_ms: float) -> float:
        """Capture for ``turn`` from ``from_ms`` on, but nothing twice; returns where it really begins.

        What was heard before the decision at ``decided_ms`` counts as waiting from now on: it was not needed sooner.
        """
        self._turn = turn
        self._captured_seq = begun = max(self._captured_seq, self.samples(from_ms))
        self._capture_until(min(self.samples(decided_ms), self.outbox.consumed_seq), now_ms)
        return self.ms(begun)

    def pause(self, decided_ms: float, now_ms: float) -> None:
        """The caller may have ended: hand over what there is, mark it, and hold the silence that follows back."""
        self._capture_until(min(self.samples(decided_ms), self.outbox.consumed_seq))
        self.capture.append(RequestKind.PAUSE, self._turn, self._captured_seq, b"", 0, now_ms)
        self.is_paused = True

    def skip_partials(self, now_ms: float) -> None:
        """Nobody reads the partial transcripts of the turn being captured any more."""
        if self._turn:
            self.capture.append(RequestKind.FINAL_ONLY, self._turn, self._captured_seq, b"", 0, now_ms)

    def answers_pause(self, turn: int, seq: int) -> bool:
        """Whether a result at ``seq`` is of all that was said up to a pause that still lasts."""
        return self.is_paused and turn == self._turn and seq >= self._captured_seq

    def resume(self, decided_ms: float, now_ms: float) -> None:
        """The caller goes on: what was held back is needed after all, from now on."""
        self.is_paused = False
        self._capture_until(min(self.samples(decided_ms), self.outbox.consumed_seq), now_ms)

    def end(self, until_ms: float, now_ms: float, *, is_held: bool = False) -> int:
        """The turn ends at ``until_ms``: hand its last audio over and mark its end. Returns its turn.

        The silence after a pause is not handed over: nobody spoke in it. is_held: ``release`` will mark the end.
        """
        turn = self._turn
        until_seq = min(self.samples(until_ms), self.outbox.consumed_seq)
        if self.is_paused:
            self._captured_seq = max(self._captured_seq, until_seq)
        self._capture_until(until_seq)
        self.is_paused = False
        if not is_held:
            self.release(turn, now_ms)
        self._turn = 0
        return turn

    def release(self, turn: int, now_ms: float) -> None:
        """Mark the end of ``turn``, the latest: an answer to it is wanted."""
        self.capture.append(RequestKind.FLUSH, turn, self._captured_seq, b"", 0, now_ms)

    def clear(self) -> None:
        """Forget the turn being captured."""
        self._turn = 0
        self.is_paused = False
        self._captured_seq = max(self._captured_seq, self.outbox.consumed_seq)
        if self.endpointer is not None:
            self.endpointer.reset()

    def _capture_until(self, seq: int, waits_from_ms: float | None = None) -> None:  # hot
        if seq <= self._captured_seq:
            return
        if not self._captures:
            self._captured_seq = seq
            return
        for entry in self.outbox.span(self._captured_seq, seq):
            at_ms = entry.at_ms if waits_from_ms is None else waits_from_ms
            self.capture.append(RequestKind.DATA, self._turn, entry.seq, entry.payload, entry.units, at_ms)
        self._captured_seq = seq

    def shed(self, limit_ms: float) -> float:
        """Keep the backlog of both outboxes under ``limit_ms``; returns the ms dropped (oldest first)."""
        limit = self.samples(limit_ms)
        excess = self.outbox.backlog + self.capture.backlog - limit
        if excess <= 0:
            return 0.0
        dropped = self.capture.shed(max(self.capture.backlog - excess, 0))
        if dropped < excess:
            dropped += self.outbox.shed(max(self.outbox.backlog - (excess - dropped), 0))
        return self.ms(dropped)

    @property
    def memory_bytes(self) -> int:
        return self.outbox.memory_bytes + self.capture.memory_bytes

    def accounting(self, audio_stage: str) -> Accounting:
        """``received = consumed + dropped + discarded`` in ms, exact to the sample. ``audio_stage``: that takes the capture.

        Audio that vad consumed but that the stage shed or never got is not consumed: it moves to dropped or discarded. What is
        still buffered counts as discarded; at close that is what it is.
        """
        outbox, capture, ms = self.outbox, self.capture, self.ms
        late_dropped, late_discarded = capture.dropped, capture.discarded + capture.backlog
        return Accounting(
            received_ms=round(ms(outbox.received), 3),
            consumed_ms=round(ms(outbox.consumed - late_dropped - late_discarded), 3),
            dropped_ms=round(ms(outbox.dropped + late_dropped), 3),
            discarded_ms=round(ms(outbox.discarded + outbox.backlog + late_discarded), 3),
            stages={"vad": _of_stage(outbox, ms), audio_stage: _of_stage(capture, ms)},
        )

    def check(self) -> None:
        self.outbox.check()
        self.capture.check()


def _of_stage(outbox: Outbox, ms: Callable[[int], float]) -> StageAccounting:
    return StageAccounting(
        received_ms=round(ms(outbox.received), 3),
        consumed_ms=round(ms(outbox.consumed), 3),
        dropped_ms=round(ms(outbox.dropped), 3),
        discarded_ms=round(ms(outbox.discarded + outbox.backlog), 3),
    )
