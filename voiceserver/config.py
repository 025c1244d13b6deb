"""The one config model: TOML file, environment, flags; flags win over environment over file over defaults.

The structs here are the schema; ``load`` reads and merges. Every setting has one dotted name (``stages.stt.workers``), which is
its TOML path, its environment name (``VOICESERVER_STAGES__STT__WORKERS``) and its ``--set`` name.
"""

from __future__ import annotations

import msgspec

Value = str | int | float | bool


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8765
    processes: int = 1
    backlog: int = 4096
    max_message_bytes: int = 1_048_576
    handshake_timeout_ms: int = 5_000
    ping_interval_ms: int = 20_000
    ping_timeout_ms: int = 20_000
    idle_timeout_ms: int = 0  # close a session that neither sends nor receives for so long; 0: never
    max_session_ms: int = 0  # 0: no limit
    drain_timeout_ms: int = 10_000
    write_limit_bytes: int = 262_144  # unsent bytes of one connection above which its reply stops running ahead
    slow_reader_timeout_ms: int = 15_000  # a reader that stays above the limit for so long is closed
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "info"
    log_format: str = "auto"  # auto, console, json
    check_laws: bool = False  # assert the conservation law on every input


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a session; clients may change most of them by ``session.update``."""

    output_rate_hz: int = 24_000
    instructions: str = "You are a helpful voice assistant. Answer briefly, in one or two spoken sentences."
    voice: str = ""
    language: str = ""
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    min_speech_ms: int = 64
    max_turn_ms: int = 30_000
    history_items: int = 200
    resume_window_ms: int = 60_000
    reply_timeout_ms: int = 10_000  # a reply that has not begun by then is announced as failed
    audible_busy: bool = False


class BackpressureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    busy_after_ms: int = 250
    busy_repeat_ms: int = 1_000
    ready_below_ms: int = 100  # hysteresis: ready again below this lag
    max_backlog_ms: int = 10_000  # oldest audio beyond it is shed, and said
    max_connections: int = 0  # 0: what the open-file limit carries
    max_talkers: int = 0  # 0: learned
    hold: str = "connection"  # what takes a talker's place: a connection, or only speech
    waiting_room: int = 32
    waiting_timeout_ms: int = 60_000
    retry_after_ms: int = 2_000  # before there is a measurement


class StageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``engine`` "none" switches the stage off. ``workers`` 0: one per core up to the engine's advice."""

    engine: str = "none"
    workers: int = 1
    max_batch_size: int = 64
    max_wait_ms: float = 0.0
    streams_per_worker: int = 0  # 0: what the engine says
    step_timeout_ms: int = 5_000
    request_slots: int = 1024
    result_slots: int = 2048
    slot_bytes: int = 4096
    params: dict[str, Value] = {}


class StagesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vad: StageConfig = StageConfig(engine="silero", max_wait_ms=3.0, max_batch_size=256)
    stt: StageConfig = StageConfig(engine="pocketsphinx", workers=2, max_batch_size=8)
    reply: StageConfig = StageConfig(engine="concierge")
    tts: StageConfig = StageConfig(engine="espeak")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: ServerConfig = ServerConfig()
    session: SessionConfig = SessionConfig()
    backpressure: BackpressureConfig = BackpressureConfig()
    stages: StagesConfig = StagesConfig()
