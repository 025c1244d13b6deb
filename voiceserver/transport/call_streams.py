"""The streams of one call: opened and closed as its session wants them, and fed with its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from voiceserver.errors import Refusal
from voiceserver.pool import Stream
from voiceserver.session.session import Session
from voiceserver.transport.places import CallPlaces, PlaceOwner

if TYPE_CHECKING:
    from voiceserver.session.outbox import Outbox
    from voiceserver.transport.services import Services


class CallStreams:
    __slots__ = ("_open", "_places", "_services", "_session")

    def __init__(self, services: Services, session: Session, places: CallPlaces) -> None:
        self._services = services
        self._session = session
        self._places = places
        self._open: dict[str, Stream] | None = None

    def is_open(self, stage: str) -> bool:
        return self._open is not None and stage in self._open

    def lose(self, stage: str) -> None:
        """The stream's worker is gone."""
        if self._open is not None:
            self._open.pop(stage, None)

    def follow(self, owner: PlaceOwner, now_ms: float) -> None:
        """Close the streams that the session does not want, open those that it wants, and send what can be sent. ``owner``: gets
        the results of the streams."""
        session = self._session
        while True:
            unwanted, wanted = session.streams_to_change()
            if not unwanted and not wanted:
                break
            for stage in unwanted:
                self._close(stage)
            for stage in wanted:
                self._try_open(stage, owner, now_ms)
        if self._open:
            for stage in session.stages_with_requests():
                outbox = session.outbox_of(stage)
                if outbox is not None:
                    self._send_requests(stage, outbox, self._open[stage], now_ms)

    def send_audio(self, now_ms: float) -> None:  # hot
        """Send what can be sent while the streams are those that are wanted."""
        session = self._session
        if session.settings.check_laws and any(session.streams_to_change()):
            raise AssertionError("a settled session wants other streams than it has")
        if self._open is not None:
            for stage, stream in self._open.items():
                if stage != "tts" or not session.is_output_held:
                    outbox = session.outbox_of(stage)
                    if outbox is not None and outbox.has_unsent():
                        self._send_requests(stage, outbox, stream, now_ms)

    def _try_open(self, stage: str, owner: PlaceOwner, now_ms: float) -> None:
        services, session = self._services, self._session
        if stage == session.settings.audio_stage and not self._may_talk(stage, owner, now_ms):
            return
        pool = services.places.pools.get(stage)
        got: Stream | Refusal = Refusal("no_workers", 1_000.0, stage)
        if pool is not None:
            got = pool.try_open(owner, session.stream_params(stage), key=session.session_id)
        if isinstance(got, Refusal):
            session.stream_refused(stage, got, now_ms)
            return
        if self._open is None:
            self._open = {}
            if services.state.activity.is_resting:
                services.state.activity.note()
        self._open[stage] = got
        session.stream_opened(stage, now_ms, is_lighter=got.is_lighter)

    def _may_talk(self, stage: str, owner: PlaceOwner, now_ms: float) -> bool:
        """Whether there is a place for this speech; otherwise the session knows now that it waits."""
        got = self._places.try_talk(owner, now_ms)
        if isinstance(got, Refusal):
            self._session.stream_refused(stage, got, now_ms)
            return False
        if got is not None and got.is_waiting:
            self._session.waiting(got.position, got.estimate_ms, now_ms)
            return False
        return True

    def _close(self, stage: str) -> None:
        if self._open is not None:
            stream = self._open.pop(stage, None)
            if stream is not None:
                stream.close()
            if not self._open:
                self._open = None
        self._session.stream_closed(stage)
        if stage == self._session.settings.audio_stage:
            self._places.leave_speech(self._services.ticks.now_ms)

    def _send_requests(self, stage: str, outbox: Outbox, stream: Stream, now_ms: float) -> None:  # hot
        try:
            outbox.send_to(stream.send)
        except ValueError:
            request = outbox.next_unsent()
            size = len(request.payload) if request is not None else 0
            message = f"One request of {size} bytes is more than the {stage} stage can take."
            self._session.fail("request_too_big", message, 1009, now_ms)
