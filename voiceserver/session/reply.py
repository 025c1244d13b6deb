"""One reply: its request, its sentences on the way through tts, and what the caller has heard of it.

Everything here is idempotent by position, so that a stage which died can be replayed: sentences that were received before
are passed over by count, audio of a sentence that was sent before by samples. Nothing is said twice.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

from voiceserver.events.events import HistoryItem, ReplyCreate, Timings
from voiceserver.events.memory import OBJECT_BYTES, create_bytes, text_bytes
from voiceserver.session.outbox import Outbox
from voiceserver.session.spoken_text import SpokenText
from voiceserver.session.text import count_words, join, split
from voiceserver_workers.ipc.messages import RequestKind, Usage

WORD_MS: Final = (
    400.0  # 150 words a minute, the usual pace of a conversation; what is said faster is said again in part
)

Reason = Literal["completed", "interrupted", "cancelled", "failed", "limited", "filtered"]


class Ending(NamedTuple):
    """How a reply ends when all that came of it was said; ``code`` and ``message`` of one that failed."""

    reason: Reason = "completed"
    code: str = ""
    message: str = ""


class ToolCall:
    __slots__ = ("_replayed", "arguments", "call_id", "name")

    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self.arguments = ""
        self._replayed = 0

    def receive(self, arguments: str) -> str:
        """What of the next piece of the arguments is new."""
        passed = min(self._replayed, len(arguments))
        self._replayed -= passed
        self.arguments += arguments[passed:]
        return arguments[passed:]

    def replay(self) -> None:
        self._replayed = len(self.arguments)


class Reply:
    __slots__ = (
        "_replayed_samples",
        "_replayed_texts",
        "alive_ms",
        "ask",
        "asked_ms",
        "create",
        "decided_ms",
        "end_of_speech_ms",
        "ending",
        "endpointing_ms",
        "filler_samples",
        "fillers",
        "first_audio_at_ms",
        "first_text_at_ms",
        "is_finished_asking",
        "needs_tts",
        "output_rate_hz",
        "plays_from_ms",
        "progress_ms",
        "request",
        "samples_sent",
        "say",
        "speaks",
        "stt_ms",
        "texts_received",
        "tool_calls",
        "turn",
        "usage",
        "words",
    )

    def __init__(
        self,
        turn: int,
        create: ReplyCreate,
        speaks: bool,
        output_rate_hz: int,
        now_ms: float,
        language: str = "",
    ) -> None:
        self.turn = turn
        self.create = create
        self.speaks = speaks
        self.needs_tts = speaks  # False where the reply stage speaks itself
        self.output_rate_hz = output_rate_hz
        self.asked_ms = now_ms
        self.progress_ms = now_ms  # when a stage last answered
        self.alive_ms = now_ms  # when the reply stage last showed that it is at work
        # When a client that plays without a pause comes to the beginning of this reply. A pause moves it.
        self.plays_from_ms = -math.inf
        self.decided_ms = now_ms
        self.end_of_speech_ms: float | None = None
        self.endpointing_ms: float | None = None
        self.stt_ms: float | None = None
        self.request = b""  # what the reply stage was asked
        self.texts_received = (
            0  # of that request; also what an earlier reply, which this one continues, received of it
        )
        self.ask = Outbox()
        self.say = Outbox()
        self.first_text_at_ms: float | None = None
        self.first_audio_at_ms: float | None = None
        self.is_finished_asking = False
        self.ending = Ending()
        self.samples_sent = 0
        self.fillers = 0  # that were heard while it was late,
        self.filler_samples = 0  # and are the beginning of its audio
        self.usage = Usage()
        self.tool_calls: dict[int, ToolCall] = {}
        self.words = SpokenText(language)
        self._replayed_texts = 0  # pieces of text still to be passed over after a replay
        self._replayed_samples = 0

    @property
    def text(self) -> str:
        """What was answered so far; the pieces bring their own spaces."""
        return "".join(self.words.sentences)

    @property
    def has_begun(self) -> bool:
        return self.first_text_at_ms is not None or bool(self.tool_calls) or self.has_spoken

    @property
    def has_spoken(self) -> bool:
        """There was audio that is more than a filler."""
        return self.samples_sent > self.filler_samples

    @property
    def audio_ms(self) -> float:
        """What was sent, fillers included: what a client counts."""
        return self.samples_sent * 1000.0 / self.output_rate_hz

    @property
    def plays_until_ms(self) -> float:
        return self.plays_from_ms + self.audio_ms

    def receive_text(self, piece: str, now_ms: float) -> str:
        """A piece of the engine's text: what of it is shown. "": nothing, or it was received before the replay."""
        if self._replayed_texts:
            self._replayed_texts -= 1
            return ""
        self.texts_received += 1
        return self.add_text(self.words.answer_in(piece), now_ms)

    def finish_text(self, now_ms: float) -> str:
        """The engine has said all: what is still to be shown."""
        return self.add_text(self.words.rest_of_answer(), now_ms)

    def add_text(self, text: str, now_ms: float, spoken: str | None = None) -> str:
        """The next sentence, as it is shown. ``spoken``: its prose, where that is known."""
        if not text:
            return ""
        shown = self.words.add(text, spoken if self.needs_tts else "")
        if self.first_text_at_ms is None:
            self.first_text_at_ms = now_ms
        if self.needs_tts:
            prose, seq = self.words.spoken[-1], len(self.words.spoken)
            if prose:
                self.say.append(RequestKind.DATA, self.turn, seq, prose.encode(), 1, now_ms)
            self.words.settle(self.samples_sent)
        return shown

    def continue_from(self, old: Reply, request: bytes, now_ms: float) -> None:
        """Ask for what ``old`` was asked for once more; what it had received is passed over."""
        self.ask.append(RequestKind.DATA, self.turn, 1, request, 1, now_ms)
        self.request = request
        self.texts_received = self._replayed_texts = old.texts_received

    def receive_audio(self, sentence: int, pcm: bytes, now_ms: float) -> bytes:
        """What of ``pcm`` is new to the caller."""
        if sentence <= len(self.words.audio_ends):
            return b""
        if self._replayed_samples:
            passed = min(self._replayed_samples, len(pcm) >> 1)
            self._replayed_samples -= passed
            pcm = pcm[passed * 2 :]
        if pcm:
            if self.first_audio_at_ms is None:
                self.first_audio_at_ms = now_ms
            self._send(len(pcm) >> 1, now_ms)
        self.say.consume(sentence)
        return pcm

    def receive_filler(self, samples: int, now_ms: float) -> None:
        self.fillers += 1
        self.filler_samples += samples
        self._send(samples, now_ms)

    def _send(self, samples: int, now_ms: float) -> None:  # hot
        # Where the client has played everything before, it goes on from now.
        plays_from_ms = now_ms - self.audio_ms
        if plays_from_ms > self.plays_from_ms:
            self.plays_from_ms = plays_from_ms
        self.samples_sent += samples

    def finish_sentence(self, sentence: int) -> None:
        self.say.consume(sentence)
        self.say.commit(sentence)
        self.words.finish(sentence, self.samples_sent)
        self._replayed_samples = 0

    def replay_ask(self) -> None:
        """The reply stage died and will be asked again."""
        self.ask.rewind()
        self._replayed_texts = self.texts_received
        for call in self.tool_calls.values():
            call.replay()

    def replay_say(self) -> None:
        """The tts stage died: the sentence in progress is made again from its beginning."""
        self.say.rewind()
        begin = self.words.audio_ends[-1] if self.words.audio_ends else self.filler_samples
        self._replayed_samples = self.samples_sent - begin

    @property
    def is_complete(self) -> bool:
        return self.is_finished_asking and (not self.needs_tts or self.say.is_empty)

    def heard_text(self, played_ms: float) -> str:
        """The text that fits into ``played_ms`` of audio: whole sentences, and words in proportion of the last."""
        shares = self._shares(played_ms)
        return join(
            [split(text, share)[0] for (text, _), share in zip(self._sentences(), shares, strict=True)]
        )

    def unheard_texts(self, played_ms: float) -> list[tuple[str, str]]:
        """The rest of it, sentence by sentence, as it is shown and as it is spoken, the first from its first unheard word on."""
        shares = self._shares(played_ms)
        rests = [
            (split(text, share)[1], split(spoken, share)[1])
            for (text, spoken), share in zip(self._sentences(), shares, strict=True)
        ]
        return [(text, spoken) for text, spoken in rests if text]

    def _sentences(self) -> list[tuple[str, str]]:
        words = self.words
        if self.needs_tts:
            return list(zip(words.sentences, words.spoken, strict=True))
        return [(self.text, self.text)]

    def _shares(self, played_ms: float) -> list[float]:
        """How much of each sentence was heard, 0 to 1."""
        played = int(played_ms * self.output_rate_hz / 1000.0)
        shares: list[float] = []
        begin = self.filler_samples
        ends = self.words.audio_ends
        for index, (text, spoken) in enumerate(self._sentences()):
            is_whole = index < len(ends)
            end = ends[index] if is_whole else self._expected_end(index, begin)
            share = 0.0
            if is_whole and played >= end:
                share = 1.0
            elif begin < played and begin < end:
                share = min((played - begin) / (end - begin), 1.0)
            if share >= 1.0 and not is_whole and self.needs_tts and spoken:
                share = 1.0 - 1.0 / count_words(text)  # the engine has yet to say that this was all
            shares.append(share)
            begin = end
        return shares

    def _expected_end(self, index: int, begin: int) -> int:
        """Where the audio of a sentence that is being made will end, in samples of the reply: what was sent of it is not all of
        it. By the pace of the sentences before it."""
        spoken, through = self.words.spoken, len(self.words.audio_ends)
        if not self.needs_tts or index > through:
            return self.samples_sent
        before, words = sum(map(count_words, spoken[:index])), count_words(spoken[index])
        pace = (begin - self.filler_samples) / before if before else WORD_MS * self.output_rate_hz / 1000.0
        return max(self.samples_sent, begin + int(pace * words))

    def timings(self) -> Timings:
        def since(later: float | None, earlier: float | None) -> float | None:
            return None if later is None or earlier is None else round(later - earlier, 2)

        return Timings(
            end_of_speech_ms=self.end_of_speech_ms,
            endpointing_ms=self.endpointing_ms,
            stt_ms=self.stt_ms,
            reply_ms=since(self.first_text_at_ms, self.asked_ms),
            tts_ms=since(self.first_audio_at_ms, self.first_text_at_ms),
            first_audio_ms=since(self.first_audio_at_ms, self.decided_ms),
            audio_ms=round((self.samples_sent - self.filler_samples) * 1000.0 / self.output_rate_hz, 1),
        )

    @property
    def memory_bytes(self) -> int:
        calls = sum(OBJECT_BYTES + text_bytes(call.arguments) for call in self.tool_calls.values())
        spoken = text_bytes(self.text) + sum(map(text_bytes, self.words.spoken)) + self.say.memory_bytes
        return len(self.request) + spoken + calls + create_bytes(self.create)

    def history_items(self) -> list[HistoryItem]:
        items: list[HistoryItem] = []
        if self.words.sentences:
            items.append(
                HistoryItem(
                    role="assistant", text=self.text.strip(), turn=self.turn, key=f"reply:{self.turn}"
                )
            )
        for index, call in sorted(self.tool_calls.items()):
            key = f"call:{self.turn}:{index}"
            items.append(
                HistoryItem(
                    role="assistant",
                    call_id=call.call_id,
                    name=call.name,
                    arguments=call.arguments,
                    turn=self.turn,
                    key=key,
                )
            )
        return items


class ReplyQueue(deque[ReplyCreate]):
    """Replies that wait for a transcript or for another reply."""

    @property
    def memory_bytes(self) -> int:
        return sum(map(create_bytes, self))


class Interrupted:
    """A reply that was cut off by speech in which there may turn out to be no words.

    ``since_turn`` to ``by_turn``: the utterances since. ``due_ms``: when silence settles it. ``resumed``: the reply that goes on.
    """

    __slots__ = ("by_turn", "due_ms", "played_ms", "reply", "resumed", "since_turn")

    def __init__(self, reply: Reply, played_ms: float, by_turn: int) -> None:
        self.reply = reply
        self.played_ms = played_ms
        self.since_turn = self.by_turn = by_turn
        self.due_ms = math.inf
        self.resumed: Reply | None = None

    @property
    def settles_ms(self) -> float:
        """When silence shows that there were no words; inf once the reply goes on."""
        return math.inf if self.resumed is not None else self.due_ms

    def speak_again(self, turn: int) -> bool:
        """The caller begins another turn before it was settled. False: the reply went on already, so it is settled."""
        if self.resumed is not None:
            return False
        self.by_turn = turn
        self.due_ms = math.inf
        return True
