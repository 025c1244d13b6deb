"""A session on a manual clock, with hands for everything that reaches it: a caller, four stages, time.

``Bench.hear`` speaks audio *and* lets a perfect vad answer, so that a test reads like a conversation. Streams open by
themselves unless ``refuses`` names the stage; what was sent to a stage lies in ``sent[stage]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from voiceserver.config.schema import Config
from voiceserver.errors import Refusal
from voiceserver.events import events as ev
from voiceserver.session.session import Session
from voiceserver.session.settings import ServerSnapshot, SessionSettings
from voiceserver_workers.ipc.messages import Record, RequestKind, ResultKind, StreamParams, pack_speech

RATE_HZ = 16_000
OUT_HZ = 24_000
WINDOW_MS = 32.0
CHUNK_MS = 32
E = TypeVar("E", bound=msgspec.Struct)


def settings_of(**changes: object) -> SessionSettings:
    base = SessionSettings.from_config(Config())
    return msgspec.structs.replace(base, check_laws=True, **changes)


def speech_of(probability: float, seq: int, windows: int = 1, rate_hz: int = RATE_HZ) -> Record:
    end_ms = seq * 1000.0 / rate_hz
    payload = pack_speech(end_ms - windows * WINDOW_MS, WINDOW_MS, [probability] * windows)
    return Record(ResultKind.SPEECH, 1, 0, seq, payload)


class Bench:
    def __init__(self, settings: SessionSettings | None = None, **options: object) -> None:
        settings = settings or settings_of()
        if options:
            changed = msgspec.structs.replace(settings.options, **options)
            settings = msgspec.structs.replace(settings, options=changed)
        self.session = Session("s1", settings, ServerSnapshot(), input_rate_hz=RATE_HZ, output_rate_hz=OUT_HZ)
        self.now_ms = 1_000.0
        self.sent: dict[str, list[tuple[int, int, int, bytes]]] = {}
        self.open_stages: set[str] = set()
        self.opened: list[str] = []
        self.refuses: dict[str, Refusal] = {}
        self.lighter: set[str] = set()
        self.params: dict[str, StreamParams] = {}
        self.events: list[ev.ServerEvent] = []
        self.vad_answers = True
        self.stt_answers = True
        self.vad_seq = 0
        self.seq = 0
        self.session.open(self.now_ms)
        self.pump()
        self.events.clear()

    # ---- the shell

    def pump(self) -> None:
        session = self.session
        for _ in range(20):
            unwanted, wanted = session.streams_to_change()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                self.open_stages.discard(stage)
                session.stream_closed(stage)
            for stage in wanted:
                refusal = self.refuses.get(stage)
                if refusal is not None:
                    session.stream_refused(stage, refusal, self.now_ms)
                    continue
                self.open_stages.add(stage)
                self.opened.append(stage)
                self.params[stage] = session.stream_params(stage)
                session.stream_opened(stage, self.now_ms, is_lighter=stage in self.lighter)
        else:
            raise AssertionError("the pump does not come to rest")
        for stage in session.stages_with_requests():
            assert stage in self.open_stages
            outbox = session.outbox_of(stage)
            assert outbox is not None
            sent = self.sent.setdefault(stage, [])
            outbox.send_to(lambda *request: sent.append(request) is None)  # noqa: B023
        self.events += session.events_to_send()

    def pass_time(self, ms: float) -> None:
        """Let timers fire in order until ``ms`` have passed."""
        end_ms = self.now_ms + ms
        while self.session.deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, self.session.deadline_ms)
            before = self.session.deadline_ms
            self.session.handle_timer(self.now_ms)
            self.pump()
            assert self.session.deadline_ms > before, "a deadline that does not move is a busy loop"
        self.now_ms = end_ms

    def do(self, event: ev.ClientEvent) -> None:
        self.session.receive_event(event, self.now_ms)
        self.pump()

    def result(
        self, stage: str, kind: ResultKind, turn: int = 0, seq: int = 0, payload: bytes | str = b""
    ) -> None:
        data = payload.encode() if isinstance(payload, str) else payload
        self.session.receive_result(stage, Record(kind, 1, turn, seq, data), self.now_ms)
        self.pump()

    def lose(self, stage: str, reason: str = "worker_lost") -> None:
        self.open_stages.discard(stage)
        self.session.lose_stream(stage, reason, self.now_ms)
        self.pump()

    # ---- the caller

    def hear(self, ms: float, probability: float) -> None:
        """The caller sends ``ms`` of audio in real time; vad answers each window at once if it is alive."""
        for _ in range(round(ms / CHUNK_MS)):
            self.pass_time(CHUNK_MS)
            samples = RATE_HZ * CHUNK_MS // 1000
            self.seq += samples
            self.session.receive_audio(b"\1\0" * samples, self.now_ms)
            self.pump()
            if self.vad_answers:
                self.answer_vad(probability)
            if self.stt_answers and "stt" in self.open_stages:
                self.take_stt()

    def answer_vad(self, probability: float) -> None:
        windows = (self.seq - self.vad_seq) * 1000 // RATE_HZ // CHUNK_MS
        self.vad_seq = self.seq
        self.session.receive_result("vad", speech_of(probability, self.seq, windows), self.now_ms)
        self.pump()

    def say(self, ms: float = 640) -> None:
        self.hear(ms, 0.9)

    def pause(self, ms: float = 640) -> None:
        self.hear(ms, 0.01)

    # ---- the stages

    @property
    def turn(self) -> int:
        return self.session.turn

    def take_stt(self) -> None:
        """stt consumes everything that it was sent."""
        sent = self.sent.get("stt", [])
        if sent:
            self.result("stt", ResultKind.CONSUMED, sent[-1][1], sent[-1][2])

    def transcribe(self, text: str, turn: int | None = None) -> None:
        sent = [one for one in self.sent["stt"] if one[0] == RequestKind.FLUSH]
        last = next(one for one in reversed(sent) if turn in (None, one[1]))
        self.result("stt", ResultKind.FINAL, last[1], last[2], text)

    def answer(self, *sentences: str, is_done: bool = True, turn: int | None = None) -> None:
        reply = self.session.reply
        turn = turn or (reply.turn if reply is not None else 0)
        for sentence in sentences:
            self.result("reply", ResultKind.TEXT, turn, 1, sentence)
        if is_done:
            self.result("reply", ResultKind.DONE, turn, 1)

    def speak(self, sentence: int, ms: float, *, is_done: bool = True, turn: int | None = None) -> None:
        reply = self.session.reply
        turn = turn or (reply.turn if reply is not None else 0)
        if ms:
            self.result("tts", ResultKind.AUDIO, turn, sentence, bytes(int(OUT_HZ * ms / 1000) * 2))
        if is_done:
            self.result("tts", ResultKind.DONE, turn, sentence)

    def converse(self, text: str = "hello") -> None:
        """A whole utterance up to its transcript."""
        self.say()
        self.pause()
        self.take_stt()
        self.transcribe(text)

    # ---- what was said

    def take(self) -> list[ev.ServerEvent]:
        taken, self.events = self.events, []
        return taken

    def all(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        found = self.all(kind)
        assert len(found) == 1, f"{len(found)} of {kind.__name__} in {self.names()}"
        return found[0]

    def names(self) -> list[str]:
        return [event.__struct_config__.tag for event in self.events]

    def asked(self) -> Mapping[str, object]:
        """The last request to the reply stage."""
        return json.loads(self.sent["reply"][-1][3])

    def roles(self) -> list[tuple[str, str]]:
        return [(item.role, item.text) for item in self.session.speech_output.history.items]
