"""The session: lifecycle, listening, transcripts, replies, in the order a caller meets them."""

from __future__ import annotations

import msgspec
import pytest

from tests.voiceserver.session_bench import OUT_HZ, RATE_HZ, Bench, settings_of
from voiceserver.errors import IllegalTransition, ProtocolError
from voiceserver.events import events as ev
from voiceserver.session.session import Phase, Session
from voiceserver.session.settings import ServerSnapshot
from voiceserver_workers.ipc.messages import RequestKind, ResultKind

# ------------------------------------------------------------------------------------------------------- lifecycle


def test_opening_says_ready_with_rates_and_credit() -> None:
    session = Session(
        "s1", settings_of(), ServerSnapshot(), input_rate_hz=8000, output_rate_hz=24_000, resume_token="t"
    )
    session.open(0.0)
    assert session.events_to_send() == [
        ev.SessionReady(
            session_id="s1", input_rate_hz=8000, output_rate_hz=24_000, resume_token="t", credit_ms=10_000.0
        )
    ]
    assert session.phase is Phase.OPEN
    assert session.events_to_send() == []


def test_a_session_opens_once() -> None:
    bench = Bench()
    with pytest.raises(IllegalTransition):
        bench.session.open(bench.now_ms)
    assert bench.session.phase is Phase.OPEN


def test_an_idle_session_wants_no_stream_and_no_timer() -> None:
    bench = Bench()
    assert bench.session.streams_to_change()[1] == []
    assert bench.session.deadline_ms == float("inf")


def test_half_a_sample_is_refused_and_changes_nothing() -> None:
    bench = Bench()
    with pytest.raises(ProtocolError, match="half a sample") as caught:
        bench.session.receive_audio(b"\0\0\0", bench.now_ms)
    assert caught.value.code == "audio_misaligned"
    assert bench.session.accounting().received_ms == 0.0


def test_an_empty_chunk_of_audio_is_harmless() -> None:
    bench = Bench()
    bench.session.receive_audio(b"", bench.now_ms)
    bench.pump()
    bench.say()
    assert bench.all(ev.SpeechStarted)


def test_events_before_open_and_after_close_are_refused() -> None:
    session = Session("s1", settings_of(), ServerSnapshot(), input_rate_hz=RATE_HZ, output_rate_hz=OUT_HZ)
    with pytest.raises(ProtocolError) as caught:
        session.receive_event(ev.InputClear(), 0.0)
    assert caught.value.code == "session_not_open"
    session.disconnect(0.0)
    with pytest.raises(ProtocolError):
        session.receive_event(ev.InputClear(), 0.0)


def test_nothing_comes_after_the_close() -> None:
    bench = Bench()
    bench.converse()
    bench.session.disconnect(bench.now_ms)
    bench.pump()
    assert bench.names()[-1] == "session.closing"
    bench.take()
    books = bench.session.accounting()
    bench.session.receive_audio(b"\0\0" * 320, bench.now_ms)
    bench.result("reply", ResultKind.TEXT, 1, 1, "late")
    bench.session.lose_stream("vad", "worker_lost", bench.now_ms)
    bench.session.handle_timer(bench.now_ms + 1e6)
    bench.session.fail("x", "y", 1011, bench.now_ms)
    bench.session.disconnect(bench.now_ms)
    bench.session.drain(10.0, bench.now_ms)
    bench.session.waiting(1, 100.0, bench.now_ms)
    bench.pump()
    assert bench.events == []
    assert bench.session.accounting() == books
    assert bench.session.streams_to_change()[1] == []


# ----------------------------------------------------------------------------------------------------- golden turn


def test_a_turn_in_its_golden_order() -> None:
    bench = Bench()
    bench.pause(320)
    bench.say(640)
    bench.result("stt", ResultKind.TEXT, 1, 0, "go")
    bench.result("stt", ResultKind.TEXT, 1, 0, "go forward")
    bench.pause(640)
    bench.transcribe("go forward")
    bench.answer("Going.", "Ten meters.")
    bench.speak(1, 300)
    bench.speak(2, 300)
    assert bench.names() == [
        "speech.started",
        "transcript.partial",
        "transcript.partial",
        "speech.stopped",
        "input.committed",
        "transcript.final",
        "reply.started",
        "reply.text",
        "reply.text",
        "reply.audio",
        "reply.audio",
        "reply.done",
    ]
    assert bench.one(ev.SpeechStarted).at_ms == 20.0  # 320 ms of silence less 300 ms of padding
    assert bench.one(ev.SpeechStopped) == ev.SpeechStopped(turn=1, at_ms=960.0, reason="silence")
    assert bench.one(ev.TranscriptFinal).text == "go forward"
    done = bench.one(ev.ReplyDone)
    assert (done.reason, done.text, done.turn) == ("completed", "Going. Ten meters.", 1)
    assert done.timings.endpointing_ms == 512.0
    assert done.timings.audio_ms == 600.0
    assert bench.roles() == [("user", "go forward"), ("assistant", "Going. Ten meters.")]


def test_stt_hears_from_the_padding_before_speech_to_the_pause_that_ended_it() -> None:
    bench = Bench()
    bench.pause(640)
    bench.say(640)
    bench.pause(640)
    requests = bench.sent["stt"]
    samples = sum(len(request[3]) for request in requests) // 2
    first = requests[0][2] - len(requests[0][3]) // 2
    assert first == int((640 - 300) * RATE_HZ / 1000)
    pauses = [request for request in requests if request[0] is RequestKind.PAUSE]
    assert [pause[2] for pause in pauses] == [(640 + 640 + 192) * RATE_HZ // 1000]
    assert samples == pauses[0][2] - first
    assert requests[-1][0] == RequestKind.FLUSH
    assert requests[-1][2] == int((1280 + 512) * RATE_HZ / 1000)


def test_a_caller_who_goes_on_after_a_pause_is_heard_whole() -> None:
    bench = Bench()
    bench.pause(640)
    bench.say(640)
    bench.pause(320)
    bench.say(320)
    bench.pause(640)
    requests = bench.sent["stt"]
    kinds = [request[0] for request in requests]
    assert kinds.count(RequestKind.PAUSE) == 2
    assert kinds.count(RequestKind.FLUSH) == 1
    heard = b"".join(request[3] for request in requests)
    first = (640 - 300) * RATE_HZ // 1000
    last = (640 + 640 + 320 + 320 + 192) * RATE_HZ // 1000
    assert len(heard) // 2 == last - first
    ends = [request[2] for request in requests if request[0] == RequestKind.DATA]
    assert ends == sorted(set(ends))


def test_a_decoder_is_held_for_an_utterance_and_not_for_a_call() -> None:
    bench = Bench()
    bench.say()
    assert "stt" in bench.open_stages
    bench.pause()
    assert "stt" in bench.open_stages
    bench.take_stt()
    bench.transcribe("hi")
    assert "stt" not in bench.open_stages
    assert "vad" in bench.open_stages


def test_partials_only_grow_and_a_final_comes_once() -> None:
    bench = Bench()
    bench.say()
    for text in ("go", "go", "gone", "g", "gone forward"):
        bench.result("stt", ResultKind.TEXT, 1, 0, text)
    bench.pause()
    bench.take_stt()
    bench.transcribe("go forward")
    bench.result("stt", ResultKind.FINAL, 1, 10**9, "go forward again")
    assert [event.text for event in bench.all(ev.TranscriptPartial)] == ["go", "gone", "gone forward"]
    assert bench.one(ev.TranscriptFinal).text == "go forward"


def test_a_transcript_that_fails_ends_the_turn_and_not_the_session() -> None:
    bench = Bench()
    bench.say()
    bench.pause()
    bench.result("stt", ResultKind.FAILED, 1, 0, '{"code": "too_long", "message": "no"}')
    assert bench.one(ev.TranscriptFailed) == ev.TranscriptFailed(turn=1, code="too_long", message="no")
    assert bench.all(ev.ReplyStarted) == []
    bench.converse("again")
    assert bench.one(ev.TranscriptFinal).turn == 2


def test_an_engine_that_gives_up_in_mid_speech_closes_the_turn_before_the_failure() -> None:
    bench = Bench()
    bench.say()
    bench.take()
    bench.result("stt", ResultKind.FAILED, 1, 0, "{broken")
    assert bench.names() == ["speech.stopped", "input.committed", "transcript.failed"]
    bench.say()
    assert bench.one(ev.SpeechStarted).turn == 2


def test_a_session_that_does_not_transcribe_still_answers() -> None:
    bench = Bench(transcribes=False)
    bench.converse("hello")
    assert bench.all(ev.TranscriptFinal) == []
    assert bench.one(ev.ReplyStarted).turn == 1


def test_a_transcription_session_never_replies() -> None:
    bench = Bench(replies=False)
    bench.converse("hello")
    assert bench.one(ev.TranscriptFinal).text == "hello"
    assert bench.all(ev.ReplyStarted) == []


def test_a_turn_that_is_too_long_is_cut_and_the_rest_is_the_next_turn() -> None:
    bench = Bench(turn_detection=ev.TurnDetection(max_turn_ms=1000))
    bench.say(1600)
    stopped = bench.one(ev.SpeechStopped)
    assert (stopped.reason, stopped.turn) == ("max_turn", 1)
    assert [event.turn for event in bench.all(ev.SpeechStarted)] == [1, 2]
    by_turn: dict[int, list[tuple[int, int]]] = {}
    for _, turn, seq, payload in bench.sent["stt"]:
        by_turn.setdefault(turn, []).append((seq - len(payload) // 2, seq))
    assert by_turn[2][0][0] == by_turn[1][-1][1], "nothing between the turns is lost or heard twice"


# --------------------------------------------------------------------------------------------------------- by hand


def by_hand(**options: object) -> Bench:
    return Bench(turn_detection=None, **options)


def test_by_hand_everything_is_captured_until_the_commit() -> None:
    bench = by_hand()
    bench.vad_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.InputCommit())
    assert "vad" not in bench.sent
    assert sum(len(payload) for *_, payload in bench.sent["stt"]) == 320 * RATE_HZ // 1000 * 2
    assert bench.sent["stt"][-1][0] == RequestKind.FLUSH
    assert bench.one(ev.InputCommitted).turn == 1
    assert bench.all(ev.SpeechStarted) == []
    bench.take_stt()
    bench.transcribe("by hand")
    assert bench.one(ev.ReplyStarted).turn == 1


def test_a_turn_that_the_client_never_ends_is_ended_for_it_and_nothing_is_lost() -> None:
    bench = Bench(settings_of(max_manual_turn_ms=640.0), turn_detection=None)
    bench.vad_answers = False
    bench.hear(960, 0.0)
    assert bench.one(ev.SpeechStopped).reason == "max_turn"
    assert bench.one(ev.InputCommitted).turn == 1
    bench.transcribe("so far", turn=1)
    assert bench.one(ev.TranscriptFinal).text == "so far"
    assert bench.all(ev.ReplyStarted) == []
    bench.do(ev.InputCommit())
    heard = {
        turn: sum(len(payload) for _, one, _, payload in bench.sent["stt"] if one == turn) for turn in (1, 2)
    }
    assert sum(heard.values()) == 960 * RATE_HZ // 1000 * 2
    assert heard[1] >= 640 * RATE_HZ // 1000 * 2
    kept = bench.session.audio_input
    assert kept is not None
    assert kept.capture.kept_bytes == heard[2]


def test_what_is_kept_of_a_turn_without_end_is_bounded() -> None:
    bench = Bench(settings_of(max_manual_turn_ms=320.0), turn_detection=None)
    bench.vad_answers = False
    most = 0
    for _ in range(20):
        bench.hear(320, 0.0)
        for record in [one for one in bench.sent["stt"] if one[0] == RequestKind.FLUSH]:
            bench.result("stt", ResultKind.FINAL, record[1], record[2], "word")
        assert bench.session.audio_input is not None
        most = max(
            most, bench.session.audio_input.capture.kept_bytes + bench.session.audio_input.outbox.kept_bytes
        )
    assert most <= 2 * 352 * RATE_HZ // 1000 * 2
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms == 6_400.0


def test_a_commit_of_nothing_is_an_error() -> None:
    bench = by_hand()
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.InputCommit())
    assert caught.value.code == "input_empty"


def test_a_commit_can_leave_the_answer_to_the_client() -> None:
    bench = by_hand()
    bench.vad_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.InputCommit(creates_reply=False))
    bench.take_stt()
    bench.transcribe("quiet")
    assert bench.all(ev.ReplyStarted) == []
    bench.do(ev.ReplyCreate())
    assert bench.one(ev.ReplyStarted).turn == 1


def test_clear_forgets_what_was_not_committed() -> None:
    bench = by_hand()
    bench.vad_answers = bench.stt_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.InputClear())
    assert bench.one(ev.InputCleared)
    with pytest.raises(ProtocolError):
        bench.do(ev.InputCommit())
    books = bench.session.accounting()
    assert (books.received_ms, books.discarded_ms, books.consumed_ms) == (320.0, 320.0, 0.0)


def test_clear_keeps_the_turn_that_was_committed_before() -> None:
    bench = by_hand()
    bench.vad_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.InputCommit())
    bench.hear(320, 0.0)
    bench.do(ev.InputClear())
    bench.take_stt()
    bench.transcribe("first", turn=1)
    assert bench.one(ev.TranscriptFinal).turn == 1


def test_speech_can_be_committed_before_its_silence() -> None:
    bench = Bench()
    bench.say()
    bench.do(ev.InputCommit())
    assert bench.one(ev.SpeechStopped).reason == "commit"
    bench.take_stt()
    bench.transcribe("quick")
    assert bench.one(ev.ReplyStarted).turn == 1


def test_switching_detection_off_in_mid_speech_commits_the_turn() -> None:
    bench = Bench()
    bench.say()
    bench.do(ev.SessionUpdate(turn_detection=None))
    assert bench.one(ev.SpeechStopped).reason == "commit"
    assert "vad" not in bench.open_stages
    bench.vad_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.InputCommit())
    assert [event.turn for event in bench.all(ev.InputCommitted)] == [1, 2]


def test_switching_detection_off_takes_over_what_vad_has_not_heard() -> None:
    bench = Bench()
    bench.vad_answers = False
    bench.hear(160, 0.0)
    bench.do(ev.SessionUpdate(turn_detection=None))
    bench.do(ev.InputCommit())
    assert sum(len(payload) for *_, payload in bench.sent["stt"]) == 160 * RATE_HZ // 1000 * 2


def test_a_change_of_detection_leaves_what_it_does_not_name() -> None:
    bench = Bench(turn_detection=ev.TurnDetection(silence_duration_ms=1_500, max_silence_ms=3_000))
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(threshold=0.7)))
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(min_speech_ms=96, max_silence_ms=None)))
    wanted = ev.TurnDetection(silence_duration_ms=1_500, threshold=0.7, min_speech_ms=96)
    assert bench.session.options.turn_detection == wanted


def test_detection_that_is_switched_on_again_is_as_the_server_has_it() -> None:
    settings = settings_of()
    own = ev.TurnDetection(silence_duration_ms=1_500)
    settings = msgspec.structs.replace(
        settings, options=msgspec.structs.replace(settings.options, turn_detection=own)
    )
    bench = Bench(settings)
    bench.do(ev.SessionUpdate(turn_detection=None))
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(threshold=0.7)))
    assert bench.session.options.turn_detection == msgspec.structs.replace(own, threshold=0.7)


def test_switching_detection_on_commits_what_was_captured_by_hand() -> None:
    bench = by_hand()
    bench.vad_answers = False
    bench.hear(320, 0.0)
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetection()))
    assert bench.one(ev.InputCommitted).turn == 1
    bench.vad_answers = True
    bench.vad_seq = bench.seq
    bench.say()
    assert bench.one(ev.SpeechStarted).turn == 2


# --------------------------------------------------------------------------------------------------------- updates


def test_an_update_changes_only_what_it_names() -> None:
    bench = Bench()
    bench.do(ev.SessionUpdate(instructions="Be brief.", voice="de"))
    assert bench.one(ev.SessionUpdated)
    options = bench.session.options
    assert (options.instructions, options.voice, options.speaks) == ("Be brief.", "de", True)
    bench.converse()
    assert bench.asked()["instructions"] == "Be brief."
    assert bench.session.stream_params("tts").options == {"voice": "de"}


@pytest.mark.parametrize(
    ("stages", "update", "code"),
    [
        (("stt",), ev.SessionUpdate(turn_detection=ev.TurnDetection()), "turn_detection_unavailable"),
        (("vad", "stt", "reply"), ev.SessionUpdate(speaks=True), "speech_unavailable"),
        (("vad",), ev.SessionUpdate(transcribes=True), "transcription_unavailable"),
        (("vad", "stt"), ev.SessionUpdate(replies=True), "reply_unavailable"),
    ],
)
def test_what_no_engine_can_do_cannot_be_switched_on(
    stages: tuple[str, ...], update: ev.SessionUpdate, code: str
) -> None:
    bench = Bench(settings_of(stages=stages))
    before = bench.session.options
    with pytest.raises(ProtocolError) as caught:
        bench.do(update)
    assert caught.value.code == code
    assert bench.session.options is before


def test_a_voice_that_the_speech_engine_does_not_have_is_refused_with_near_ones() -> None:
    bench = Bench()
    bench.session.server_snapshot.voices = frozenset({"en-us", "en-gb", "de"})
    bench.do(ev.SessionUpdate(voice="en-us+f3"))  # a variant of one that there is
    before = bench.session.options
    with pytest.raises(ProtocolError, match="en-us") as caught:
        bench.do(ev.SessionUpdate(voice="en-uss"))
    assert (caught.value.code, caught.value.param) == ("unknown_voice", "voice")
    assert bench.session.options is before


# -------------------------------------------------------------------------------------------------------- listeners


def test_a_server_with_vad_only_tells_speech_from_silence() -> None:
    bench = Bench(settings_of(stages=("vad",)), replies=False)
    bench.say()
    bench.pause()
    assert bench.names() == ["speech.started", "speech.stopped", "input.committed"]
    books = bench.session.accounting()
    assert books.consumed_ms == books.received_ms


# ------------------------------------------------------------------------------------------------------ accounting


def test_every_sample_is_accounted_for() -> None:
    bench = Bench()
    bench.vad_answers = False
    for samples in (1, 7, 320, 4096, 333):
        bench.session.receive_audio(b"\0\0" * samples, bench.now_ms)
    bench.session.disconnect(bench.now_ms)
    books = bench.session.accounting()
    assert books.received_ms == round(4757 / 16, 3)
    assert books.received_ms == books.consumed_ms + books.dropped_ms + books.discarded_ms
    assert books.discarded_ms == books.received_ms


def test_audio_after_session_close_is_discarded_and_counted() -> None:
    bench = Bench()
    bench.say(320)
    bench.do(ev.SessionClose())
    bench.session.receive_audio(b"\0\0" * 160, bench.now_ms)
    bench.take_stt()
    bench.transcribe("bye")
    bench.answer("Bye.")
    bench.speak(1, 100)
    closing = bench.one(ev.SessionClosing)
    assert closing.accounting.discarded_ms == 10.0
    assert closing.accounting.received_ms == 330.0


def test_the_counters_tell_the_whole_call() -> None:
    bench = Bench()
    bench.converse()
    bench.answer("Hello there.")
    bench.speak(1, 500)
    counters = bench.session.counters()
    assert counters["turns"] == counters["replies"] == 1
    assert counters["reply_audio_ms"] == 500.0
    assert counters["received_ms"] == counters["consumed_ms"] == 1280.0


# ----------------------------------------------------------------------------------------------------------- close


def test_session_close_finishes_the_turn_then_closes_with_1000() -> None:
    bench = Bench()
    bench.say()
    bench.do(ev.SessionClose())
    assert bench.one(ev.SpeechStopped).reason == "close"
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ReplyCreate())
    assert caught.value.code == "session_draining"
    bench.take_stt()
    bench.transcribe("the end")
    bench.answer("Bye.")
    assert not bench.session.is_closed
    bench.speak(1, 200)
    assert bench.session.is_closed
    assert bench.session.close_code == 1000
    assert bench.names()[-2:] == ["reply.done", "session.closing"]


def test_session_close_of_an_idle_session_closes_at_once() -> None:
    bench = Bench()
    bench.do(ev.SessionClose())
    assert bench.names() == ["session.closing"]
    assert bench.session.is_closed


def test_session_close_waits_for_vad_to_hear_the_last_audio() -> None:
    bench = Bench()
    bench.vad_answers = False
    bench.hear(320, 0.9)
    bench.do(ev.SessionClose())
    assert not bench.session.is_closed
    bench.answer_vad(0.9)
    assert bench.one(ev.SpeechStopped).reason == "close"
    bench.take_stt()
    bench.transcribe("last words")
    assert bench.one(ev.TranscriptFinal).text == "last words"


def test_a_drain_is_announced_finishes_the_turn_and_closes_with_1012() -> None:
    bench = Bench()
    bench.converse()
    bench.session.drain(5_000.0, bench.now_ms)
    bench.pump()
    assert bench.one(ev.ServerDraining).deadline_ms == 5_000.0
    bench.answer("Yes.")
    bench.speak(1, 100)
    assert (bench.session.is_closed, bench.session.close_code) == (True, 1012)


def test_a_drain_does_not_wait_longer_than_its_deadline() -> None:
    bench = Bench(settings_of(reply_timeout_ms=60_000.0))
    bench.converse()
    bench.session.drain(2_000.0, bench.now_ms)
    bench.pump()
    bench.pass_time(1_999.0)
    assert not bench.session.is_closed
    bench.pass_time(2.0)
    assert bench.session.is_closed
    assert bench.one(ev.ReplyDone).reason == "cancelled"
    assert bench.names()[-1] == "session.closing"


def test_a_failure_is_told_before_the_close() -> None:
    bench = Bench()
    bench.session.fail("at_capacity", "no place", 1013, bench.now_ms)
    bench.pump()
    assert bench.names() == ["error", "session.closing"]
    assert bench.one(ev.ErrorEvent).retryable
    assert bench.session.close_code == 1013


# ------------------------------------------------------------------------------------------------------------ items


def test_items_of_the_client_reach_the_reply_in_their_places() -> None:
    bench = Bench()
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="b", key="b")))
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="system", text="a", key="a"), after_key="root"))
    bench.do(ev.ItemAppend(item=ev.HistoryItem(role="assistant", text="ab", key="ab"), after_key="a"))
    bench.do(ev.ItemDelete(key="b"))
    bench.do(ev.ReplyCreate())
    assert bench.asked()["messages"] == [
        {"role": "system", "content": "a"},
        {"role": "assistant", "content": "ab"},
    ]


@pytest.mark.parametrize("key", ["root", "user:1", "reply:1", "call:1:0"])
def test_a_client_key_cannot_collide_with_what_the_server_records(key: str) -> None:
    bench = Bench()
    with pytest.raises(ProtocolError) as caught:
        bench.do(ev.ItemAppend(item=ev.HistoryItem(role="user", text="mine", key=key)))
    assert (caught.value.code, caught.value.param) == ("reserved_key", "item.key")
    assert bench.roles() == []


def test_an_item_after_one_that_there_is_not_names_that_field_and_shows_a_little_of_it() -> None:
    with pytest.raises(ProtocolError) as caught:
        Bench().do(ev.ItemAppend(item=ev.HistoryItem(role="user"), after_key="x" * 500))
    assert caught.value.param == "after_key"
    assert len(str(caught.value)) < 150


def nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


LOOK = ev.Tool("look")


@pytest.mark.parametrize(
    ("event", "param", "words"),
    [
        (ev.SessionUpdate(tools=(LOOK, LOOK)), "tools[1].name", "unique"),
        (ev.SessionUpdate(tools=(ev.Tool("a", "", nested(65)),)), "tools[0].parameters", "64 levels"),
        (ev.SessionUpdate(tools=tuple(ev.Tool(f"t{n}") for n in range(129))), "tools", "128"),
        (ev.SessionUpdate(tool_choice="look"), "tool_choice", "auto, none, required"),
        (ev.SessionUpdate(tools=(LOOK,), tool_choice="lok"), "tool_choice", "required, look"),
        (ev.ReplyCreate(tools=(LOOK, LOOK)), "tools[1].name", "unique"),
        (ev.ReplyCreate(tool_choice="look"), "tool_choice", "auto, none, required"),
        (
            ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(min_silence_ms=900, max_silence_ms=800)),
            "turn_detection.min_silence_ms",
            "at most max_silence_ms",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_and_changes_nothing(
    event: ev.ClientEvent, param: str, words: str
) -> None:
    bench = Bench()
    before = bench.session.options
    with pytest.raises(ProtocolError, match=words) as caught:
        bench.do(event)
    assert caught.value.param == param
    assert bench.session.options == before
    assert bench.session.reply is None


def test_tools_and_the_choice_among_them_fit_together() -> None:
    bench = Bench()
    bench.do(ev.SessionUpdate(tools=(ev.Tool("look", "", nested(64)),), tool_choice="look"))
    bench.do(ev.SessionUpdate(tools=(LOOK, ev.Tool("stop"))))
    assert bench.session.options.tool_choice == "look"
    bench.do(ev.SessionUpdate(tools=(ev.Tool("stop"),)))
    assert bench.session.options.tool_choice == "auto", "the tool of that name is gone"


def test_what_the_configuration_says_of_silence_does_not_stand_in_the_way_of_other_changes() -> None:
    bench = Bench()
    bench.session.options = msgspec.structs.replace(
        bench.session.options, turn_detection=ev.TurnDetection(min_silence_ms=900, max_silence_ms=800)
    )
    bench.do(ev.SessionUpdate(turn_detection=ev.TurnDetectionChange(threshold=0.7)))
    assert bench.session.options.turn_detection == ev.TurnDetection(
        threshold=0.7, min_silence_ms=900, max_silence_ms=800
    )


@pytest.mark.parametrize("event", [ev.ItemDelete(key="x"), ev.ItemAppend(ev.HistoryItem("user"), "x")])
def test_an_unknown_item_is_an_error_that_changes_nothing(event: ev.ClientEvent) -> None:
    bench = Bench()
    with pytest.raises(ProtocolError) as caught:
        bench.do(event)
    assert caught.value.code == "item_not_found"
    assert bench.roles() == []


def test_a_telephone_key_is_heard() -> None:
    bench = Bench()
    bench.do(ev.Digit(digit="5"))
    assert bench.one(ev.DigitHeard).digit == "5"


def test_events_can_be_told_apart_by_their_tags() -> None:
    tags = [kind.__struct_config__.tag for kind in ev.ServerEvent.__args__]
    assert len(tags) == len(set(tags))
    assert msgspec.json.decode(msgspec.json.encode(ev.BusyCue(cue="busy")))["type"] == "server.cue"
