"""The chat engine against a real HTTP server, and the promises of a pool whose streams are tasks."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import pytest

from tests.voiceserver.pool.owners import Owner
from voiceserver.config.schema import StageConfig
from voiceserver.errors import ConfigError, Refusal
from voiceserver.pool import Stream
from voiceserver.pool.chat.client import Chat, chat_pool
from voiceserver.pool.chat.config import ChatConfig
from voiceserver.pool.remote_pool import RemotePool, Say
from voiceserver.testing.chat_endpoint import (
    Answer,
    Broken,
    ChatEndpoint,
    Raw,
    Script,
    Silent,
    Status,
    Tool,
    Trickle,
)
from voiceserver_workers.ipc.messages import RequestKind, ResultKind, StreamParams

PARAMS = StreamParams()


@asynccontextmanager
async def chat(
    *scripts: Script, **params: str | int | float | bool
) -> AsyncIterator[tuple[RemotePool, ChatEndpoint]]:
    async with ChatEndpoint(*scripts) as endpoint:
        given = {
            "base_url": endpoint.base_url,
            "model": "m",
            "keep_warm_ms": 0,
            "uses_proxy": False,
            **params,
        }
        pool = chat_pool("reply", StageConfig(engine="chat", params=given))
        await pool.start()
        try:
            yield pool, endpoint
        finally:
            await pool.stop()


def opened(pool: RemotePool, owner: Owner) -> Stream:
    stream = pool.try_open(owner, PARAMS)
    assert not isinstance(stream, Refusal)
    return stream


def request(text: str = "hello", **fields: object) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"turn": 1, "messages": messages, "instructions": "Be brief.", **fields}).encode()


async def ask(pool: RemotePool, payload: bytes | None = None) -> Owner:
    owner = Owner()
    stream = opened(pool, owner)
    assert stream.send(RequestKind.DATA, 1, 1, request() if payload is None else payload)
    await owner.finished()
    return owner


def failure(owner: Owner) -> dict[str, Any]:
    (payload,) = owner.payloads(ResultKind.FAILED)
    told: dict[str, Any] = json.loads(payload)
    return told


# ------------------------------------------------------------------------------------------------------- answers


async def test_an_answer_comes_sentence_by_sentence_with_its_usage() -> None:
    async with chat(Answer(["Hel", "lo there", ". I am", " fine.", " Bye"], usage=(11, 6))) as (
        pool,
        endpoint,
    ):
        owner = await ask(pool)
    assert owner.payloads(ResultKind.TEXT) == [b"Hello there.", b" I am fine.", b" Bye"]
    assert json.loads(owner.payloads(ResultKind.DONE)[0]) == {
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 11, "completion_tokens": 6},
    }
    assert [(r.turn, r.seq) for r in owner.records[1:]] == [(1, 1)] * 4
    body = endpoint.requests[0].body
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    assert body["model"] == "m"
    assert body["stream"] is True


async def test_a_sentence_is_said_while_the_answer_goes_on() -> None:
    answer = Answer(["First one. ", "Second", " one."], hold_before=1)
    async with chat(answer) as (pool, _):
        owner = Owner()
        opened(pool, owner).send(RequestKind.DATA, 1, 1, request())
        await owner.wait_for(lambda: len(owner.records) == 2)
        assert owner.payloads(ResultKind.TEXT) == [b"First one."]
        answer.release.set()
        await owner.finished()
    assert owner.payloads(ResultKind.TEXT) == [b"First one.", b" Second one."]


async def test_an_answer_is_cut_by_the_rules_of_the_sessions_language() -> None:
    text = "Vgl. dazu Nr. 5 im Plan. Es ist der 3. Marsch."
    async with chat(Answer([text]), Answer([text])) as (pool, _):
        german = await ask(pool, request(language="de-AT"))
        french = await ask(pool, request(language="fr"))
    assert german.payloads(ResultKind.TEXT) == [b"Vgl. dazu Nr. 5 im Plan.", b" Es ist der 3. Marsch."]
    assert french.payloads(ResultKind.TEXT)[1:] == [b" Es ist der 3.", b" Marsch."]


async def test_tool_calls_are_streamed_after_the_text_before_them() -> None:
    tools = [Tool("weather", ['{"city"', ':"Oslo"}'], "a"), Tool("time", ["{}"], "b")]
    async with chat(Answer(["One moment"], tools=tools, finish_reason="tool_calls")) as (pool, _):
        owner = await ask(pool)
    kinds = [record.kind for record in owner.records[1:]]
    assert kinds == [ResultKind.TEXT, *[ResultKind.TOOL] * 5, ResultKind.DONE]
    pieces = [json.loads(payload) for payload in owner.payloads(ResultKind.TOOL)]
    assert [(one["index"], one["call_id"], one["name"], one["arguments"]) for one in pieces] == [
        (0, "a", "weather", ""),
        (0, "", "", '{"city"'),
        (0, "", "", ':"Oslo"}'),
        (1, "b", "time", ""),
        (1, "", "", "{}"),
    ]


async def test_an_endpoint_that_does_not_stream_is_understood() -> None:
    async with chat(Answer(["Hello there. ", "Bye."], streams=False)) as (pool, _):
        owner = await ask(pool)
    assert owner.payloads(ResultKind.TEXT) == [b"Hello there.", b" Bye."]
    assert json.loads(owner.payloads(ResultKind.DONE)[0])["usage"]["prompt_tokens"] == 7


async def test_an_answer_without_done_ends_by_its_finish_reason() -> None:
    async with chat(Answer(["Yes."], has_done=False, finish_reason="length", end="\r\n\r\n")) as (pool, _):
        owner = await ask(pool)
    assert json.loads(owner.payloads(ResultKind.DONE)[0])["finish_reason"] == "length"


async def test_words_that_nobody_heard_are_asked_again_without_the_endpoint() -> None:
    async with chat(Answer(["no"]), reprompt="Come again?") as (pool, endpoint):
        owner = await ask(pool, request("  "))
        assert endpoint.requests == []
    assert owner.payloads(ResultKind.TEXT) == [b"Come again?"]


async def test_settings_of_the_session_go_with_the_request() -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    params: dict[str, Any] = {
        "temperature": 0.2,
        "max_tokens_field": "max_completion_tokens",
        "header.X-Org": "acme",
        "api_key": "sk-secret",
        "asks_usage": False,
        "system": "You are a pirate.",
    }
    async with chat(Answer(["ok."]), **params) as (pool, endpoint):
        await ask(pool, request(tools=[tool], tool_choice="f", max_output_tokens=9, temperature=0.7))
        await ask(pool, request(tools=[tool], tool_choice="required"))
    first, second = endpoint.requests
    assert first.headers["authorization"] == "Bearer sk-secret"
    assert first.headers["x-org"] == "acme"
    assert first.body["tools"] == [{"type": "function", "function": tool}]
    assert first.body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert first.body["max_completion_tokens"] == 9
    assert first.body["temperature"] == 0.7
    assert first.body["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert "stream_options" not in first.body
    assert second.body["tool_choice"] == "required"
    assert second.body["temperature"] == 0.2


async def test_tool_calls_without_their_other_half_stay_out() -> None:
    def call(name: str) -> dict[str, object]:
        return {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}

    messages = [
        {"role": "tool", "content": "orphan", "tool_call_id": "lost"},
        {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b")]},
        {"role": "user", "content": "wait"},
        {"role": "user", "content": " "},
        {"role": "tool", "content": "answer a", "tool_call_id": "a"},
        {"role": "user", "content": "go on"},
    ]
    async with chat(Answer(["ok."])) as (pool, endpoint):
        await ask(pool, json.dumps({"messages": messages}).encode())
    assert endpoint.requests[0].body["messages"] == [
        {"role": "assistant", "tool_calls": [call("a")]},
        {"role": "tool", "content": "answer a", "tool_call_id": "a"},
        {"role": "user", "content": "wait"},
        {"role": "user", "content": "go on"},
    ]


async def test_a_connection_is_used_again() -> None:
    async with chat(Answer(["ok."])) as (pool, endpoint):
        for _ in range(3):
            await ask(pool)
            await settled(pool)
        assert endpoint.connections == 1


async def settled(pool: RemotePool) -> None:
    """Until the tidying behind finished answers is over."""
    while len(pool._tasks) > 0:
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("script", "code", "is_retryable", "tries"),
    [
        (Status(401), "reply_rejected", False, 1),
        (Status(404), "reply_rejected", False, 1),
        (Status(500), "reply_http_error", True, 2),
        (Status(429, retry_after="3600"), "reply_http_error", True, 1),
        (Broken(["One. ", "Two"]), "reply_unreachable", True, 1),
        (Broken(), "reply_unreachable", True, 2),
        (Answer(), "empty_reply", True, 2),
        (Raw(b"data: no json\n\n"), "reply_http_error", False, 1),
        (Raw(b"data: [1]\n\n"), "reply_http_error", False, 1),
        (Raw(b'data: {"error": {"message": "secret"}}\n\n'), "reply_http_error", True, 2),
        (Raw(b""), "reply_unreachable", True, 2),
        (Raw(b"<html>hello</html>", "text/html"), "reply_http_error", False, 1),
    ],
)
async def test_a_failure_is_told_with_its_code(
    script: Script, code: str, is_retryable: bool, tries: int
) -> None:
    async with chat(script) as (pool, endpoint):
        owner = await ask(pool)
        told = failure(owner)
        assert (told["code"], told["retryable"], len(endpoint.requests)) == (code, is_retryable, tries)
        assert "secret" not in told["message"]
        assert owner.payloads(ResultKind.DONE) == []
        assert pool.health().failed == 1
        assert pool.stats().streams == 1


async def test_a_retry_hint_of_the_endpoint_is_passed_on() -> None:
    async with chat(Status(503, retry_after="20")) as (pool, _):
        told = failure(await ask(pool))
    assert told["retry_after_ms"] == 20_000
    assert "20 s" in told["message"]


async def test_a_date_to_try_again_at_is_passed_on() -> None:
    later = formatdate(time.time() + 60, usegmt=True)
    async with chat(Status(429, retry_after=later)) as (pool, endpoint):
        told = failure(await ask(pool))
        assert len(endpoint.requests) == 1
    assert 55_000 <= told["retry_after_ms"] <= 60_000


async def test_the_log_says_status_and_address_once_for_each_cause() -> None:
    logged: list[Mapping[str, object]] = []
    async with ChatEndpoint(
        Status(401), Status(401), Status(404), Answer(["Fine."]), Status(404)
    ) as endpoint:
        params: dict[str, Any] = {
            "base_url": endpoint.base_url.replace("//", "//me:secret@"),
            "keep_warm_ms": 0,
        }
        pool = chat_pool(
            "reply",
            StageConfig(params=params),
            on_event=lambda name, fields: logged.append({"event": name, **fields}),
        )
        await pool.start()
        for _ in range(5):
            await ask(pool)
        await pool.stop()
        url = f"{endpoint.base_url}/chat/completions"
    assert [(one["event"], one["status"], one["url"]) for one in logged] == [
        ("reply_failed", 401, url),
        ("reply_failed", 404, url),
        ("reply_failed", 404, url),
    ]


@pytest.mark.parametrize(
    ("models", "empty_question", "is_up"),
    [
        (200, 404, True),
        (404, 400, True),
        (404, 422, True),
        (401, 401, False),
        (404, 404, False),
        (405, 401, False),
        (503, 400, False),
    ],
)
async def test_a_probe_asks_for_what_will_be_used(models: int, empty_question: int, is_up: bool) -> None:
    logged: list[Mapping[str, object]] = []
    async with ChatEndpoint(Status(empty_question), models=models) as endpoint:
        chat = Chat(
            ChatConfig(endpoint.base_url), lambda name, fields: logged.append({"event": name, **fields})
        )
        await chat.open()
        for _ in range(2):
            await chat._endpoint.probe()
        await chat.close()
        assert chat.is_up() == is_up
        asked = "/models" if models == 503 else "/chat/completions"
        status = 503 if models == 503 else empty_question
        down = {"event": "endpoint_down", "url": endpoint.base_url + asked, "status": status}
        assert [{**one, "reason": ""} for one in logged] == ([] if is_up else [{**down, "reason": ""}])


async def test_a_proxy_that_is_used_is_named_in_the_log_and_not_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    logged: list[Mapping[str, object]] = []
    pool = chat_pool(
        "reply",
        StageConfig(params={"base_url": "http://llm.invalid/v1", "keep_warm_ms": 0, "retries": 0}),
        on_event=lambda _, fields: logged.append(fields),
    )
    await pool.start()
    told = failure(await ask(pool))
    await pool.stop()
    assert told["message"] == "The reply endpoint cannot be reached through the proxy."
    assert {one["proxy"] for one in logged} == {"http://127.0.0.1:9"}


def test_a_proxy_that_cannot_be_used_is_named_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://proxy:21")
    params: dict[str, Any] = {"base_url": "http://llm.invalid/v1"}
    with pytest.raises(ConfigError, match="ALL_PROXY has the scheme ftp") as caught:
        chat_pool("reply", StageConfig(params=params))
    assert caught.value.key == "stages.reply.params.uses_proxy"
    chat_pool("reply", StageConfig(params={**params, "uses_proxy": False}))


async def test_what_was_said_before_a_break_stays_said_and_is_not_asked_twice() -> None:
    async with chat(Broken(["One. ", "Two"]), Answer(["never"])) as (pool, endpoint):
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"One.", b" Two"]
        assert len(endpoint.requests) == 1


async def test_one_hiccup_before_the_first_token_goes_unnoticed() -> None:
    async with chat(Status(503), Answer(["Fine."])) as (pool, endpoint):
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"Fine."]
        assert len(endpoint.requests) == 2


async def test_an_answer_without_a_word_is_asked_for_again() -> None:
    async with chat(Answer([" "]), Answer(["Fine."])) as (pool, endpoint):
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"Fine."]
        assert len(endpoint.requests) == 2


async def test_an_endpoint_that_is_down_is_told_at_once() -> None:
    async with chat(Answer(["x"])) as (_, endpoint):
        address = endpoint.base_url
    config = StageConfig(params={"base_url": address, "keep_warm_ms": 0, "uses_proxy": False})
    pool = chat_pool("reply", config)
    await pool.start()
    told = failure(await ask(pool))
    assert told["code"] == "reply_unreachable"
    assert not pool.is_ready()
    assert pool.stats().workers[0].state == "backoff"
    await pool.stop()


@pytest.mark.parametrize(
    ("script", "limits", "said"),
    [
        (Silent(), {"first_token_timeout_ms": 400}, "did not begin"),
        (Answer(["One. ", "Two."], hold_before=1), {"stall_timeout_ms": 200}, "stopped"),
        (Answer(["One. ", "Two."], hold_before=1), {"timeout_ms": 600}, "not through"),
    ],
)
async def test_an_endpoint_that_is_slow_is_given_up(
    script: Script, limits: dict[str, int], said: str
) -> None:
    async with chat(script, **limits) as (pool, endpoint):
        told = failure(await ask(pool))
        assert told["code"] == "reply_timeout"
        assert said in told["message"]
        assert f"stages.reply.params.{next(iter(limits))}" in told["message"]
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)


async def test_words_that_wait_for_the_end_of_their_sentence_are_said_in_time() -> None:
    slow = Answer(["One moment, I will look th", "at up."], hold_before=1)
    async with chat(slow, max_unspoken_ms=30, first_clause_chars=200) as (pool, _):
        owner = Owner()
        opened(pool, owner).send(RequestKind.DATA, 1, 1, request())
        await owner.wait_for(lambda: bool(owner.payloads(ResultKind.TEXT)))
        assert owner.payloads(ResultKind.TEXT) == [b"One moment, I will look"]
        slow.release.set()
        await owner.finished()
    assert b"".join(owner.payloads(ResultKind.TEXT)) == b"One moment, I will look that up."


@pytest.mark.parametrize("beat", [": keep-alive\n\n", 'data: {"choices":[{"delta":{"content":""}}]}\n\n'])
async def test_comments_do_not_keep_an_answer_alive_that_has_stopped(beat: str) -> None:
    stalled = Trickle(['data: {"choices":[{"delta":{"content":"One moment"}}]}\n\n'], beat)
    async with chat(stalled, stall_timeout_ms=100) as (pool, _):
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"One moment"]
        assert "stall_timeout_ms" in failure(owner)["message"]


@pytest.mark.parametrize(
    "beat", [": PROCESSING\n\n", 'data: {"choices":[{"delta":{"content":"","reasoning_content":"Hm."}}]}\n\n']
)
async def test_an_endpoint_that_is_at_work_is_waited_for(beat: str) -> None:
    """Much longer than it may be silent; the session hears that it is at work."""
    thinks = Trickle(
        [beat] * 30 + ['data: {"choices":[{"delta":{"content":"Nine."},"finish_reason":"stop"}]}\n\n'], ""
    )
    async with chat(thinks, first_token_timeout_ms=1_500) as (pool, _):
        owner = await ask(pool)
    assert owner.payloads(ResultKind.TEXT) == [b"Nine."]
    assert owner.payloads(ResultKind.CONSUMED)


async def test_an_answer_that_gave_a_reason_to_end_and_then_stops_is_whole() -> None:
    ended = Trickle(
        ['data: {"choices":[{"delta":{"content":"Nine"},"finish_reason":"stop"}]}\n\n'], ": ping\n\n"
    )
    async with chat(ended, stall_timeout_ms=100) as (pool, _):
        owner = await ask(pool)
    assert owner.payloads(ResultKind.TEXT) == [b"Nine"]
    assert owner.payloads(ResultKind.FAILED) == []


# ------------------------------------------------------------------------------------------- promises of the pool


async def test_nobody_is_called_from_inside_open_or_send_and_a_burst_ends_in_one_tick() -> None:
    async with chat(
        Raw(b'data: {"choices": [{"delta": {"content": "One. Two. Six. "}}]}\n\n'), retries=0
    ) as (
        pool,
        _,
    ):
        owner = Owner()
        stream = opened(pool, owner)
        stream.send(RequestKind.DATA, 1, 1, request())
        assert owner.log == []
        await owner.wait_for(lambda: len(owner.records) > 1)
        assert owner.log[:2] == ["result", "tick"]
        assert owner.log[2:6] == ["result", "result", "result", "tick"]


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_barge_in_ends_the_request_on_the_other_side_too(how: str) -> None:
    async with chat(Answer(["One. ", "Two."], hold_before=1), Answer(["Next."])) as (pool, endpoint):
        owner = Owner()
        stream = opened(pool, owner)
        stream.send(RequestKind.DATA, 1, 1, request())
        await owner.wait_for(lambda: len(owner.records) == 2)
        if how == "close":
            stream.close()
            stream.close()
        else:
            assert stream.send(RequestKind.CANCEL, 1, 0)
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)
        assert len(owner.records) == 2
        assert pool.health().cancelled == 1
        if how == "cancel":
            stream.send(RequestKind.DATA, 2, 1, request())
            await owner.finished(2)
            assert owner.payloads(ResultKind.TEXT, 2) == [b"Next."]
        else:
            assert stream.send(RequestKind.DATA, 2, 1, request()) is False
            assert pool.stats().streams == 0


async def test_results_that_wait_for_delivery_do_not_survive_a_close() -> None:
    async with chat(Answer(["x"])) as (pool, _):
        owner = Owner()
        stream = opened(pool, owner)
        stream.send(RequestKind.DATA, 1, 1, request(""))
        stream.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert owner.log == []


async def test_requests_of_one_stream_keep_their_order() -> None:
    first = Answer(["First."], hold_before=0)
    async with chat(first, Answer(["Second."])) as (pool, endpoint):
        owner = Owner()
        stream = opened(pool, owner)
        assert stream.send(RequestKind.DATA, 1, 1, request())
        assert stream.send(RequestKind.DATA, 2, 2, request())
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        first.release.set()
        await owner.finished(2)
        texts = [(r.turn, r.payload) for r in owner.records if r.kind == ResultKind.TEXT]
        assert texts == [(1, b"First."), (2, b"Second.")]


async def test_full_is_an_answer_and_room_is_told() -> None:
    held = Answer(["First."], hold_before=0)
    async with chat(held, Answer(["Other."]), max_concurrency=1) as (pool, endpoint):
        first, second, third = Owner(), Owner(), Owner()
        stream, waiting = opened(pool, first), opened(pool, second)
        assert stream.send(RequestKind.DATA, 1, 1, request())
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        assert pool.stats().free == 0
        assert pool.stats().workers[0].queued == 1
        assert waiting.send(RequestKind.DATA, 1, 1, request()) is False
        refusal = pool.try_open(third, PARAMS)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "full"
        assert refusal.retry_after_ms >= 50.0
        held.release.set()
        await second.wait_for(lambda: second.rooms == 1)
        await third.wait_for(lambda: third.rooms == 1)
        assert waiting.send(RequestKind.DATA, 1, 1, request())
        await second.finished()
        assert second.payloads(ResultKind.TEXT) == [b"Other."]


async def test_a_payload_that_could_never_fit_is_a_mistake() -> None:
    async with chat(Answer(["x"])) as (pool, _):
        with pytest.raises(ValueError, match="at most"):
            opened(pool, Owner()).send(RequestKind.DATA, 1, 1, b"x" * 5_000_000)


async def test_stop_ends_what_is_on_the_way_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    async with ChatEndpoint(Silent()) as endpoint:
        config = StageConfig(params={"base_url": endpoint.base_url, "uses_proxy": False})
        pool = chat_pool("reply", config)
        await pool.start()
        owner = Owner()
        opened(pool, owner).send(RequestKind.DATA, 1, 1, request())
        await endpoint.wait_for(lambda: len(endpoint.requests) == 1)
        await pool.stop()
        await pool.stop()
        assert isinstance(pool.try_open(owner, PARAMS), Refusal)
        await endpoint.wait_for(lambda: endpoint.abandoned == 1)
        assert owner.payloads(ResultKind.FAILED) == []
    assert asyncio.all_tasks() == before


async def test_a_pool_that_was_not_started_refuses() -> None:
    pool = RemotePool(stage="reply", remote=Chat(ChatConfig("http://localhost:1/v1")))
    assert isinstance(pool.try_open(Owner(), PARAMS), Refusal)
    assert not pool.is_ready()
    await pool.stop()


async def test_an_owner_that_fails_harms_nobody_else() -> None:
    class Bad(Owner):
        def on_result(self, stage: str, record: Any) -> None:
            raise RuntimeError("bug")

    heard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(str(context["exception"])))
    async with chat(Answer(["Fine."])) as (pool, _):
        opened(pool, Bad()).send(RequestKind.DATA, 1, 1, request())
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"Fine."]
    assert "bug" in heard


async def test_an_engine_with_a_bug_fails_the_turn_only() -> None:
    class Buggy(Chat):
        async def answer(self, request: bytes, say: Say) -> None:
            raise KeyError("internal detail")

    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["exception"]))
    pool = RemotePool(stage="reply", remote=Buggy(ChatConfig("http://localhost:1/v1", keep_warm_ms=0)))
    await pool.start()
    told = failure(await ask(pool))
    assert told["code"] == "engine_failed"
    assert "internal" not in told["message"]
    assert isinstance(heard[0], KeyError)
    await pool.stop()


async def test_the_endpoint_is_looked_for_before_anybody_speaks() -> None:
    async with chat(Answer(["Fine."]), keep_warm_ms=60_000) as (pool, endpoint):
        assert not pool.is_ready()
        await endpoint.wait_for(lambda: endpoint.probes == ["/v1/models"])
        while not pool.is_ready():
            await asyncio.sleep(0)
        await ask(pool)
        assert endpoint.connections == 1


async def test_an_endpoint_that_comes_up_later_is_found() -> None:
    async with chat(Answer(["x"])) as (_, endpoint):
        address = endpoint.base_url
    told: list[tuple[str, Mapping[str, object]]] = []
    secret = address.replace("http://", "http://me:secret@")
    pool = chat_pool(
        "reply",
        StageConfig(params={"base_url": secret, "uses_proxy": False}),
        on_event=lambda name, fields: told.append((name, fields)),
    )
    await pool.start()
    assert failure(await ask(pool))["code"] == "reply_unreachable"
    assert not pool.is_ready()
    async with ChatEndpoint(Answer(["Back."]), port=int(address.split(":")[2].split("/")[0])) as endpoint:
        owner = await ask(pool)
        assert owner.payloads(ResultKind.TEXT) == [b"Back."]
        assert pool.is_ready()
        assert len(endpoint.requests) == 1
    await pool.stop()
    states = [(name, fields["url"]) for name, fields in told if name.startswith("endpoint_")]
    assert states == [
        ("endpoint_down", f"{address}/models"),
        ("endpoint_up", address),
    ]
    assert dict(told)["endpoint_down"]["reason"]


# -------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({}, "stages.reply.params.base_url"),
        ({"base_url": "localhost:8000"}, "stages.reply.params.base_url"),
        ({"base_url": "http://x/v1", "modle": "x"}, "stages.reply.params.modle"),
        ({"base_url": "http://x/v1", "retries": "two"}, "stages.reply.params.retries"),
        ({"base_url": "http://x/v1", "retries": -1}, "stages.reply.params.retries"),
        ({"base_url": "http://x/v1", "retries": True}, "stages.reply.params.retries"),
        ({"base_url": "http://x/v1", "api_key_env": "NOT_THERE_AT_ALL"}, "stages.reply.params.api_key_env"),
        ({"base_url": "http://x/v1", "api_key": "a\nb"}, "stages.reply.params.api_key"),
        ({"base_url": "http://x/v1", "header.X": "a\r\nb: c"}, "stages.reply.params.header.X"),
    ],
)
def test_a_wrong_parameter_is_named(params: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chat_pool("reply", StageConfig(params=params))
    assert caught.value.key == key


def test_a_misspelt_parameter_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="'model'"):
        chat_pool("reply", StageConfig(params={"base_url": "http://x/v1", "modle": "x"}))


def test_the_key_comes_from_the_environment_and_shows_nowhere() -> None:
    environ = {"VOICESERVER_CHAT_API_KEY": "sk-env", "MINE": "sk-mine"}
    base: dict[str, Any] = {"base_url": "http://x/v1/"}
    assert ChatConfig.from_params(base, environ).api_key == "sk-env"
    assert ChatConfig.from_params({**base, "api_key": "sk-given"}, environ).api_key == "sk-given"
    config = ChatConfig.from_params({**base, "api_key_env": "MINE", "timeout_ms": 5}, environ)
    assert config.api_key == "sk-mine"
    assert config.base_url == "http://x/v1"
    assert config.timeout_ms == 5.0
    assert "sk-" not in repr(config)


async def test_no_log_line_and_no_message_holds_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = '{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    async with chat(Status(401, body=body), api_key="sk-secret") as (pool, _):
        told = failure(await ask(pool))
    assert "sk-secret" not in json.dumps(told)
    assert "sk-secret" not in caplog.text


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "httpx" else find_spec(name, *more)
    )
    with pytest.raises(ConfigError, match=r"voiceserver\[chat\]"):
        chat_pool("reply", StageConfig(params={"base_url": "http://x/v1"}))
