"""How a session is made, at once or when a silent caller first needs one."""

from __future__ import annotations

from collections.abc import Mapping

from voiceserver.events.events import SessionReady
from voiceserver.pool import Pool, speech_languages, speech_voices
from voiceserver.session import spoken_text
from voiceserver.session.session import Session
from voiceserver.session.settings import ServerSnapshot, SessionSettings
from voiceserver.transport.session_store import SessionStore
from voiceserver.wire import Codec


class SessionFactory:
    """``snapshot``: what all sessions may tell about the server."""

    __slots__ = ("_pools", "settings", "snapshot", "store")

    def __init__(self, settings: SessionSettings, pools: Mapping[str, Pool], store: SessionStore) -> None:
        self.settings = settings
        self.snapshot = ServerSnapshot()
        self._pools = pools
        self.store = store
        if "tts" in settings.stages:
            spoken_text.load(settings.options.language)

    def make(self, codec: Codec, seed: bytes = b"") -> Session:
        """seed: of ``SessionStore.new_seed``; it is used up."""
        seed = seed or self.store.new_seed()
        self.snapshot.voices = speech_voices(self._pools)
        self.snapshot.languages = speech_languages(self._pools)
        return Session(
            self.store.session_id_of(seed),
            self.settings,
            self.snapshot,
            input_rate_hz=codec.input_rate_hz,
            output_rate_hz=codec.output_rate_hz,
            resume_token=self.store.token_of(seed) if codec.traits.resume_parameter else "",
        )

    def greeting(self, codec: Codec, seed: bytes) -> SessionReady:
        """The first event of the session that ``make`` makes of the same seed."""
        return SessionReady(
            session_id=self.store.session_id_of(seed),
            input_rate_hz=codec.input_rate_hz,
            output_rate_hz=codec.output_rate_hz,
            resume_token=self.store.token_of(seed),
            credit_ms=float(self.settings.backpressure.max_backlog_ms),
        )
