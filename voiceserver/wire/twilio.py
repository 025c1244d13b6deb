"""Twilio Media Streams, both directions (``<Connect><Stream>``), ``/v1/twilio``: JSON text, mu-law at 8 kHz in base64.

=================  =========================================  =================================================
Twilio says        becomes                                    because
=================  =========================================  =================================================
connected          nothing                                    it only names the protocol
start              SessionUpdate                              ``<Parameter>``: voice, language, instructions
media              Audio
dtmf               Digit
mark               ReplyPlayed                                the audio before the mark was played
stop               SessionClose                               the caller has hung up
=================  =========================================  =================================================

A caller on a phone reads nothing, so what matters is audible, from clips that need no engine: a busy tone for ServerBusy and
the lines that the server had spoken at its start (``prerendered``, mu-law) for BusyCue. Its marks tell
what was sent and not yet played. ``clear`` is sent when that should not be heard any more; the marks that Twilio returns
because of it are not taken
for played audio. All numbers on this wire are strings. Query strings do not pass; data about a call comes in ``parameters``.

The TwiML that leads here::

    <Response><Connect><Stream url="wss://voice.example.com/v1/twilio">
      <Parameter name="language" value="en"/>
    </Stream></Connect></Response>
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

import msgspec
import pybase64

from voiceserver.errors import Forbidden, ProtocolError
from voiceserver.events import events as ev
from voiceserver.events.events import ServerEvent
from voiceserver.events.fields import Language, PhoneKey, VoiceName
from voiceserver.wire import Audio, Codec, CodecTraits, Frame, Received
from voiceserver.wire.decoding import decode_base64, field_error, why_unreadable
from voiceserver.wire.request import LineFormat, Wire, WireRequest, line_of
from voiceserver.wire.samples import G711_BYTES_PER_MS, G711_RATE_HZ, mulaw_to_pcm, pcm_to_mulaw
from voiceserver.wire.tones import tones

PATH: Final = "/v1/twilio"
SIGNATURE_HEADER: Final = "X-Twilio-Signature"
MARK_EVERY_BYTES: Final = 100 * G711_BYTES_PER_MS
MAX_MARKS: Final = 4_096
MAX_HELD: Final = 256
BAD_START: Final = 1003  # nobody would hear of it: without a start a call is silence until somebody hangs up

_TONE_OF_CUE: Final = {
    "busy": "busy",
    "waiting": "busy",
    "full": "busy",
    "draining": "failed",
    "failed": "failed",
    "no_answer": "failed",
    "not_understood": "failed",
    "try_again": "failed",
}


class _Media(msgspec.Struct, frozen=True):
    payload: str
    track: str = "inbound"


class _Format(msgspec.Struct, frozen=True, rename="camel"):
    encoding: str = "audio/x-mulaw"
    sample_rate: float | str = 8_000
    channels: float | str = 1


class _Start(msgspec.Struct, frozen=True, rename="camel"):
    stream_sid: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    account_sid: str = ""
    call_sid: str = ""
    custom_parameters: dict[str, object] | None = None
    media_format: _Format = _Format()


class _Parameters(msgspec.Struct, frozen=True):
    """Of ``customParameters`` those that say something to us."""

    voice: VoiceName = ""
    language: Language | msgspec.UnsetType = msgspec.UNSET
    instructions: str | msgspec.UnsetType = msgspec.UNSET


class _Dtmf(msgspec.Struct, frozen=True):
    digit: PhoneKey


class _Mark(msgspec.Struct, frozen=True):
    name: str


class _Message(msgspec.Struct, frozen=True):
    event: str
    media: _Media | None = None
    start: _Start | None = None
    dtmf: _Dtmf | None = None
    mark: _Mark | None = None


class _Event(msgspec.Struct, frozen=True):
    event: str = ""


class _Sent(NamedTuple):
    """Audio up to a mark that has not come back. ``played_ms``: of the reply of ``turn``, when it does; or, with ``turn`` 0,
    of this clip."""

    name: str
    turn: int
    played_ms: float


_HELD: Final = (ev.ReplyAudio, ev.ReplyDone, ev.ServerBusy, ev.BusyCue, ev.ServerDraining)
_decode: Final = msgspec.json.Decoder(_Message).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode
_text: Final = msgspec.json.Encoder().encode


class TwilioCodec(Codec):
    """One call. ``stream_sid``, ``call_sid``, ``account_sid`` and ``parameters`` are empty before Twilio's ``start``."""

    __slots__ = (
        "_prerendered",
        "_held",
        "_language",
        "_line",
        "_mark",
        "_own",
        "_sent",
        "_turn",
        "_turn_bytes",
        "_unmarked_bytes",
        "_voices",
        "account_sid",
        "call_sid",
        "parameters",
        "stream_sid",
    )

    # A caller hears the refusal; an HTTP 503 would only be in Twilio's error log.
    traits = CodecTraits(name="twilio", tells_refusal=True)
    input_rate_hz = G711_RATE_HZ
    output_rate_hz = G711_RATE_HZ

    def __init__(
        self,
        prerendered: Mapping[str, bytes] | None = None,
        voices: frozenset[str] = frozenset(),
        language: str = "",
    ) -> None:
        """
        prerendered: the spoken lines that there are, as mu-law, by the names of ``announcements.lines``; shared by all calls.
        voices: of the speech engine; empty for unknown. A call that names another voice gets the server's own, because the
            caller would not hear an error.
        language: of the lines, unless the call has a parameter for it.
        """
        self._voices = voices
        self._language = language
        self._prerendered: Mapping[str, bytes] = {} if prerendered is None else prerendered
        self.stream_sid = ""
        self.call_sid = ""
        self.account_sid = ""
        self.parameters: Mapping[str, str] = {}
        self._own: list[Frame] = []
        self._held: list[ServerEvent] = []  # said before ``start``, when there is no stream to say it on
        self._sent: deque[_Sent] = deque()
        self._line = ""  # the last cue
        self._mark = 0
        self._turn = 0  # the reply being sent
        self._turn_bytes = 0
        self._unmarked_bytes = 0

    @property
    def linger_ms(self) -> float:
        """Audio of clips that was sent and not yet heard: so long a connection that is to be closed should stay, because Twilio
        throws away what it has not played."""
        return sum(one.played_ms for one in self._sent if not one.turn)

    # ------------------------------------------------------------------------------------------------------ inward

    def receive_binary(self, message: bytes) -> Received:
        raise ProtocolError("binary_message", "Twilio Media Streams has text messages only.")

    def receive_text(self, message: bytes) -> Received:  # hot
        """One message of Twilio. Raises ProtocolError; one with a ``close_code`` for a ``start`` that no call can begin with."""
        try:
            received = _decode(message)
        except msgspec.ValidationError as error:
            raise self._not_understood(error, message) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            reason = why_unreadable(error, message)
            raise ProtocolError(
                "invalid_message", f"This is no message of Twilio Media Streams: {reason}."
            ) from None
        if received.event == "media":
            return self._receive_media(received.media)
        if received.event == "mark":
            return self._receive_mark(received.mark)
        if received.event == "start":
            return self._receive_start(received.start)
        if received.event == "dtmf":
            if received.dtmf is None:
                raise _missing("dtmf")
            return [ev.Digit(digit=received.dtmf.digit)]
        if received.event == "stop":
            return [ev.SessionClose()]
        if received.event == "connected":
            return []
        raise ProtocolError("unknown_event", f"There is no event {received.event[:80]!r}.", param="event")

    def _receive_media(self, media: _Media | None) -> Received:  # hot
        if media is None:
            raise _missing("media")
        if not self.stream_sid:
            raise ProtocolError("not_started", "There was media before start.")
        if media.track != "inbound":
            return []
        try:
            data = decode_base64(media.payload)
        except ValueError:
            raise ProtocolError(
                "invalid_audio", "The payload is not base64.", param="media.payload"
            ) from None
        return [Audio(mulaw_to_pcm(data))] if data else []

    def _not_understood(self, error: msgspec.ValidationError, message: bytes) -> ProtocolError:
        found = field_error(error, _Message, code="invalid_message")
        try:
            event = _decode_event(message).event
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return found
        if event == "start" and not self.stream_sid:
            found.close_code = BAD_START
        return found

    def _receive_start(self, start: _Start | None) -> Received:
        if self.stream_sid:
            raise ProtocolError("already_started", "The stream has started before.")
        if start is None:
            raise _missing("start", BAD_START)
        given = start.media_format
        is_ours = (
            given.encoding == "audio/x-mulaw" and _is(given.sample_rate, 8_000) and _is(given.channels, 1)
        )
        if not is_ours:
            raise ProtocolError(
                "unsupported_format",
                "Only audio/x-mulaw with 8000 Hz and one channel is spoken here.",
                param="start.mediaFormat",
                close_code=BAD_START,
            )
        parameters = start.custom_parameters or {}
        asked = _read_parameters(parameters)
        self.stream_sid, self.call_sid, self.account_sid = start.stream_sid, start.call_sid, start.account_sid
        self.parameters = {name: str(value) for name, value in parameters.items()}
        held, self._held = self._held, []
        for event in held:
            self._own += self.encode(event)
        if isinstance(asked.language, str):
            self._language = asked.language
        update = ev.SessionUpdate(
            audible_busy=True,
            voice=self._voice(asked.voice),
            language=asked.language,
            instructions=asked.instructions,
        )
        return [update]

    def _voice(self, voice: str) -> str | msgspec.UnsetType:
        is_known = not self._voices or voice in self._voices or voice.partition("+")[0] in self._voices
        return voice if voice and is_known else msgspec.UNSET

    def _receive_mark(self, mark: _Mark | None) -> Received:
        """Everything up to this mark was played; a mark that is not expected was cleared."""
        if mark is None:
            raise _missing("mark")
        if not any(one.name == mark.name for one in self._sent):
            return []
        played: _Sent | None = None
        while self._sent:
            sent = self._sent.popleft()
            if sent.turn:
                played = sent
            if sent.name == mark.name:
                break
        return [ev.ReplyPlayed(turn=played.turn, played_ms=played.played_ms)] if played is not None else []

    # ----------------------------------------------------------------------------------------------------- outward

    def encode(self, event: ServerEvent) -> list[Frame]:  # hot
        if not self.stream_sid:
            if isinstance(event, _HELD) and len(self._held) < MAX_HELD:
                self._held.append(event)
            return []
        if type(event) is ev.ReplyAudio:
            return self._audio(event)
        if isinstance(event, ev.ServerBusy):
            return self._busy() if event.is_late else []
        if isinstance(event, ev.BusyCue):
            return self._cue(event.cue, event.position)
        if isinstance(event, ev.ServerDraining):
            return self._cue("draining", 0)
        if isinstance(event, (ev.PlaybackStop, ev.ServerReady)):
            return self._clear() if isinstance(event, ev.PlaybackStop) or self._is_clip_only() else []
        if isinstance(event, ev.SpeechStarted):
            return self._clear() if event.interrupted_turn else []
        if isinstance(event, ev.ReplyDone):
            is_cut = event.reason in ("interrupted", "cancelled")
            return self._clear() if is_cut else self._marked()
        return []

    def encode_protocol_error(self, error: ProtocolError) -> list[Frame]:
        return []  # Twilio takes media, mark and clear, and ends the call's stream for anything else

    def frames_to_send(self) -> list[Frame]:
        own, self._own = self._own, []
        return own

    def _audio(self, event: ev.ReplyAudio) -> list[Frame]:  # hot
        frames = self._clear() if self._is_clip_only() else []
        if event.turn != self._turn:
            frames += self._marked()
            self._turn, self._turn_bytes = event.turn, 0
        data = pcm_to_mulaw(event.pcm)
        if not data:
            return frames
        frames.append(self._media(data))
        self._turn_bytes += len(data)
        self._unmarked_bytes += len(data)
        if self._unmarked_bytes >= MARK_EVERY_BYTES:
            frames += self._marked()
        return frames

    def _busy(self) -> list[Frame]:
        """A tone, but neither into a reply nor behind a clip that says so already; then a mark tells the call's log."""
        if self._sent or self._unmarked_bytes:
            return [self._frame("mark", mark={"name": "busy"})]
        return self._clip(tones()["busy"])

    def _cue(self, cue: str, position: int) -> list[Frame]:
        line = f"{cue}_{position}"
        if line == self._line and self.linger_ms:
            return []  # it is being said
        self._line = line
        spoken = line_of(self._prerendered, cue, position, self._language)
        if spoken:
            return [*(self._clear() if self._is_clip_only() else []), *self._clip(spoken)]
        return self._clip(tones()[_TONE_OF_CUE[cue]]) if not self.linger_ms else []

    def _clip(self, data: bytes) -> list[Frame]:
        frames = self._marked()
        ms = len(data) / G711_BYTES_PER_MS
        return [*frames, self._media(data), self._mark_frame(0, ms)]

    def _marked(self) -> list[Frame]:
        """A mark behind the reply's audio that has none."""
        if not self._unmarked_bytes:
            return []
        self._unmarked_bytes = 0
        return [self._mark_frame(self._turn, self._turn_bytes / G711_BYTES_PER_MS)]

    def _mark_frame(self, turn: int, played_ms: float) -> Frame:
        self._mark += 1
        name = f"{turn}.{self._mark}"
        if len(self._sent) >= MAX_MARKS:  # a peer that returns no marks
            self._sent.popleft()
        self._sent.append(_Sent(name, turn, played_ms))
        return self._frame("mark", mark={"name": name})

    def _is_clip_only(self) -> bool:
        """What is queued is a clip and nothing of a reply."""
        return bool(self._sent) and not self._unmarked_bytes and not any(one.turn for one in self._sent)

    def _clear(self) -> list[Frame]:
        if not self._sent and not self._unmarked_bytes:
            return []
        self._sent.clear()
        self._unmarked_bytes = 0
        return [self._frame("clear")]

    def _media(self, data: bytes) -> Frame:  # hot
        payload = pybase64.b64encode_as_string(data)
        return f'{{"event":"media","streamSid":{self._sid()},"media":{{"payload":"{payload}"}}}}'

    def _sid(self) -> str:
        return _text(self.stream_sid).decode()

    def _frame(self, event: str, **fields: object) -> Frame:
        return _text({"event": event, "streamSid": self.stream_sid, **fields}).decode()


def make_codec(request: WireRequest) -> TwilioCodec:
    """Raises Forbidden for a request that Twilio did not sign, where the auth token is configured."""
    twilio = request.config.twilio
    signature, host = request.headers.get(SIGNATURE_HEADER, ""), request.headers.get("Host", "")
    if twilio.auth_token and not is_signed(
        signature, twilio.auth_token, host=host, path=request.path, public_url=twilio.public_url
    ):
        raise Forbidden("bad_signature", f"{SIGNATURE_HEADER} is missing, or not of this account and URL.")
    return TwilioCodec(request.lines, request.voices, request.config.session.language)


WIRE: Final = Wire(
    name="twilio",
    paths=(PATH,),
    make_codec=make_codec,
    line_format=LineFormat(G711_RATE_HZ, pcm_to_mulaw),
    is_self_signed=lambda config: bool(config.twilio.auth_token),
)


def _missing(name: str, close_code: int | None = None) -> ProtocolError:
    return ProtocolError("missing_field", f"{name!r} is missing.", param=name, close_code=close_code)


def _is(given: float | str, wanted: int) -> bool:
    """Numbers come as strings, and as numbers from those who play Twilio."""
    try:
        return float(given) == wanted
    except ValueError:
        return False


def _read_parameters(given: Mapping[str, object]) -> _Parameters:
    try:
        return msgspec.convert(given, _Parameters)
    except msgspec.ValidationError as error:
        found = field_error(error, _Parameters)
        path = f"start.customParameters.{found.param}"
        message = found.message.replace(repr(found.param), repr(path), 1)
        raise ProtocolError(found.code, message, param=path, close_code=BAD_START) from None


# -------------------------------------------------------------------------------------------------------- signatures


def signature_of(url: str, auth_token: str) -> str:
    """What Twilio sends in ``X-Twilio-Signature`` on an upgrade: HMAC-SHA1 of the URL, keyed with the auth token, in base64."""
    return base64.b64encode(hmac.new(auth_token.encode(), url.encode(), hashlib.sha1).digest()).decode()


def is_signed(signature: str, auth_token: str, *, host: str, path: str, public_url: str = "") -> bool:
    """Whether Twilio asked for this upgrade.

    The signed URL is the ``wss://`` one of the TwiML (not the ``https://`` one that a proxy in front may make of it), without a
    query. ``public_url`` is that URL where ``host`` (the Host header) and ``path`` do not give it. With and without the default
    port and a slash at the end are both taken, as Twilio's own validators do. Compares in constant time.
    """
    urls = [public_url] if public_url else _urls(host, path)
    matches = [
        hmac.compare_digest(signature_of(url, auth_token).encode(), signature.encode()) for url in urls
    ]
    return bool(auth_token) and any(matches)


def _urls(host: str, path: str) -> list[str]:
    name, _, port = host.partition(":") if not host.startswith("[") else (host, "", "")
    hosts = [host] if port not in ("", "443") else [name, f"{name}:443"]
    bare = path.rstrip("/")
    return [f"wss://{one}{end}" for one in hosts for end in (bare, f"{bare}/")]
