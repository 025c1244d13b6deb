"""What was received is said, whatever is odd beside it; only an answer in which there was nothing fails."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceserver.pool.chat.answer import Answer
from voiceserver.pool.remote_pool import RemoteFailure
from voiceserver.session.sentences import SentenceCutter
from voiceserver_workers.ipc.messages import Finish, ResultKind, decode_finish

DONE = b"data: [DONE]\n\n"


class Heard:
    """Plays a body into an answer, and keeps what was said."""

    def __init__(self) -> None:
        self.records: list[tuple[ResultKind, bytes]] = []
        self.odd: Counter[str] = Counter()
        self.answer = Answer(self.say, SentenceCutter(), self.note_odd)
        self.failure: RemoteFailure | None = None

    def say(self, kind: ResultKind, payload: bytes) -> None:
        self.records.append((kind, payload))

    def note_odd(self, name: str) -> None:
        self.odd[name] += 1

    def play(self, body: bytes) -> Heard:
        try:
            for _ in self.answer.receive(body):
                pass
            for _ in self.answer.end_of_stream():
                pass
        except RemoteFailure as failure:
            self.answer.say_rest()
            self.failure = failure
        return self

    def of(self, kind: ResultKind) -> list[bytes]:
        return [payload for one, payload in self.records if one == kind]

    @property
    def text(self) -> str:
        return b"".join(self.of(ResultKind.TEXT)).decode()

    @property
    def finish(self) -> Finish | None:
        done = self.of(ResultKind.DONE)
        return decode_finish(done[0]) if done else None


def play(*parts: bytes) -> Heard:
    return Heard().play(b"".join(parts))


def sse(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def text(content: object, **more: object) -> dict[str, Any]:
    return {
        "id": "c",
        "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}],
        **more,
    }


def end(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


# What services send, after their documents and reports about them.
STREAMS = {
    "Azure: a first chunk without choices": sse({"id": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]})
    + sse(text("We open at nine.")) + sse(end()) + DONE,
    "OpenRouter: comments and CRLF": b": OPENROUTER PROCESSING\r\n\r\n" * 3
    + (sse(text("We open ")) + sse(text("at nine."))).replace(b"\n", b"\r\n") + sse(end()) + DONE,
    "Magistral: thoughts and text as parts": sse(text([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]))
    + sse(text([{"type": "text", "text": "We open at nine."}])) + sse(end()) + DONE,
    "vLLM: reasoning beside content null": sse(text(None)) + sse({"choices": [{"delta": {"reasoning_content": "Hm."}}]})
    + sse(text("We open at nine.")) + sse(end()) + DONE,
    "Groq: usage in x_groq": sse(text("We open at nine.", usage=None))
    + sse({**end(), "x_groq": {"usage": {"queue_time": 0.1}}}) + DONE,
    "Ollama: JSON lines": b"\n".join(json.dumps(one).encode() for one in (text("We open "), text("at nine."), end())),
    "a proxy: a byte order mark": b"\xef\xbb\xbf" + sse(text("We open at nine.")) + sse(end()) + DONE,
    "a proxy: no space behind the colon": (sse(text("We open at nine.")) + sse(end()) + DONE).replace(b": {", b":{"),
    "HTML standard: lines end with CR": (sse(text("We open at nine.")) + sse(end()) + DONE).replace(b"\n", b"\r"),
    "HTML standard: one event in two lines": b'data: {"choices": [{"index": 0,\n'
    + b'data: "delta": {"content": "We open at nine."}}]}\n\n'
    + sse(end()) + DONE,
    "a reason with every delta": sse({"choices": [{"index": "0", "delta": {"content": "We open "}, "finish_reason": ""}]})
    + sse({"choices": [{"delta": {"content": "at nine."}, "finish_reason": ""}]}) + sse(end()) + DONE,
    "LiteLLM: every field null at the end": sse(text("We open at nine.", citations=None))
    + sse({"choices": [{"finish_reason": "stop", "delta": {"content": None, "tool_calls": None, "audio": None}}]}) + DONE,
    "Python: NaN": b'data: {"choices":[{"delta":{"content":"We open at nine."},"logprobs":NaN}]}\n\n' + sse(end()) + DONE,
    "usage in words and with costs": sse(text("We open at nine.", usage={"prompt_tokens": "3", "cost": 1e-7}))
    + sse(end()) + DONE,
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_what_services_send_is_understood(name: str) -> None:
    heard = play(STREAMS[name])
    assert (heard.text, heard.failure) == ("We open at nine.", None)
    assert heard.finish is not None
    assert heard.finish.finish_reason == "stop"


# ------------------------------------------------------------------- any odd field anywhere leaves the text as it is

# Values that are of the wrong type for every field of the format.
WRONG = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# Fields beside the text, where they stand: of the chunk, of the choice, of the delta.
BESIDE = (
    ("id", "object", "created", "model", "usage", "x_groq", "prompt_filter_results", "system_fingerprint"),
    ("index", "logprobs", "finish_reason", "message", "text", "content_filter_results"),
    ("role", "refusal", "tool_calls", "function_call", "reasoning_content", "audio", "annotations"),
)
# Whole events that say nothing.
NOTHING = (
    b"null", b"[]", b'""', b"{}", b"ping", b"{", b"\xff\xfe", b'{"choices": null}', b'{"choices": []}',
    b'{"choices": [null]}', b'{"choices": [{"delta": null}]}', b'{"choices": [{"delta": {"content": null}}]}',
    b'{"choices": [{"delta": {"content": "\\ud83d"}}]}', b'{"choices": [{"delta": {"content": "\xff"}}]}',
    b'{"choices": [], "usage": {"prompt_tokens": null, "completion_tokens": 1.5}}', b'{"error": null}',
    b'{"choices": [{"delta": {"tool_calls": [null]}}]}', b'{"choices": [{"delta": {"tool_calls": 7}}]}',
)  # fmt: skip
LINES = (
    b": keep-alive\n",
    b"event: message\n",
    b"id: 4\n",
    b"retry: 10\n",
    b"data:\n\n",
    b"data: \n\n",
    b"\n",
    b"what\n",
)


@st.composite
def odd_streams(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """The deltas of a valid stream, and its bytes with odd things put in."""
    deltas = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=8))
    body = b""
    for content in deltas:
        chunk = text(content)
        for place, names in zip(
            (chunk, chunk["choices"][0], chunk["choices"][0]["delta"]), BESIDE, strict=True
        ):
            for name in draw(st.lists(st.sampled_from(names), max_size=2)):
                place[name] = draw(WRONG)
            if draw(st.booleans()):
                place["x_" + draw(st.text(max_size=3))] = draw(ANY)
        for _ in range(draw(st.integers(0, 2))):
            body += (
                sse(draw(st.sampled_from(NOTHING))) if draw(st.booleans()) else draw(st.sampled_from(LINES))
            )
        line = json.dumps(chunk, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
        body += sse(line)
    body += sse(end()) + DONE
    return deltas, body.replace(b"\n", draw(st.sampled_from([b"\n", b"\r\n", b"\r"])))


@given(odd_streams())
def test_any_odd_field_anywhere_gives_the_same_text(stream: tuple[list[str], bytes]) -> None:
    deltas, body = stream
    heard = Heard().play(body)
    said = "".join(deltas).rstrip()
    assert heard.text.rstrip() == said
    assert (heard.finish is not None) == bool(said)


@pytest.mark.parametrize("nothing", NOTHING)
def test_an_odd_event_in_the_middle_is_counted_and_the_text_around_it_is_said(nothing: bytes) -> None:
    heard = play(sse(text("We open at ")), sse(nothing), sse(text("nine.")), sse(end()), DONE)
    assert heard.text == "We open at nine."
    assert heard.finish is not None
    assert heard.finish.finish_reason == "stop"


# ------------------------------------------------------------------ inputs of public reports: each says "Hi there. Bye."


def frames(*values: object) -> str:
    lines = (value if isinstance(value, str) else json.dumps(value) for value in values)
    return "".join(f"data: {line}\n\n" for line in lines)


HI = json.dumps(text("Hi there. "))
BYE = json.dumps(text("Bye."))
END = json.dumps(end())
WHOLE = json.dumps({"choices": [{"message": {"role": "assistant", "content": "Hi there. Bye."}}]})
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True}
USED = {"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": 7}}
OVER_LINES = "".join(f"data: {line}\n" for line in json.dumps(text("Bye."), indent=1).split("\n"))
REPORTED = {
    # anomalyco/opencode#27365: one line break between events in place of two.
    "no empty lines": frames(HI, BYE, END, "[DONE]").replace("\n\n", "\n"),
    # anomalyco/opencode#25858: an event breaks off in the middle of a key, and the next begins behind it.
    "a torn event": 'data: {"id":"1","ch\n' + frames(HI, BYE) + 'data: {"id":"1","ch' + frames(END),
    # ggml-org/llama.cpp#14268: the field name is missing now and then.
    "values without data:": HI + "\n\n" + frames(BYE, END, "[DONE]"),
    # earendil-works/pi#8430, openai/openai-python#2721, openai/openai-go#621: events without data.
    "no data": f"retry: 3000\n\nevent: x\n\n{frames(HI)}: PROCESSING\n\nid: 1\n\n{frames(BYE, END)}",
    # dataelement/Clawith#106: no space behind the field name.
    "no space": frames(HI, BYE, END).replace("data: ", "data:"),
    # SamSaffron/term-llm#454: one value over several data lines.
    "several lines": frames(HI) + OVER_LINES + "\n" + frames(END),
    # decolua/9router#3492: a whole answer as an event stream, with the end of one glued on.
    "JSON with [DONE]": WHOLE + "\ndata: [DONE]\n\n",
    "JSON with [DONE] on its line": WHOLE + "data: [DONE]\n\n",
    # stacklok/codegate#149 and others: a whole answer where a stream was asked for, printed for people.
    "JSON of many lines": json.dumps(json.loads(WHOLE), indent=2),
    # vercel/ai#13703, symfony/ai#2422, openlit/openlit#1597 (Mistral): parts in place of text, thoughts among them.
    "parts": frames(
        text([THOUGHT]),
        text([{"type": "text", "text": "Hi there. "}, {"type": "reference", "reference_ids": [1]}]),
        BYE,
        END,
    ),
    # perplexityai/api-discussion#209: the answer so far goes with each delta.
    "delta and message": frames(
        {"choices": [{"delta": {"content": "Hi there. "}, "message": {"content": "Hi there. "}}]},
        {"choices": [{"delta": {"content": "Bye."}, "message": {"content": "Hi there. Bye."}}]},
        "[DONE]",
    ),
    # The answer once more at the end, as MiniMax sends it.
    "deltas, then the message": frames(HI, BYE, WHOLE, "[DONE]"),
    # osaurus-ai/osaurus#2150 (DeepSeek): no delta beside the finish reason.
    "no delta at the end": frames(HI, BYE, {"choices": [{"finish_reason": "stop"}]}),
    # framerslab/agentos#17: the usage behind the finish reason, and here with a null in it.
    "usage behind the end": frames(HI, BYE, END, USED, "[DONE]"),
    # One value a line, as proxies of Ollama send it; and a list of them, as proxies of Gemini do.
    "one value a line": f"{HI}\n{BYE}\n{END}\n",
    "a list": f"[{HI},\n{BYE},\n{END}]",
    # A proxy that dumps with Python's json.
    "NaN": frames({"choices": [{"delta": {"content": "Hi there. "}, "logprobs": float("nan")}]}, BYE, END),
    "byte order mark": "\ufeff" + frames(HI, BYE, END),
    "a reason with every delta": frames(
        *(
            {"choices": [{"delta": {"content": x}, "finish_reason": "stop"}]}
            for x in ("H", "i the", "re. B", "ye.")
        )
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_public_reports_show_is_said(name: str) -> None:
    heard = play(REPORTED[name].encode())
    assert (heard.text, heard.failure) == ("Hi there. Bye.", None)
    assert heard.finish is not None
    assert heard.of(ResultKind.TEXT)[0].startswith(b"Hi there.")


@pytest.mark.parametrize(
    "parts", [[b"\xf0\x9f", b"\x98\x80"], [b"\\ud83d", b"\\ude00"], [b"\xf0\x9f\x98\x80"]]
)
def test_a_character_in_two_deltas_is_one(parts: list[bytes]) -> None:
    chunks = [b'{"choices":[{"delta":{"content":"' + part + b'"}}]}' for part in parts]
    assert play(*map(sse, chunks), sse(end())).text == "😀"


# --------------------------------------------------------------------------------------------------- what is an error


@pytest.mark.parametrize(
    ("body", "code", "is_retryable"),
    [
        (b"", "reply_unreachable", True),
        (b": ping\n\n", "reply_unreachable", True),
        (DONE, "empty_reply", True),
        (sse(end()) + DONE, "empty_reply", True),
        (sse(text(" \n ")) + sse(end()), "empty_reply", True),
        (sse({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}), "empty_reply", True),
        (sse({"choices": None}) + sse(end()), "empty_reply", True),
        (b"data: ping\n\n" + DONE, "reply_http_error", False),
        (b"data: [1]\n\n" + DONE, "reply_http_error", False),
        (b"<html>sign in</html>", "reply_http_error", False),
        (sse({"choices": None, "base_resp": {"status_code": 1008}}) + DONE, "reply_http_error", False),
        (sse({"error": {"message": "x"}}) + DONE, "reply_http_error", True),
        (sse({"error": "overloaded"}), "reply_http_error", True),
        (b'{"error": {"message": "x"}}', "reply_http_error", True),
        (b'{\n "object": "error",\n "message": "x"\n}', "reply_http_error", True),
    ],
)
def test_only_an_answer_with_nothing_in_it_is_an_error(body: bytes, code: str, is_retryable: bool) -> None:
    heard = play(body)
    assert heard.failure is not None
    assert (heard.failure.code, heard.failure.is_retryable, heard.records) == (code, is_retryable, [])


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_that_was_cut_short_says_why_even_without_a_word(reason: str) -> None:
    assert play(sse(end(reason)), DONE).finish == Finish(reason)


@pytest.mark.parametrize("fault", [b"", sse({"error": "x"}), b'{"error": "x"}'])
def test_what_came_before_a_fault_is_said_and_the_fault_is_told(fault: bytes) -> None:
    heard = play(sse(text("We open at ")), sse(text("nine, bu")), fault)
    assert heard.text == "We open at nine, bu"
    assert heard.failure is not None
    assert heard.finish is None


def test_odd_fields_are_counted_by_name() -> None:
    heard = play(sse(text(7)), sse(text("Hi.", usage={"prompt_tokens": None})), sse(b"null"), sse(end()))
    assert heard.odd == {"content": 1, "prompt_tokens": 1, "data": 1}


def test_token_counts_are_the_last_that_could_be_read() -> None:
    used = [
        {"prompt_tokens": 3, "completion_tokens": 1},
        {"prompt_tokens": None, "completion_tokens": 4.0},
        7,
    ]
    heard = play(sse(text("Hi.")), *(sse({"choices": [], "usage": one}) for one in used), DONE)
    assert heard.finish is not None
    assert heard.finish.usage is not None
    assert (heard.finish.usage.prompt_tokens, heard.finish.usage.completion_tokens) == (3, 4)


# --------------------------------------------------------------------------------------------------------- tool calls


def call(arguments: object, call_id: object = "a", name: str = "weather") -> dict[str, object]:
    return {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def with_calls(*calls: object) -> bytes:
    return sse({"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}}]})


def test_two_whole_calls_with_index_0_are_two_and_what_was_said_is_before_them() -> None:
    first, second = call({"city": "Oslo"}), call('{"city": "Rome"}', "b")
    for parts in ([with_calls(first), with_calls(second)], [with_calls(first, second)]):
        heard = play(sse(text("One moment")), *parts, sse(end("tool_calls")), DONE)
        told = [json.loads(payload) for payload in heard.of(ResultKind.TOOL)]
        assert [(one["index"], one["call_id"], json.loads(one["arguments"])["city"]) for one in told] == [
            (0, "a", "Oslo"),
            (1, "b", "Rome"),
        ]
        assert [kind for kind, _ in heard.records] == [
            ResultKind.TEXT,
            ResultKind.TOOL,
            ResultKind.TOOL,
            ResultKind.DONE,
        ]


def test_a_call_without_an_id_gets_one() -> None:
    heard = play(with_calls(call("{}", None)), sse(end("tool_calls")))
    (told, rest) = (json.loads(payload) for payload in heard.of(ResultKind.TOOL))
    assert told["call_id"].startswith("call_")
    assert rest["arguments"] == "{}"


def test_a_call_of_which_a_part_was_lost_is_not_made() -> None:
    """What is left of its arguments may be valid, and ask for something else."""
    torn = b'data: {"choices":[{"delta":{"tool_calls":[{"ind\n\n'
    heard = play(
        with_calls(call('{"path": "/tmp')), torn, with_calls(call('/x"}', "")), sse(end("tool_calls"))
    )
    assert heard.failure is not None
    assert heard.failure.code == "reply_http_error"
    assert heard.finish is None


def test_an_event_that_says_nothing_does_not_tear_a_call() -> None:
    pieces = [
        with_calls(call('{"a":')),
        sse(b"null"),
        b": ping\n\n",
        sse(b"ping"),
        with_calls(call("1}", "")),
    ]
    heard = play(*pieces, sse(end("tool_calls")))
    assert "".join(json.loads(one)["arguments"] for one in heard.of(ResultKind.TOOL)) == '{"a":1}'
    assert heard.finish is not None
