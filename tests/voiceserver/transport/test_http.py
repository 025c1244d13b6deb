from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest

from tests.voiceserver.shell import Shell, upgrade
from voiceserver.capacity.admission import Admission
from voiceserver.config.schema import AuthConfig, BackpressureConfig
from voiceserver.errors import ProtocolError
from voiceserver.server.auth import Auth, hash_of
from voiceserver.transport.http import Caller, Response, Router, Routes, Upgrade, json_response
from voiceserver.transport.server_state import ServerState
from voiceserver.wire import Codec, CodecTraits
from voiceserver.wire.native import NativeCodec, codec_for


def get(path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n".encode()


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (get("/nope"), 404, "not_found"),
        (get("/v1/stream"), 426, "upgrade_required"),
        (get("/healthz", "POST"), 405, "method_not_allowed"),
        (get("/healthz", "POST", "Content-Length: 5\r\n") + b"hello", 405, "method_not_allowed"),
        (get("/v1/stream", "DELETE"), 405, "method_not_allowed"),
        (get("/healthz", "PUT", "Content-Length: 5\r\n"), 405, "method_not_allowed"),
        (get("/healthz", "PUT", "Transfer-Encoding: chunked\r\n"), 405, "method_not_allowed"),
        (get("/healthz", "POST", "Content-Length: abc\r\n"), 400, "bad_request"),
        (get("/healthz", "POST", "Content-Length: -2\r\n"), 400, "bad_request"),
        (get("/healthz", "POST", "Content-Length: \r\n"), 400, "bad_request"),
        (get("/healthz", "POST", "Content-Length: 2\r\nContent-Length: 3\r\n"), 400, "bad_request"),
        (get("/healthz", "POST", "Content-Length: 70000\r\n"), 413, "request_too_large"),
        (get("/healthz", "POST", "Content-Length: " + "9" * 20 + "\r\n"), 400, "bad_request"),
        (get("/healthz", "POST", "Transfer-Encoding: chunked\r\n"), 411, "length_required"),
        (get("/healthz", more="Content-Length: 5\r\n"), 400, "bad_request"),
        (b"hello world\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/3\r\n\r\n", 400, "bad_request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (get("/" + "a" * 9_000), 414, "request_too_large"),
        (get("/", more="X: " + "a" * 9_000 + "\r\n"), 431, "request_too_large"),
        (get("/", more="X: a\r\n" * 200), 431, "request_too_large"),
        (get("/", more="Host: other\r\n"), 400, "bad_request"),
        (upgrade("/v1/twilio").replace(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n"), 400, "bad_request"),
        (
            upgrade("/v1/twilio").replace(
                b"\r\n\r\n", b"\r\nX-Twilio-Signature: a\r\nX-Twilio-Signature: b\r\n\r\n"
            ),
            400,
            "bad_request",
        ),
        (upgrade("/healthz"), 404, "not_found"),
        (upgrade("/v1/stream?rate=7"), 400, "unsupported_rate"),
        (upgrade("/v1/stream?rte=8000"), 400, "unknown_parameter"),
        (upgrade().replace(b"-Version: 13", b"-Version: 12"), 426, "bad_handshake"),
        (upgrade().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400, "bad_handshake"),
        (upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, "bad_handshake"),
    ],
)
def test_a_refusal_is_json_with_a_code_and_closes(head: bytes, status: int, code: str) -> None:
    line = Shell("vad").call(head)
    assert (line.status, line.body["error"]["code"]) == (status, code)
    assert line.body["error"]["message"].endswith(".")
    assert line.transport.is_ended


def test_a_bad_rate_names_the_parameter() -> None:
    assert Shell("vad").call(upgrade("/v1/stream?rate=7")).body["error"]["param"] == "rate"


def test_the_usual_headers_say_what_to_do_instead() -> None:
    for more in ("", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"):
        assert b"\r\nAllow: GET, HEAD\r\n" in Shell("vad").call(get("/healthz", "PUT", more)).transport.data
    assert b"\r\nUpgrade: websocket\r\n" in Shell("vad").call(get("/v1/stream")).transport.data
    other_version = Shell("vad").call(upgrade().replace(b"-Version: 13", b"-Version: 12")).transport.data
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in other_version
    assert b"\r\nUpgrade: websocket\r\n" in other_version
    no_connection = Shell("vad").call(upgrade().replace(b"Connection: Upgrade\r\n", b"")).transport.data
    assert b"\r\nUpgrade: websocket\r\n" in no_connection


def test_a_path_that_is_posted_to_says_so() -> None:
    router = make_router(Routes(actions={"/do": lambda caller: json_response(200, {})}))
    for method in ("GET", "HEAD", "PUT"):
        answer = router.answer(get("/do", method), 0.0)
        assert isinstance(answer, Response)
        assert (answer.status, answer.headers) == (405, (("Allow", "POST"),))


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/v1/stream", 426), ("/nope", 404), ("/metrics", 200)]
)
def test_head_is_answered_as_get_is_without_the_body(path: str, status: int) -> None:
    shell = Shell("vad")
    told = bytes(shell.call(get(path, "HEAD")).transport.data)
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert not body
    if path != "/metrics":
        assert head == bytes(shell.call(get(path)).transport.data).partition(b"\r\n\r\n")[0]
    assert bytes(shell.call(upgrade().replace(b"GET ", b"HEAD ")).transport.data).startswith(b"HTTP/1.1 426 ")


def test_json_that_is_too_deep_for_who_reads_it_is_a_mistake_and_no_fault() -> None:
    def deep(caller: Caller) -> Codec:
        raise RecursionError

    router = make_router(Routes(wires={"/deep": deep}))
    answer = router.answer(upgrade("/deep"), 0.0)
    assert isinstance(answer, Response)
    assert answer.status == 400


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (get("/healthz/"), 200),
        (get("/healthz//"), 200),
        (get("/healthz/?probe=1"), 200),
        (get("http://lb.example:8080/healthz"), 200),
        (get("HTTPS://lb.example/healthz/"), 200),
        (get("/healthz/", "HEAD"), 200),
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"OPTIONS /healthz HTTP/1.0\r\n\r\n", 204),
        (get("/healthz", "OPTIONS"), 204),
        (get("/v1/stream", "OPTIONS"), 204),
        (get("/v1/stream/"), 426),
        (get("/nope/"), 404),
        (get("/openai/healthz"), 404),
        (get("/openai/"), 404),
        (get("/v1/"), 404),
        (get("/openai/v1/realtime/client_secrets"), 405),
        (get("http://lb.example/nope"), 404),
    ],
)
def test_health_checkers_get_the_answer_of_the_path_that_they_mean(head: bytes, status: int) -> None:
    assert Shell("vad").call(head).status == status


def test_options_tell_the_methods_of_a_path() -> None:
    routes = Routes(
        {"/": lambda caller: json_response(200, {})}, {"/v1/do": lambda caller: json_response(200, {})}
    )
    router = make_router(routes)
    for path, methods in (
        ("/", "GET, HEAD, OPTIONS"),
        ("*", "GET, HEAD, OPTIONS"),
        ("/v1/do", "POST, OPTIONS"),
    ):
        answer = router.answer(get(path, "OPTIONS"), 0.0)
        assert isinstance(answer, Response)
        assert (answer.status, dict(answer.headers)["Allow"]) == (204, methods)


def test_a_wire_is_found_with_a_slash_at_the_end_too() -> None:
    assert Shell("vad").call(upgrade("/v1/stream/")).status == 101


@pytest.mark.parametrize(
    "path",
    [
        "/openai/realtime?api-version=2024-10-01-preview&deployment=m",
        "/openai/v1/realtime?model=m",
        "/realtime/",
        "/v1/v1/realtime",
    ],
)
def test_other_forms_of_the_realtime_path_are_the_realtime_wire(path: str) -> None:
    assert Shell("vad").call(upgrade(path)).status == 101


def test_a_refusal_states_one_wait() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1, retry_after_ms=2_000))
    shell.call()
    for _ in range(20):
        line = shell.call()
        header = bytes(line.transport.data).partition(b"Retry-After: ")[2].partition(b"\r\n")[0].decode()
        error = line.body["error"]
        assert f"try again in about {header} s." in error["message"]
        assert 0 <= int(header) * 1_000 - error["retry_after_ms"] <= 1_000


def test_health_readiness_capacity_and_metrics() -> None:
    shell = Shell("vad", "stt")
    assert shell.call(get("/healthz?x=1")).body == {"status": "ok"}
    assert shell.call(get("/readyz")).body == {"status": "ready", "why": []}
    shell.pools["stt"].ready = False
    unready = shell.call(get("/readyz"))
    assert (unready.status, unready.body["why"]) == (503, [{"reason": "no worker is ready", "stage": "stt"}])
    shell.pools["stt"].ready = True
    shell.services.state.begin_drain()
    assert shell.call(get("/readyz")).body["why"] == [{"reason": "draining"}]
    stages = shell.call(get("/v1/capacity")).body["stages"]
    assert list(stages) == ["vad", "stt"]
    assert set(stages["vad"]) >= {"workers", "streams", "free", "lag_ms"}


def test_metrics_tell_what_happened() -> None:
    shell = Shell("vad")
    shell.metrics.observe_pools(lambda: [pool.stats() for pool in shell.pools.values()])
    line = shell.call()
    shell.call(get("/nope")).lose()
    text = shell.call(get("/metrics")).transport.data.decode()
    assert 'voiceserver_sessions_opened_total{wire="native"} 1.0' in text
    assert 'voiceserver_http_responses_total{status="404"} 1.0' in text
    assert 'voiceserver_stage_streams{stage="vad"} 0.0' in text
    assert "voiceserver_sessions 1.0" in text
    line.lose()
    text = shell.call(get("/metrics")).transport.data.decode()
    assert 'voiceserver_sessions_closed_total{code="1006",wire="native"} 1.0' in text


def make_router(routes: Routes | None = None, auth: AuthConfig = AuthConfig()) -> Router:  # noqa: B008  # frozen
    routes = routes or Routes()

    def wire(caller: Caller) -> Codec:
        if caller.query.get("bad"):
            raise ProtocolError("bad", "Bad.", param="bad")
        return codec_for(16_000, 24_000)

    routes.wires.setdefault("/", wire)
    routes.pages["/"] = lambda caller: json_response(200, {"page": True})
    admission, gatekeeper = Admission(0, 0, "connection", 1.0), Auth(auth, lambda: 0.0)
    return Router(routes, admission, gatekeeper, ServerState(), lambda *_: None, random.Random(1))


def test_one_path_may_be_a_page_and_a_websocket() -> None:
    router = make_router()
    assert isinstance(page := router.answer(get("/"), 0.0), Response)
    assert page.status == 200
    assert isinstance(router.answer(upgrade("/"), 0.0), Upgrade)


def test_the_auth_hook_refuses_before_a_codec_or_a_place_is_taken() -> None:
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text(f'[keys.x]\nhash = "{hash_of("x")}"\n')
        router = make_router(auth=AuthConfig(keys_file=str(keys)))
    refused = router.answer(upgrade("/?bad=1"), 0.0)
    assert isinstance(refused, Response)
    assert refused.status == 401
    assert isinstance(router.answer(upgrade("/", "Authorization: Bearer x\r\n"), 0.0), Upgrade)


def test_a_subprotocol_is_selected_only_if_offered() -> None:
    class Realtime(NativeCodec):
        __slots__ = ()
        traits = CodecTraits(name="realtime", subprotocol="realtime")

    router = make_router(Routes(wires={"/": lambda caller: Realtime(16_000, 24_000)}))
    offered = router.answer(upgrade("/", "Sec-WebSocket-Protocol: x-key.abc, realtime\r\n"), 0.0)
    plain = router.answer(upgrade("/"), 0.0)
    other = router.answer(upgrade("/", "Sec-WebSocket-Protocol: graphql\r\n"), 0.0)
    assert isinstance(offered, Upgrade)
    assert isinstance(plain, Upgrade)
    assert isinstance(other, Upgrade)
    assert b"Sec-WebSocket-Protocol: realtime\r\n" in offered.data
    assert b"Protocol:" not in plain.data
    assert b"Protocol:" not in other.data


def test_those_who_are_refused_together_do_not_come_back_in_the_same_second() -> None:
    """Most clients read the header only, and it counts in whole seconds."""
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1))
    shell.call()
    heads = [bytes(shell.call().transport.data).partition(b"Retry-After: ")[2] for _ in range(50)]
    assert {head.partition(b"\r\n")[0] for head in heads} == {b"3", b"4", b"5"}


def test_who_is_refused_hears_when_to_come_back_and_the_metrics_say_why() -> None:
    shell = Shell("vad", limits=BackpressureConfig(max_connections=1, retry_after_ms=4_000))
    shell.call()
    assert shell.call().status == 503
    told = [
        shell.call(upgrade(path, "Origin: https://a.test\r\n")).events()[0]
        for path in ("/v1/stream", "/v1/realtime")
    ]
    assert 4_000.0 <= told[0]["retry_after_ms"] <= 7_000.0
    assert 4_000.0 <= told[1]["error"]["retry_after_ms"] <= 7_000.0
    shell.services.state.begin_drain()
    assert shell.call().status == 503
    assert shell.call(get("/readyz")).status == 503, "a page that says no refuses nobody"
    lines = shell.metrics.to_text().decode().splitlines()
    refused = [line for line in lines if line.startswith("voiceserver_refused_total{")]
    assert sorted(refused) == [
        'voiceserver_refused_total{reason="at_capacity"} 3.0',
        'voiceserver_refused_total{reason="draining"} 1.0',
        'voiceserver_refused_total{reason="tenant_share"} 0.0',
    ]
