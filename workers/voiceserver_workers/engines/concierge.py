"""The built-in responder: answers in well under a millisecond, with no model and no network.

It repeats what it understood, tells time and date, does sums, says how busy the server is, and says so when it did not
understand. Small on purpose: it is there so that a fresh install holds a conversation. Request (one JSON object)::

    {"messages": [{"role": "user", "content": "what time is it"}],
     "context": {"sessions": 3, "talkers": 2, "lag_ms": 12.5, "local_time": "2026-01-31T18:05:00"}}

Every key but ``messages`` may be missing. Answer: one TEXT per sentence, then DONE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from voiceserver_workers.engine import EngineError, EngineInfo, Item, Output, Piece
from voiceserver_workers.engines.arithmetic import Unanswerable, say_number, solve
from voiceserver_workers.ipc.messages import (
    Finish,
    ReplyMessage,
    ResultKind,
    StreamParams,
    Usage,
    decode_reply_request,
    encode,
)

_DONE = Piece(ResultKind.DONE, encode(Finish(usage=Usage())).decode())
_GREETING = re.compile(
    r"^(?:hello|hi|hey|good (?:morning|afternoon|evening|day))(?: there| again)?\b[ ,.!]*", re.I
)
_MAX_REPEATED_CHARS = 400

Context = Mapping[str, object]


class Concierge:
    """Reply engine. Takes no params and no stream options."""

    def __init__(self, params: Mapping[str, object]) -> None:
        for key in params:
            raise ValueError(f"{key}: concierge has no parameters")
        self.info = EngineInfo("concierge", "reply")
        self._streams: set[int] = set()

    def open(self, stream: int, params: StreamParams) -> None:
        for key in params.options:
            raise EngineError("bad_option", f"concierge takes no options, so not {key!r}")
        if stream in self._streams:
            raise EngineError("stream_open", "the stream is open already")
        self._streams.add(stream)

    def step(self, batch: Sequence[Item]) -> Sequence[Output]:
        for item in batch:
            if item.stream not in self._streams:
                raise EngineError("stream_unknown", "the stream is not open")
        return [_output(item.text) for item in batch]

    def cancel(self, stream: int, turn: int) -> None:
        pass

    def close(self, stream: int) -> None:
        self._streams.discard(stream)


def _output(request: str | None) -> Output:
    if request is None:
        return Output()
    try:
        asked = decode_reply_request(request)
    except (ValueError, RecursionError):
        raise EngineError("bad_request", "the reply request is not a JSON object with messages") from None
    sentences = answer(_last_user_text(asked.messages), asked.context or {})
    pieces = [Piece(ResultKind.TEXT, f" {text}" if index else text) for index, text in enumerate(sentences)]
    return Output([*pieces, _DONE])


def _last_user_text(messages: Sequence[ReplyMessage]) -> str:
    return next((message.text for message in reversed(messages) if message.role == "user"), "")


def answer(text: str, context: Context) -> list[str]:
    """Sentences to say to a caller who said ``text``. An empty ``text`` is speech that was not understood."""
    text = " ".join(text.split())
    greeting = _GREETING.match(text)
    opening = ["Hello."] if greeting else []
    rest = text[greeting.end() :] if greeting else text
    if not re.search(r"\w", rest):
        if greeting:
            return ["Hello.", "What can I do for you?"]
        return ["Sorry, I did not understand you.", "Please say it again."]
    try:
        value = solve(rest)
    except Unanswerable as error:
        return [*opening, _repeat(rest), str(error)]
    if value is not None:
        return [*opening, _repeat(rest), f"That makes {say_number(value)}."]
    for pattern, respond in _INTENTS:
        if pattern.search(rest):
            return [*opening, *respond(context)]
    return [*opening, _repeat(rest)]


def _repeat(text: str) -> str:
    text = (
        text
        if len(text) <= _MAX_REPEATED_CHARS
        else text[:_MAX_REPEATED_CHARS].rsplit(" ", 1)[0] + " and so on"
    )
    return f"You said: {text.rstrip(' .,;:')}{'' if text.endswith(('?', '!')) else '.'}"


def _local_time(context: Context) -> datetime:
    told = context.get("local_time")
    try:
        return datetime.fromisoformat(told) if isinstance(told, str) else datetime.now()
    except ValueError:
        return datetime.now()


def _tell_time(context: Context) -> list[str]:
    now = _local_time(context)
    return [f"It is {now.hour % 12 or 12}:{now.minute:02} {'AM' if now.hour < 12 else 'PM'}."]


def _tell_date(context: Context) -> list[str]:
    now = _local_time(context)
    return [f"Today is {now:%A}, {now:%B} {now.day}, {now.year}."]


def _tell_time_and_date(context: Context) -> list[str]:
    return _tell_time(context) + _tell_date(context)


def _number(context: Context, key: str) -> float | None:
    value = context.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tell_load(context: Context) -> list[str]:
    sessions, talkers, lag_ms = (_number(context, key) for key in ("sessions", "talkers", "lag_ms"))
    if sessions is None:
        return ["I cannot see how busy the server is."]
    others = max(int(sessions) - 1, 0)
    company = "You are the only caller" if not others else f"There are {others + 1} callers"
    talking = f", and {int(talkers)} of them talking" if others and talkers is not None else ""
    sentences = [f"{company}{talking}."]
    if lag_ms is not None:
        sentences.append(
            f"The server is {round(lag_ms)} milliseconds behind." if lag_ms >= 1 else "The server keeps up."
        )
    return sentences


def _help(context: Context) -> list[str]:
    return [
        "I repeat what I understand.",
        "You can also ask me for the time, the date, or a sum, or how busy the server is.",
    ]


_INTENTS: tuple[tuple[re.Pattern[str], Callable[[Context], list[str]]], ...] = tuple(
    (re.compile(pattern, re.I), respond)
    for pattern, respond in (
        (r"\btime and (?:the )?date\b|\bdate and (?:the )?time\b", _tell_time_and_date),
        (
            r"\bwhat(?:'s| is|s)? (?:the )?time\b|\btime is it\b|\btell me the time\b|\bwhat's the time\b",
            _tell_time,
        ),
        (
            r"\bwhat(?:'s| is|s)? (?:the |today's )?date\b|\b(?:what|which) day\b|\btell me the date\b"
            r"|\bdate is it\b|\btoday's date\b",
            _tell_date,
        ),
        (
            r"\bhow busy\b|\bare you busy\b|\bhow many (?:callers|people|users|sessions|others)\b"
            r"|\bhow is the server\b|\bserver (?:load|status|busy)\b",
            _tell_load,
        ),
        (r"^(?:please )?help\b|\bwhat can you do\b|\bwhat can i (?:say|ask)\b|\bcan you help\b", _help),
        (r"^(?:thank you|thanks|thank you very much)\b", lambda context: ["You are welcome."]),
        (r"^(?:goodbye|good bye|bye)\b", lambda context: ["Goodbye."]),
    )
)
