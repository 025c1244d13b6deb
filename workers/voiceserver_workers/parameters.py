"""The parameters of the built-in engines, ``stages.STAGE.params.NAME``: names, kinds, ranges, defaults and meanings.

They are declared here and nowhere else. An engine reads them with :func:`read`; the server checks a configuration with
:func:`problem_of`, without loading an engine; the reference is generated from the lines ``name: meaning``. No numpy here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

Device = Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$", title="cpu, cuda or cuda:N")]
Threads = Annotated[int, Meta(ge=1, le=256)]
Speed = Annotated[float, Meta(ge=0.25, le=4)]
Noise = Annotated[float, Meta(ge=0.0, le=2.0)]
Decibels = Annotated[float, Meta(ge=-120.0, le=0.0)]


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of an engine that takes none, and the base of the others."""


class SileroParameters(Parameters, frozen=True):
    """runtime: Who does the arithmetic; auto: numpy for float32 on the CPU with one thread, else torch.
    device: Where it runs; cuda needs torch.
    dtype: Numbers of the network; all but float32 need torch.
    threads: Threads of torch on the CPU.
    """

    runtime: Literal["auto", "numpy", "torch"] = "auto"
    device: Device = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: Threads = 1


class SmartTurnParameters(SileroParameters, frozen=True):
    """model: Path of an ONNX file; packaged: that of `voiceserver models`; pipecat: the one inside the installed pipecat-ai;
      auto: what is there.
    pause_ms: Silence after which the model is asked whether the turn is over.
    turn_threads: Threads of the end-of-turn model.
    """

    model: str = "auto"
    pause_ms: Annotated[int, Meta(ge=96, le=1000)] = 200
    turn_threads: Annotated[int, Meta(ge=1, le=64)] = 1


class PocketSphinxParameters(Parameters, frozen=True):
    """decoders: Utterances at once in a worker.
    cmn_ms: Speech from which the channel is estimated.
    hmm: Folder of another acoustic model; empty: the English one of the package.
    lm: Path of another language model; empty: that of the package.
    dict: Path of another dictionary; empty: that of the package.
    """

    decoders: Annotated[int, Meta(ge=1, le=64)] = 2
    cmn_ms: Annotated[int, Meta(ge=0, le=10_000)] = 1200
    hmm: str = ""
    lm: str = ""
    dict: str = ""


class WhisperParameters(Parameters, frozen=True):
    """model: Folder of a CTranslate2 Whisper, packaged:base or packaged:tiny.en (`voiceserver models`), or a name of the hub,
      such as small, that is downloaded once.
    device: Where it runs.
    compute_type: Numbers of the network; empty: int8 on the CPU, float16 on CUDA.
    beam_size: Hypotheses that are kept; 1: the best alone.
    language: Language of the callers, such as de; auto: it is detected.
    cpu_threads: Threads on the CPU.
    context_s: Length of the model's window; below 30 is faster and less exact.
    decode_interval_ms: Audio between partial hypotheses.
    batch_size: Windows in one call.
    no_speech_threshold: A hypothesis that is less sure of speech is dropped.
    silence_db: RMS level, in dB of full scale, below which nobody speaks.
    """

    model: str = ""
    device: Device = "cpu"
    compute_type: str = ""
    beam_size: Annotated[int, Meta(ge=1, le=20)] = 1
    language: str = "auto"
    cpu_threads: Threads = 1
    context_s: Annotated[int, Meta(ge=5, le=30)] = 30
    decode_interval_ms: Annotated[int, Meta(ge=100, le=30_000)] = 1000
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 16
    no_speech_threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.6
    silence_db: Decibels = -55.0


class MoonshineParameters(Parameters, frozen=True):
    """cache: Folder for the converted weights; empty: the user's cache folder.
    threads: Threads of one decode.
    decode_interval_ms: Audio between partial hypotheses at the start of an utterance.
    decode_interval_share: What is added to it, as a share of the utterance so far.
    silence_db: RMS level, in dB of full scale, below which nobody speaks.
    """

    cache: str = ""
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    decode_interval_ms: Annotated[int, Meta(ge=100, le=30_000)] = 400
    decode_interval_share: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.2
    silence_db: Decibels = -55.0


class HibariParameters(Parameters, frozen=True):
    """voice: Name of a voice of the package.
    speed: 1: as trained; 2: twice as fast.
    threads: Threads of the network.
    """

    voice: str = "heart"
    speed: Speed = 1.0
    threads: Annotated[int, Meta(ge=1, le=64)] = 1


class PiperParameters(Parameters, frozen=True):
    """voice: Path of NAME.onnx, with NAME.onnx.json beside it.
    device: Where it runs.
    threads: Threads of the network.
    speed: 1: as trained; 2: twice as fast.
    speaker: Name or number of the speaker; null: the first.
    noise: How much the voice varies; null: as the voice says.
    noise_w: How much the lengths of sounds vary; null: as the voice says.
    """

    voice: str = ""
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Threads = 1
    speed: Speed = 1.0
    speaker: str | int | None = None
    noise: Noise | None = None
    noise_w: Noise | None = None


class EspeakParameters(Parameters, frozen=True):
    """voice: Voice of espeak-ng, such as de or en-us+f3.
    language: Used where no voice is named and there is one of it.
    rate: Words per minute.
    pitch: Pitch of the voice; 50 is normal.
    speed: Factor of the rate.
    """

    voice: str = "en-us"
    language: str = ""
    rate: Annotated[float, Meta(ge=80, le=450)] = 175
    pitch: Annotated[float, Meta(ge=0, le=99)] = 50
    speed: Speed = 1.0


Timeout = Annotated[float, Meta(ge=1.0, le=3_600_000.0)]


class EndpointParameters(Parameters, frozen=True):
    """What engines share that ask an endpoint.

    base_url: Address of the API up to and with its version, such as http://localhost:8000/v1; empty: OPENAI_BASE_URL.
    model: Name of the model; empty where the endpoint serves only one.
    api_key: Key that is sent as Authorization: Bearer; empty: OPENAI_API_KEY, for the host of OPENAI_BASE_URL only.
    api_key_env: Environment variable that holds the key.
    connect_timeout_ms: Time to connect.
    first_byte_timeout_ms: Time until the first byte of an answer, tries and the wait for a place included.
    stall_timeout_ms: Time between two pieces of an answer.
    timeout_ms: Time for the whole answer.
    retries: How often a request is tried again while nothing of its answer was received.
    max_concurrency: Requests at once of one worker; others wait.
    uses_proxy: Honour HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
    """

    base_url: str = ""
    model: str = ""
    api_key: str = ""
    api_key_env: str = ""
    connect_timeout_ms: Timeout = 3_000.0
    first_byte_timeout_ms: Timeout = 8_000.0
    stall_timeout_ms: Timeout = 5_000.0
    timeout_ms: Timeout = 60_000.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 1
    max_concurrency: Annotated[int, Meta(ge=1, le=4096)] = 64
    uses_proxy: bool = True


class SpeechParameters(EndpointParameters, frozen=True):
    """voice: Name of a voice of the endpoint.
    speed: 1: as the voice is; 2: twice as fast.
    response_format: What is asked for; pcm is 16 bits, little-endian, mono.
    stream_format: How it is asked for: audio, or server-sent events; auto: not said.
    rate_hz: Rate of pcm whose answer does not name one.
    instructions: How the voice is to speak, for models that take such a text.
    max_audio_ms: A sentence that lasts longer is cut and announced as failed.
    """

    voice: str = "alloy"
    speed: Speed = 1.0
    response_format: Literal["pcm", "wav"] = "pcm"
    stream_format: Literal["auto", "audio", "sse"] = "auto"
    rate_hz: Annotated[int, Meta(ge=8_000, le=192_000)] = 24_000
    instructions: str = ""
    max_audio_ms: Annotated[float, Meta(ge=1_000.0, le=600_000.0)] = 120_000.0


class TranscriptionParameters(EndpointParameters, frozen=True):
    """language: Language of the callers, such as de; auto: the endpoint finds out.
    prompt: Words that may be said, such as names.
    streams: Ask for the transcript as it is made, so that its beginning is told early.
    works_ahead: Ask at each pause, so that the transcript is ready when the turn ends; more speech cancels the request.
    silence_db: RMS level, in dB of full scale, below which nobody speaks.
    """

    language: str = "auto"
    prompt: str = ""
    streams: bool = False
    works_ahead: bool = True
    silence_db: Decibels = -55.0


ENGINES: Final[dict[str, type[Parameters]]] = {
    "silero": SileroParameters,
    "smart_turn": SmartTurnParameters,
    "pocketsphinx": PocketSphinxParameters,
    "whisper": WhisperParameters,
    "moonshine": MoonshineParameters,
    "hibari": HibariParameters,
    "piper": PiperParameters,
    "espeak": EspeakParameters,
    "speech": SpeechParameters,
    "transcription": TranscriptionParameters,
    "concierge": Parameters,
    "echo": Parameters,
}
_Kind = TypeVar("_Kind", bound=Parameters)


def read(engine: str, kind: type[_Kind], params: Mapping[str, object]) -> _Kind:
    """Raises ValueError, "name: what is wrong", for the first that is wrong."""
    fields = _fields(kind)
    for key in params:
        if key not in fields:
            has = f"it has {', '.join(fields)}" if fields else "it takes none"
            raise ValueError(f"{key}: {engine} has no such parameter; {has}")
    return kind(**{key: _checked(key, value, fields[key]) for key, value in params.items()})


def problem_of(engine: str, params: Mapping[str, object]) -> str:
    """What is wrong with the parameters of a built-in engine, "name: what is wrong"; empty: nothing, or it is not known here."""
    kind = ENGINES.get(engine)
    if kind is None:
        return ""
    try:
        read(engine, kind, params)
    except ValueError as error:
        return str(error)
    return ""


@cache
def _fields(kind: type[Parameters]) -> dict[str, inspect.Type]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return {field.name: field.type for field in described.fields}


def _checked(key: str, value: object, kind: inspect.Type) -> object:
    """``value``, a whole number as a float where a number is wanted. Raises ValueError."""
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            if _fits(value, one):
                return _checked(key, value, one)
        given = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        raise ValueError(f"{key}: must be {' or '.join(map(_words, given))}, not {value!r}")
    if not _fits(value, kind):
        raise ValueError(f"{key}: must be {_words(kind)}, not {value!r}")
    plain = kind.type if isinstance(kind, inspect.Metadata) else kind
    return float(value) if isinstance(plain, inspect.FloatType) and isinstance(value, int) else value


def _fits(value: object, kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.NoneType):
        return value is None
    if isinstance(kind, inspect.LiteralType):
        return value in kind.values
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str) and (kind.pattern is None or re.search(kind.pattern, value) is not None)
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    assert isinstance(kind, inspect.IntType | inspect.FloatType)
    is_number = isinstance(value, int if isinstance(kind, inspect.IntType) else int | float)
    if not is_number or isinstance(value, bool):
        return False
    number = float(value)  # type: ignore[arg-type]
    return (kind.ge is None or number >= kind.ge) and (kind.le is None or number <= kind.le)


def _words(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        title = (kind.extra_json_schema or {}).get("title")
        return str(title) if title else _words(kind.type)
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return f"{noun} from {kind.ge:g} to {kind.le:g}" if kind.ge is not None else noun
    return "true or false" if isinstance(kind, inspect.BoolType) else "text"
