"""Parameters of the built-in engines are declared once: names, kinds, ranges, defaults, meanings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from docs.generate.fields import meanings_of
from tests.sources import ROOT
from voiceserver.pool.chat.config import ChatConfig
from voiceserver_workers import parameters, registry

KINDS = parameters.ENGINES
FIELDS = [
    (engine, name, kind)
    for engine, struct in KINDS.items()
    for name, kind in parameters._fields(struct).items()
]
values = st.one_of(
    st.booleans(),
    st.integers(-2000, 40_000),
    st.floats(-200, 40_000),
    st.text(max_size=8),
    st.none(),
    st.lists(st.integers()),
)


def test_every_engine_that_computes_has_a_struct() -> None:
    assert set(KINDS) == {spec.name for spec in registry._BUILT_IN.values() if not spec.is_remote}


@pytest.mark.parametrize("kind", [*KINDS.values(), ChatConfig], ids=lambda kind: kind.__name__)
def test_every_parameter_has_a_meaning(kind: type) -> None:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    meanings = meanings_of(kind)
    assert [field.name for field in described.fields if not meanings.get(field.name, "").endswith(".")] == []


@pytest.mark.parametrize("engine", KINDS)
def test_defaults_are_allowed(engine: str) -> None:
    defaults = {name: getattr(KINDS[engine](), name) for name in parameters._fields(KINDS[engine])}
    assert parameters.problem_of(engine, defaults) == ""


@given(st.sampled_from(FIELDS), values)
def test_what_is_read_is_of_its_kind_or_named(field: tuple[str, str, inspect.Type], value: object) -> None:
    engine, name, kind = field
    problem = parameters.problem_of(engine, {name: value})
    if problem:
        assert problem.startswith(f"{name}: must be ")
        assert problem.endswith(f", not {value!r}")
        return
    read = getattr(parameters.read(engine, KINDS[engine], {name: value}), name)
    assert read == value
    assert isinstance(read, bool) == isinstance(kind, inspect.BoolType)
    plain = kind.type if isinstance(kind, inspect.Metadata) else kind
    if isinstance(plain, inspect.FloatType | inspect.IntType):
        assert plain.ge is None or read >= plain.ge
        assert plain.le is None or read <= plain.le
        assert isinstance(read, float if isinstance(plain, inspect.FloatType) else int)


@pytest.mark.parametrize(
    ("engine", "params", "problem"),
    [
        ("moonshine", {"threads": 0}, "threads: must be a whole number from 1 to 64, not 0"),
        ("moonshine", {"threads": True}, "threads: must be a whole number from 1 to 64, not True"),
        ("hibari", {"speed": "fast"}, "speed: must be a number from 0.25 to 4, not 'fast'"),
        ("silero", {"dtype": "int3"}, "dtype: must be one of bfloat16, float16, float32, not 'int3'"),
        ("silero", {"device": "cuda:x"}, "device: must be cpu, cuda or cuda:N, not 'cuda:x'"),
        ("piper", {"speaker": 1.5}, "speaker: must be text or a whole number, not 1.5"),
        ("hibari", {"wheels": 4}, "wheels: hibari has no such parameter; it has voice, speed, threads"),
        ("echo", {"wheels": 4}, "wheels: echo has no such parameter; it takes none"),
        ("someones:Engine", {"wheels": 4}, ""),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(
    engine: str, params: dict[str, object], problem: str
) -> None:
    assert parameters.problem_of(engine, params) == problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["stages.tts.engine=hibari", "stages.tts.params.speed=9"],
            "stages.tts.params.speed: must be a number from",
        ),
        (["stages.reply.engine=chat"], "stages.reply.params.base_url: the chat engine needs an address"),
        (["stages.tts.engine=speech"], "stages.tts.params.base_url: the speech engine needs an address"),
        (
            [
                "stages.stt.engine=transcription",
                "stages.stt.params.base_url=http://x/v1",
                "stages.stt.params.api_key_env=NOT_THERE_AT_ALL",
            ],
            "stages.stt.params.api_key_env: the environment has no NOT_THERE_AT_ALL",
        ),
        (
            [
                "stages.stt.engine=whisper",
                "stages.stt.lighter.engine=whisper",
                "stages.stt.lighter.params.beam_size=0",
            ],
            "stages.stt.lighter.params.beam_size: must be a whole number from 1 to 20",
        ),
        (["stages.stt.engine=wisper"], "Did you mean 'whisper'?"),
    ],
)
def test_config_refuses_what_serve_refuses(settings: list[str], message: str) -> None:
    said = []
    for command in ("config", "serve"):
        flags = [part for setting in settings for part in ("--set", setting)]
        done = subprocess.run(
            [sys.executable, "-m", "voiceserver", command, *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        said.append(done.stderr)
    assert said[0] == said[1]
    assert message in said[0]


def test_config_needs_no_engine_to_be_installed() -> None:
    script = (
        "import importlib.util, sys\n"
        "from voiceserver import cli\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name in ('numpy', 'soxr', 'onnx') else found(name, *more)\n"
        "sys.argv = ['voiceserver', 'config', '--set', 'stages.stt.engine=whisper']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "whisper" in done.stdout
