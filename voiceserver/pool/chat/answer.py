"""One answer on its way, sans I/O: events of the endpoint in, records for the session out.

::

    bytes --BodyParser--> event --read_event--> Chunk --SentenceCutter--> TEXT per sentence, TOOL per delta, DONE once

Rule: what was received is said, whatever is odd beside it; only an answer in which there was nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from voiceserver.pool.chat.chunks import CallDelta, Chunk, TextJoiner, read_event
from voiceserver.pool.chat.tool_calls import ToolCalls, TooManyCalls
from voiceserver.pool.remote_pool import RemoteFailure, Say
from voiceserver.session.sentences import SentenceCutter
from voiceserver_workers.http.body import BodyParser, EventTooLong
from voiceserver_workers.ipc.messages import Finish, ResultKind, ToolPiece, Usage, encode

OnOdd = Callable[[str], None]

MAX_TEXT_CHARS: Final = 65_536  # more than an hour of speech
_STEP_CHARS: Final = 128
_CUT_SHORT = ("length", "content_filter")  # why there may be no word
_ENDINGS = (".", "!", "?", "…", "。", "！", "？")


class Answer:
    """``on_odd(name)``: a field could not be read and was passed over."""

    def __init__(self, say: Say, cutter: SentenceCutter, on_odd: OnOdd) -> None:
        self._say = say
        self._parser = BodyParser()
        self._cutter = cutter
        self._on_odd = on_odd
        self._joiner = TextJoiner()
        self._finish_reason = ""
        self._usage: Usage | None = None
        self._calls = ToolCalls()
        self._last_letter = ""
        self._heard_chars = 0
        self.spoken_chars = 0
        self.progress = 0  # events that were more than a comment or an empty delta
        self.has_begun = False  # a token was seen: trying again could say things twice
        self.is_done = False
        self._odd = 0

    def receive(self, data: bytes) -> Iterator[None]:
        """A slice of the body, step by step: between two steps others may have the loop. Raises RemoteFailure where the endpoint
        says that it failed, or ends with nothing said."""
        try:
            for event in self._parser.feed(data):
                yield from self._receive_event(event)
        except EventTooLong:
            raise broken() from None

    def _receive_event(self, event: bytes) -> Iterator[None]:
        yield
        for chunk in read_event(event):
            yield from self._receive_chunk(chunk)
            yield

    def _receive_chunk(self, chunk: Chunk) -> Iterator[None]:
        if self.is_done:
            return
        for name in chunk.odd:
            self._note_odd(name)
        if "json" in chunk.odd and len(self._calls):
            # What is left may be valid, and ask for something else.
            raise RemoteFailure("reply_http_error", "The reply endpoint sent a torn tool call.")
        if chunk.is_done:
            self._finish()
            return
        if chunk.is_error:
            raise RemoteFailure(
                "reply_http_error", "The reply endpoint failed in its answer.", retry_after_ms=1_000.0
            )
        self._count(chunk)
        self.progress += bool(chunk.text or chunk.calls or chunk.has_thoughts)
        # After deltas a message would say everything once more.
        is_repeated = chunk.is_message and self.has_begun
        if not is_repeated:
            yield from self._hear(chunk.text)
            for call in () if self.is_done else chunk.calls:
                self._call(call)
                yield
            if chunk.is_message and self.has_begun:
                self._finish_reason = self._finish_reason or "stop"  # it came in one piece
        if chunk.finish_reason and not self.is_done:
            self._finish_reason = chunk.finish_reason
            # Some endpoints give a reason with every delta, so it does not end a word.
            if self._last_letter in _ENDINGS:
                self._speak(self._cutter.finish())

    def _count(self, chunk: Chunk) -> None:
        """Tokens: the last number of each kind."""
        asked, answered = chunk.prompt_tokens, chunk.completion_tokens
        if asked is None and answered is None:
            return
        before = self._usage or Usage()
        self._usage = Usage(
            before.prompt_tokens if asked is None else asked,
            before.completion_tokens if answered is None else answered,
        )

    def _hear(self, text: str) -> Iterator[None]:
        for at in range(0, len(text), _STEP_CHARS):
            piece = self._joiner.feed(text[at : at + _STEP_CHARS])
            if piece and not self.is_done:
                self.has_begun = self.has_begun or not piece.isspace()
                self._last_letter = piece.rstrip()[-1:] or self._last_letter
                self._heard_chars += len(piece)
                self._speak(self._cutter.feed(piece))
            if self._heard_chars > MAX_TEXT_CHARS:
                self.cut_short()
                return
            yield

    def _speak(self, pieces: list[str]) -> None:
        for piece in pieces:
            self.spoken_chars += len(piece)
            self._say(ResultKind.TEXT, piece.encode())

    def _call(self, delta: CallDelta) -> None:
        if not len(self._calls):
            self._speak(self._cutter.finish())  # what was said before the call is heard before it
        self.has_begun = True
        try:
            self._tell_of_calls(self._calls.receive(delta))
        except TooManyCalls:
            message = "The reply endpoint made too many tool calls, or too long ones."
            raise RemoteFailure("reply_http_error", message, is_retryable=False) from None

    def _tell_of_calls(self, pieces: Iterable[ToolPiece]) -> None:
        for piece in pieces:
            self._say(ResultKind.TOOL, encode(piece))

    @property
    def was_cut_short(self) -> bool:
        return self._finish_reason == "length"

    @property
    def has_rest(self) -> bool:
        """Text waits for the end of its sentence."""
        return self._cutter.has_rest

    def say_part(self) -> None:
        """Say what there is of a sentence that does not end in time."""
        part = self._cutter.take()
        self._speak([part] if part else [])

    def say_rest(self) -> None:
        """No more text comes: say what there is."""
        self._joiner.finish()
        if self._joiner.skipped:
            self._note_odd("character")
            self._joiner.skipped = 0
        self._speak(self._cutter.finish())

    def cut_short(self) -> None:
        """More comes than an answer can have: what there is was the answer. Raises RemoteFailure if that is nothing."""
        if self.is_done:
            return
        if not self.has_begun or len(self._calls):
            raise RemoteFailure(
                "reply_http_error", "The reply endpoint sends without an end.", is_retryable=False
            )
        self._finish_reason = "length"
        self._finish()

    def end_in_silence(self) -> bool:
        """Nothing more comes. False: that is no end of an answer, because no reason for it was given."""
        if not self.is_done and self._finish_reason and self.has_begun:
            self._finish()
        self.say_rest()
        return self.is_done

    def end_of_stream(self) -> Iterator[None]:
        """The body is over, step by step. Raises RemoteFailure where that is no end of an answer."""
        for event in self._parser.finish():
            yield from self._receive_event(event)
        if self._parser.skipped_lines:
            self._note_odd("line")
        if not self.is_done and self._finish_reason:
            self._finish()
        if not self.is_done:
            raise broken() if self._odd and not self.has_begun else broken_off()

    def _finish(self) -> None:
        """The endpoint has said all. Raises RemoteFailure if that was nothing, and nothing that could be read."""
        self.say_rest()
        if not self.has_begun and self._finish_reason not in _CUT_SHORT:
            raise broken() if self._odd and not self._finish_reason else _empty()
        self._tell_of_calls(self._calls.finish())
        if self._calls.nameless:
            self._note_odd("name")
        self.is_done = True
        self._say(ResultKind.DONE, encode(Finish(self._finish_reason or "stop", self._usage)))

    def _note_odd(self, name: str) -> None:
        self._odd += 1
        self._on_odd(name)


def broken() -> RemoteFailure:
    return RemoteFailure(
        "reply_http_error",
        "The reply endpoint answered with something else than a chat completion.",
        is_retryable=False,
    )


def _empty() -> RemoteFailure:
    return RemoteFailure("empty_reply", "The reply endpoint answered without a word.")


def broken_off() -> RemoteFailure:
    return RemoteFailure("reply_unreachable", "The reply endpoint broke off its answer.")
