"""The settings of the server, as structs. A file of TOML, the environment and flags fill them (``loader``).

Every setting has one dotted name, the path to it in these structs: ``stages.stt.workers``. Its meaning is a line
``name: meaning`` in the docstring of its struct, after an empty line; ``meanings_of`` reads them, and a test holds that each
setting has one. Types and defaults are those of the fields; which values are allowed beyond the type is in ``rules``.
"""

from __future__ import annotations

import inspect
import re
from typing import Final, Literal

import msgspec

from voiceserver.errors import ConfigError
from voiceserver.events.events import MAX_TURN_MS
from voiceserver_workers import registry

Value = str | int | float | bool
StageName = Literal["vad", "stt", "reply", "tts"]
_MEANING: Final = re.compile(r"^(\w+): (.+)$", re.MULTILINE)


def meanings_of(kind: type) -> dict[str, str]:
    """What each setting of ``kind`` means, as its docstring says in lines of ``name: meaning``."""
    return dict(_MEANING.findall(inspect.cleandoc(kind.__doc__ or "")))


def has_engine(name: str) -> bool:
    """Whether the setting ``engine`` of a stage names one; "none" and "" switch the stage off."""
    return name not in ("", "none")


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The process, its port and its connections.

    host: Address to listen on; 0.0.0.0 to be reached from other machines.
    port: Port to listen on; 0: any free one.
    processes: Server processes that share the port.
    backlog: Connections that the kernel keeps until the server accepts them.
    trusted_proxies: Addresses or networks of proxies, with commas between, whose X-Forwarded-For or Forwarded is believed.
    max_message_bytes: A longer message closes its connection with 1009.
    handshake_timeout_ms: Time for the upgrade request to arrive in full.
    ping_interval_ms: Time between two pings of a connection; 0: no pings.
    ping_timeout_ms: A connection whose pong takes longer is closed.
    idle_timeout_ms: Close a session that neither sends nor receives for so long; 0: never.
    max_session_ms: Close a session that lasts longer; 0: no limit.
    drain_timeout_ms: Time that SIGTERM leaves to turns in progress.
    drain_until_idle_ms: Time that it leaves to calls before that, to end by themselves, as phones cannot call back; 0: none.
    reuse_port: Share the port with another server of this user, so that one can take over from the other without a gap.
    write_limit_bytes: Unsent bytes of one connection above which its reply is sent no faster than it is read.
    slow_reader_timeout_ms: Close a connection that stays above that limit for so long.
    tls_cert: Path of the certificate chain for wss; empty: no TLS.
    tls_key: Path of the private key of the certificate.
    log_level: Least level that is logged: debug, info, warning or error.
    log_format: console for people, json for programs; auto: console on a terminal.
    check_laws: Check the conservation law of audio on every input, for tests.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    processes: int = 1
    backlog: int = 4096
    trusted_proxies: str = ""
    max_message_bytes: int = 1_048_576
    handshake_timeout_ms: int = 5_000
    ping_interval_ms: int = 20_000
    ping_timeout_ms: int = 20_000
    idle_timeout_ms: int = 0
    max_session_ms: int = 0
    drain_timeout_ms: int = 10_000
    drain_until_idle_ms: int = 0
    reuse_port: bool = False
    write_limit_bytes: int = 262_144
    slow_reader_timeout_ms: int = 15_000
    tls_cert: str = ""
    tls_key: str = ""
    log_level: str = "info"
    log_format: str = "auto"
    check_laws: bool = False


class SessionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of a session; clients may change most of them by ``session.update``.

    output_rate_hz: Sample rate of the reply's audio.
    instructions: System prompt of a reply engine that is a language model.
    voice: A voice of the tts engine; empty: the engine's own.
    language: Language of the caller, such as en; empty: the engine's own.
    threshold: Speech probability from which on a caller is taken to speak.
    prefix_padding_ms: Audio before the start of speech that belongs to the turn.
    silence_duration_ms: Silence that ends a turn.
    audio_grace_ms: A turn also ends when no audio comes for silence_duration_ms and this long; 0: on audio only.
    min_silence_ms: Silence that ends a turn which the vad engine (smart_turn) judges complete.
    max_silence_ms: Silence that ends a turn which it judges incomplete; 0: silence_duration_ms.
    min_speech_ms: Speech that is shorter does not begin a turn.
    max_turn_ms: A turn that lasts longer is ended.
    max_manual_turn_ms: A turn that the client ends by hand is ended for it after so long.
    history_items: Items of the conversation that a reply engine is given.
    resume_window_ms: Time that a call is kept for a client whose connection broke; 0: none is kept.
    reply_timeout_ms: A reply that has not begun by then is announced as failed.
    audible_busy: Play a tone or a spoken line for each busy signal, for clients that read no events.
    false_interruption_ms: Resume an interrupted reply when no words were recognised by then; 0: never.
    backchannels: Words, with commas between, that alone do not interrupt a reply, such as "mm-hm, uh huh".
    preemptive: Request the reply at a pause, before the turn is certain to be over.
    filler: Spoken while a reply is late: texts with | between, or "tone"; empty: nothing.
    filler_after_ms: Silence since the end of the turn before a filler, and between fillers.
    """

    output_rate_hz: int = 24_000
    instructions: str = "You are a helpful voice assistant. Answer briefly, in one or two spoken sentences."
    voice: str = ""
    language: str = ""
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    audio_grace_ms: int = 500
    min_silence_ms: int = 250
    max_silence_ms: int = 0
    min_speech_ms: int = 64
    max_turn_ms: int = 30_000
    max_manual_turn_ms: int = MAX_TURN_MS
    history_items: int = 200
    resume_window_ms: int = 60_000
    reply_timeout_ms: int = 10_000
    audible_busy: bool = False
    false_interruption_ms: int = 2_000
    backchannels: str = ""
    preemptive: bool = False
    filler: str = ""
    filler_after_ms: int = 1_000


class BackpressureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the server says that it is busy, how much it keeps, and how many callers it admits.

    busy_after_ms: Audio that waits longer for a worker is announced by server.busy.
    busy_repeat_ms: Time between two busy signals.
    ready_below_ms: Lag below which server.ready follows.
    max_backlog_ms: The oldest audio of a turn beyond this is dropped, and announced as dropped.
    max_connections: Connections at once; 0: what the limit of open files carries.
    max_talkers: Callers who may talk at once; 0: learned from measurements.
    hold: What takes the place of a talker: connection, or only speech.
    waiting_room: Callers who may wait for a place.
    waiting_timeout_ms: A caller who waits longer is refused.
    tenant_share: Part of the places that callers of one remote address may have; 1: all.
    retry_after_ms: Retry-After of a refusal before there is a measurement.
    """

    busy_after_ms: int = 250
    busy_repeat_ms: int = 1_000
    ready_below_ms: int = 100
    max_backlog_ms: int = 10_000
    max_connections: int = 0
    max_talkers: int = 0
    hold: str = "connection"
    waiting_room: int = 32
    waiting_timeout_ms: int = 60_000
    tenant_share: float = 0.8
    retry_after_ms: int = 2_000


class AuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """API keys, and the pages that may connect.

    keys_file: TOML file made with `voiceserver key`; callers then need one of its keys.
    origins: Origins of the pages that may connect, with commas between; empty: all.
    token_ttl_ms: Life of an ephemeral client token that is requested without another.
    token_secret: Signs client tokens; empty: made at each start.
    admin_token: The secret of POST /v1/drain where there are no keys; empty: made at each start, for this machine only.
    """

    keys_file: str = ""
    origins: str = ""
    token_ttl_ms: int = 600_000
    token_secret: str = ""
    admin_token: str = ""


class TwilioConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Calls by Twilio Media Streams.

    auth_token: Of the Twilio account; then only calls that Twilio has signed are admitted.
    public_url: The wss:// address in the TwiML, where a proxy changes host or path.
    """

    auth_token: str = ""
    public_url: str = ""


class LighterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A second engine of a stage, which takes new turns while the server is overloaded (last step of the ladder).

    engine: Name of the engine, or module:attr; none: there is no lighter engine.
    workers: Worker processes; 0: one per core.
    max_batch_size: Most items of one engine step.
    streams_per_worker: Places for streams on one worker; 0: as many as the engine says.
    params: Parameters of the engine.
    """

    engine: str = "none"
    workers: int = 1
    max_batch_size: int = 64
    streams_per_worker: int = 0
    params: dict[str, Value] = {}


class StageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage: an engine and its workers.

    engine: Name of the engine, or module:attr; auto: the best for stt or tts that is installed; none: the stage is off.
    workers: Worker processes; 0: one per core.
    max_batch_size: Most items of one engine step.
    max_wait_ms: Time that the first item of a batch waits for others.
    streams_per_worker: Places for streams on one worker; 0: as many as the engine says.
    step_timeout_ms: A step that takes longer is a hang, and its worker is replaced.
    stall_timeout_ms: Silence without any progress after which an engine with known step times counts as hung; 0: never.
    request_slots: Slots of the ring to each worker, a power of two.
    result_slots: Slots of the ring from each worker, a power of two.
    slot_bytes: Bytes of one slot, with a header of 64.
    params: Parameters of the engine.
    lighter: A lighter engine for times of overload.
    """

    engine: str = "none"
    workers: int = 1
    max_batch_size: int = 64
    max_wait_ms: float = 0.0
    streams_per_worker: int = 0
    step_timeout_ms: int = 5_000
    stall_timeout_ms: int = 500
    request_slots: int = 1024
    result_slots: int = 2048
    slot_bytes: int = 4096
    params: dict[str, Value] = {}
    lighter: LighterConfig = LighterConfig()

    @property
    def is_on(self) -> bool:
        """The stage has an engine."""
        return has_engine(self.engine)

    @property
    def lighter_stage(self) -> StageConfig | None:
        """The configuration of the lighter engine's pool, None without one."""
        lighter = self.lighter
        if not has_engine(lighter.engine) or not self.is_on:
            return None
        return msgspec.structs.replace(
            self,
            engine=lighter.engine,
            workers=lighter.workers,
            max_batch_size=lighter.max_batch_size,
            streams_per_worker=lighter.streams_per_worker,
            params=lighter.params,
            lighter=LighterConfig(),
        )


class StagesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stages of a turn.

    vad: Voice activity detection.
    stt: Speech to text.
    reply: What to answer: text, or audio from a speech-to-speech engine.
    tts: Text to speech.
    """

    vad: StageConfig = StageConfig(engine="silero", max_wait_ms=10.0, max_batch_size=256)
    stt: StageConfig = StageConfig(engine=registry.AUTO, workers=2, max_batch_size=8)
    reply: StageConfig = StageConfig(engine="concierge")
    tts: StageConfig = StageConfig(engine=registry.AUTO)

    def by_name(self) -> dict[StageName, StageConfig]:
        """The stages that have an engine, in the order of a turn; ``auto`` is replaced by what it stands for here.
        Raises ConfigError where it stands for nothing."""
        stages: dict[StageName, StageConfig] = {
            "vad": self.vad,
            "stt": self.stt,
            "reply": self.reply,
            "tts": self.tts,
        }
        return {name: _chosen(name, stage) for name, stage in stages.items() if stage.is_on}


def _chosen(name: StageName, stage: StageConfig) -> StageConfig:
    if stage.engine != registry.AUTO:
        return stage
    try:
        return msgspec.structs.replace(stage, engine=registry.preferred(name).name)
    except registry.EngineLookupError as error:
        raise ConfigError(f"stages.{name}.engine", str(error)) from None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be configured.

    server: The process, its port and its connections.
    session: Defaults of a session.
    backpressure: Busy signals and admission.
    auth: API keys and origins.
    twilio: Calls by Twilio Media Streams.
    stages: The stages of a turn: vad, stt, reply and tts.
    """

    server: ServerConfig = ServerConfig()
    session: SessionConfig = SessionConfig()
    backpressure: BackpressureConfig = BackpressureConfig()
    auth: AuthConfig = AuthConfig()
    twilio: TwilioConfig = TwilioConfig()
    stages: StagesConfig = StagesConfig()
