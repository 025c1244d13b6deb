"""A caller of the simulation: the shell's part for one connection, a person who knows what was said, and the promises to it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np

from tests.simulation.engines import POISON, RATE_HZ, WORD, speech_of
from tests.voiceserver.audit import Audit
from voiceserver.capacity import outage
from voiceserver.capacity.admission import Ticket
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver.pool import LossReason, Stream
from voiceserver.session import deadlines
from voiceserver.session.session import Session
from voiceserver.transport.call_messages import is_worth_keeping
from voiceserver.transport.replay_buffer import ReplayBuffer
from voiceserver.transport.session_store import HOLD_MS
from voiceserver_workers.ipc.messages import Record

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK_MS = 20
CHUNK = 40  # samples of one message of a caller
HEALED_MS = 4_000.0
END_MS = 30_000.0  # every session is over by then, or the promise is broken


class Caller:
    """One connection: what the shell does, and a person who says words and knows which."""

    def __init__(self, world: World, name: str, start_ms: float) -> None:
        rng = world.rng
        self.world, self.name, self.start_ms = world, name, start_ms
        self.audit = Audit(lambda text: speech_of(text).tobytes())
        self.streams: dict[str, Stream] = {}
        self.ticket: Ticket | None = None
        self.refusal: Refusal | None = None
        self.session: Session | None = None
        self.words: list[int] = []
        self.audio = self._script(rng)
        self.sent = 0
        self.lost_words = False  # an engine failed on a turn, and said so
        self.leaves_ms = start_ms + rng.uniform(200, 4_000) if rng.random() < 0.12 else float("inf")
        self.is_slow_reader = rng.random() < 0.15
        self.is_poisonous = POISON in self.words
        self.waits_for_reply = rng.random() < 0.5
        self.is_impatient = rng.random() < 0.3
        self.gave_up = False
        self.closed_ms = 0.0
        self.said = ReplayBuffer()  # what it was told, by number
        self.on_the_way: list[int] = []
        self.received: list[int] = []
        self.drops = self._draw_drops(random.Random(f"drops {world.seed} {name}"))
        self.is_away = False
        self.away_from_ms = self.back_ms = 0.0
        self.resumes = 0

    def _script(self, rng: random.Random) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        parts = [np.zeros(rng.randrange(20, 300), np.int16)]
        for _ in range(rng.randrange(1, 4)):
            for _ in range(rng.randrange(1, 4)):
                word = self.world.next_word()
                if rng.random() < 0.01:
                    word = POISON
                self.words.append(word)
                parts += [np.full(WORD, word, np.int16), np.zeros(rng.randrange(20, 80), np.int16)]
            parts.append(np.zeros(rng.choice([100, 320, 320, 700]), np.int16))
        return np.concatenate(parts)

    def _draw_drops(self, rng: random.Random) -> list[tuple[float, float]]:
        """When the connection breaks, and how long it takes to come back: in one world of four."""
        if self.world.seed % 4 != 3:
            return []
        times = sorted(self.start_ms + rng.uniform(50, HEALED_MS) for _ in range(rng.randrange(0, 5)))
        return [(at_ms, rng.choice([20.0, 150.0, 600.0, HOLD_MS + 500.0])) for at_ms in times]

    # ---- the shell: as in voiceserver.transport.call

    def on_result(self, stage: str, record: Record) -> None:
        assert self.session is not None
        self.session.receive_result(stage, record, self.world.now_ms)

    def on_stream_lost(self, stage: str, reason: LossReason) -> None:
        assert self.session is not None
        self.streams.pop(stage)
        needed, signals = self.session.demand().get(stage, False), self.audit.signals
        was_closed = self.session.is_closed
        self.session.lose_stream(stage, reason, self.world.now_ms)
        self.hear()
        told = self.audit.signals > signals or self.session.is_closed
        is_quiet = reason == "moved" or self.is_away
        assert told or not needed or was_closed or is_quiet, f"{self.name} was not told that {stage} is lost"

    def on_room(self, stage: str) -> None:
        assert self.session is not None
        self.session.retry(stage)

    def on_tick(self) -> None:
        self.pump()

    def pump(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        if session.is_settled:
            assert session.streams_to_change() == ([], []), "settled, and wants other streams"
        session.is_settled = True
        for _ in range(30):
            unwanted, wanted = session.streams_to_change()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                self.streams.pop(stage).close()
                session.stream_closed(stage)
            for stage in wanted:
                pool = self.world.tiers[stage]
                got = pool.try_open(self, session.stream_params(stage), key=self.name)
                if isinstance(got, Refusal):
                    session.stream_refused(stage, got, now_ms)
                else:
                    self.streams[stage] = got
                    session.stream_opened(stage, now_ms, is_lighter=got.is_lighter)
        else:
            raise AssertionError("the pump does not come to rest")
        for stage in session.stages_with_requests():
            outbox = session.outbox_of(stage)
            assert outbox is not None
            outbox.send_to(self.streams[stage].send)
        self.hear()
        if session.is_closed and self.ticket is not None:
            assert not self.streams
            self.closed_ms = now_ms
            self.ticket.release(now_ms)
            self.ticket = None

    def hear(self) -> None:
        assert self.session is not None
        for event in self.session.events_to_send():
            if self.is_away and not is_worth_keeping(event):
                continue
            self.audit.take(event)
            if not self.is_away:
                self.on_the_way.append(self.said.count)
            self.said.add(self.said.count.to_bytes(8, "big"))
            if type(event) is not ev.ReplyAudio:
                self.world.diary.append(f"{self.name} {self.world.now_ms} {event}")
            if isinstance(event, ev.TranscriptFailed | ev.ErrorEvent):
                self.lost_words = True

    def hear_of_outage(self, *, is_back: bool = False) -> None:
        """A stage has no worker, or has one again: as in ``Call.on_outage``, for who is connected."""
        session = self.session
        assert session is not None
        if self.is_away or session.is_closed:
            return
        missing = self.world.outage.missing_for(session.options)
        signals = self.audit.signals
        outage.tell(session, missing, is_back=is_back)
        self.pump()
        if missing is not None and session.is_open:
            waits = {wait.stage for wait in deadlines.delays(session)}
            is_told = self.audit.signals > signals or session.place is not None or missing.stage in waits
            assert is_told, f"{self.name} was not told that {missing.stage} has no worker"
        elif missing is None:
            assert not session.gone

    def break_off(self, away_ms: float) -> None:
        """The connection is gone, and what was on its way in either direction with it."""
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        self.is_away, self.away_from_ms, self.back_ms = True, now_ms, now_ms + away_ms
        self.on_the_way.clear()
        session.hold_output(True, now_ms)
        self.world.diary.append(f"{self.name} {now_ms} away for {away_ms}")

    def come_back(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        self.is_away = False
        self.resumes += 1
        ready = session.resume(f"token {self.resumes}", now_ms)
        self.sent = int(ready.received_ms)
        self.audit.degraded = ()  # ``session.ready`` begins afresh; who is still busy hears so again within a second
        self.audit.is_busy = bool(session.gone) or (
            session.busy_monitor is not None and session.busy_monitor.is_busy
        )
        self.on_the_way = [int.from_bytes(frame, "big") for frame in self.said.after(len(self.received))]
        self.hear_of_outage(is_back=True)
        self.pump()

    def receive(self) -> None:
        """What was on its way has arrived; now and then the server learns of it."""
        self.received += self.on_the_way
        self.on_the_way.clear()
        if len(self.received) % 3 == 0:
            self.said.acknowledge(len(self.received))

    def be_away(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        if now_ms >= self.away_from_ms + HOLD_MS and not session.is_resting:
            session.rest(now_ms)
        if now_ms >= self.back_ms:
            self.come_back()
        else:
            self.pump()

    # ---- the person

    def arrive(self) -> None:
        world = self.world
        got = world.admission.try_enter(world.now_ms)
        if isinstance(got, Refusal):
            self.refusal = got
            assert got.retry_after_ms > 0
            return
        self.ticket = got
        got.owner = self
        rate_hz = RATE_HZ
        self.session = Session(
            self.name, world.settings, world.server_snapshot, input_rate_hz=rate_hz, output_rate_hz=rate_hz
        )
        self.session.open(world.now_ms)
        if got.is_waiting:
            self.session.waiting(got.position, got.estimate_ms, world.now_ms)
        self.pump()
        self.hear_of_outage()

    def move(self) -> None:
        session, now_ms = self.session, self.world.now_ms
        assert session is not None
        if self.drops and now_ms >= self.drops[0][0]:
            _, away_ms = self.drops.pop(0)
            if not self.is_away and not session.is_closed:
                self.break_off(away_ms)
        if self.is_away and not (now_ms >= self.leaves_ms and not session.is_closed):
            self.be_away()
            return
        if not self.is_away:
            self.receive()
        if session.is_closed:
            return
        if now_ms >= self.leaves_ms:
            session.disconnect(now_ms)
        elif self.sent < len(self.audio):
            due = int(now_ms - self.start_ms)
            while self.sent < len(self.audio) and min(self.sent + CHUNK, len(self.audio)) <= due:
                chunk = self.audio[self.sent : self.sent + CHUNK]
                session.receive_audio(chunk.tobytes(), now_ms)
                self.sent += len(chunk)
        elif session.is_open and (
            not self.waits_for_reply or session.stage_of_turn == "idle" or now_ms > HEALED_MS + 3_000
        ):
            if session.place is not None and not self.is_impatient:
                return
            self.gave_up = session.place is not None  # who leaves the waiting room is let go at once
            session.receive_event(ev.SessionClose(), now_ms)
        if self.is_slow_reader and not session.is_closed and not self.is_away:
            session.hold_output(now_ms < HEALED_MS and int(now_ms / 500) % 2 == 0, now_ms)
        self.pump()

    def serve_deadline(self) -> None:
        session = self.session
        if session is not None and session.deadline_ms <= self.world.now_ms:
            session.handle_timer(self.world.now_ms)
            self.pump()

    # ---- the promises

    def check(self) -> None:
        session = self.session
        if session is None or session.is_closed:
            return
        audio_input, now_ms = session.audio_input, self.world.now_ms
        if audio_input is not None:
            audio_input.check()
            books = session.accounting()
            total_ms = books.consumed_ms + books.dropped_ms + books.discarded_ms
            assert abs(books.received_ms - total_ms) < 0.002
            assert books.received_ms == self.sent
            waiting_ms = session.busy_monitor.dropped_ms if session.busy_monitor is not None else 0.0
            assert abs(books.dropped_ms - self.audit.dropped_ms - waiting_ms) < 0.01
        if self.audit.is_busy and not self.is_away:
            is_minded = bool(session.gone) or (
                session.busy_monitor is not None and session.busy_monitor.is_busy
            )
            assert is_minded, f"{self.name} was told busy, and nobody will say when that is over"
        owed_ms = self._waits_since_ms(session)
        if now_ms - owed_ms > session.settings.backpressure.busy_after_ms + TICK_MS:
            assert session.busy_monitor is not None, f"{self.name} waits since {owed_ms} and was told nothing"
            assert session.busy_monitor.is_busy, f"{self.name} waits since {owed_ms} and was told nothing"
            told_ms = now_ms - session.busy_monitor.signalled_ms
            assert told_ms <= session.settings.backpressure.busy_repeat_ms + TICK_MS, "no fresh numbers"

    def _waits_since_ms(self, session: Session) -> float:
        since = [self.world.now_ms]
        if session.place is not None:
            return session.place.since_ms
        boxes = (
            [("vad", session.audio_input.outbox), ("stt", session.audio_input.capture)]
            if session.audio_input is not None
            else []
        )
        reply = session.reply
        if reply is not None and not session.is_output_held:
            boxes.append(("tts", reply.say))
        since += [
            box.oldest_at_ms
            for name, box in boxes
            if session.demand().get(name, False) and box.oldest_at_ms is not None
        ]
        return min(since)

    def judge(self) -> None:
        """At the end: served, or told."""
        if self.refusal is not None:
            return
        session = self.session
        assert session is not None
        assert session.is_closed, f"{self.name} is still open: {session.stage_of_turn}, {session.deadline_ms}"
        if session.close_code != 1006:
            self.receive()
            assert self.received == list(range(self.said.count)), "a message was lost, or came twice"
        closing = self.audit.closing
        assert closing is not None
        books = closing.accounting
        said = [int(part.split(":")[0]) for text in self.audit.finals.values() for part in text.split()]
        assert said == sorted(set(said), key=self.words.index), (
            f"{self.name}: words twice or out of order: {said}"
        )
        if self.gave_up:
            assert not said
            return
        is_hurried = session.settings.close_timeout_ms < 1_000.0 and books.discarded_ms > 0.0
        is_whole = session.close_code == 1000 and not (self.lost_words or books.dropped_ms or is_hurried)
        if not is_whole:
            assert self.lost_words or books.dropped_ms or is_hurried or session.close_code in (1006, 1011)
            return
        assert books.discarded_ms == 0.0
        heard = " ".join(text for _, text in sorted(self.audit.finals.items()) if text)
        assert heard == " ".join(f"{word}:{WORD}" for word in self.words), f"{self.name}: words lost"
        assert closing.reason == "client"
        assert self.closed_ms < END_MS - 5_000
