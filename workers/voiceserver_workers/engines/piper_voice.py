"""A Piper voice: text to phoneme ids, sentence by sentence, and ids to samples by its VITS network in ONNX.

The network draws random numbers, so each time a sentence would sound, and last, a little different. Ours must be the
same each time: a replay after a crash skips by count what the caller has heard. So the graph is changed when it is loaded:
each draw of normal numbers becomes a look-up in a fixed table, by position. The voice keeps its liveliness, and the
same sentence is the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig

from voiceserver_workers import models
from voiceserver_workers.engine import Audio

_NOISE_VALUES = 1 << 16
_NOISE_SEED = 1
# The standard opset; other domains bring no random numbers.
_STANDARD = ("", "ai.onnx")
_RANGE_SINCE_OPSET = 11


@dataclass(frozen=True, slots=True)
class Manner:
    """How a session wants it said. speed: 1.0 as recorded, 2.0 twice as fast. speaker: number in the voice. noise,
    noise_w: liveliness of the sound and of the rhythm; None: as the voice has it."""

    speed: float = 1.0
    speaker: int | None = None
    noise: float | None = None
    noise_w: float | None = None


class Voice:
    """Raises ValueError naming the key for a voice that cannot be loaded."""

    def __init__(self, path: str, *, threads: int = 1, use_cuda: bool = False) -> None:
        model = _file("voice", path)
        config = _read_config(Path(f"{model}.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; what a model carries in vain is nobody's concern
        providers = ["CUDAExecutionProvider"] if use_cuda else ["CPUExecutionProvider"]
        if not set(providers) <= set(onnxruntime.get_available_providers()):
            raise ValueError("device: this onnxruntime has no CUDA (pip install onnxruntime-gpu)")
        try:
            graph = steady(onnx.load(str(model))).SerializeToString()
            session = onnxruntime.InferenceSession(graph, sess_options=options, providers=providers)
        except Exception as error:  # onnx and onnxruntime have a class of their own for each way to fail
            raise ValueError(f"voice: {path} is no Piper voice ({error})") from None
        self._voice = PiperVoice(session=session, config=config)
        self.rate_hz: int = config.sample_rate
        self.speaker_count: int = config.num_speakers
        self._speakers: Mapping[str, int] = config.speaker_id_map
        self._length_scale: float = config.length_scale

    @property
    def speaker_names(self) -> tuple[str, ...]:
        """Empty where speakers have numbers only."""
        return tuple(self._speakers)

    def speaker(self, value: object, key: str = "speaker") -> int:
        """A speaker's number by name or number. Raises ValueError naming ``key``."""
        number = self._speakers.get(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < self.speaker_count:
            names = ", ".join(list(self._speakers)[:8]) or f"0 to {self.speaker_count - 1}"
            raise ValueError(f"{key}: the voice has no {value!r}; it has {names}")
        return number

    def sentences(self, text: str) -> list[list[int]]:
        """Phoneme ids of each sentence of ``text``; none where there is nothing to say."""
        found = (
            self._voice.phonemes_to_ids(phonemes) for phonemes in self._voice.phonemize(text) if phonemes
        )
        return [ids for ids in found if ids]

    def say(self, ids: list[int], manner: Manner) -> Audio:
        """Float32 (n,) at ``rate_hz``, in [-1, 1]."""
        config = SynthesisConfig(
            speaker_id=manner.speaker,
            length_scale=self._length_scale / manner.speed,
            noise_scale=manner.noise,
            noise_w_scale=manner.noise_w,
        )
        audio = np.asarray(self._voice.phoneme_ids_to_audio(ids, config), np.float32).reshape(-1)
        return np.clip(audio, -1.0, 1.0)


def steady(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without chance: each RandomNormalLike and RandomNormal takes its numbers from a fixed table."""
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in _STANDARD)
    draws = {"RandomNormalLike", "RandomNormal"}
    if not any(node.op_type in draws for node in graph.node):
        return model
    if opset < _RANGE_SINCE_OPSET:
        raise ValueError(f"opset {opset} is too old, at least {_RANGE_SINCE_OPSET} is needed")
    table = np.random.default_rng(_NOISE_SEED).standard_normal(_NOISE_VALUES).astype(np.float32)
    scalars = {"steady_zero": 0, "steady_one": 1, "steady_count": _NOISE_VALUES}
    graph.initializer.append(numpy_helper.from_array(table, "steady_table"))
    for name, value in scalars.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend(_looked_up(node, f"steady_{index}") if node.op_type in draws else [node])
    return model


def _looked_up(node: onnx.NodeProto, name: str) -> Iterable[onnx.NodeProto]:
    """The nodes that stand for a draw: table[position % count] * scale + mean, in the shape asked for."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    mean, scale = float(given.get("mean", 0.0)), float(given.get("scale", 1.0))
    kind = int(given.get("dtype", TensorProto.FLOAT))
    if node.op_type == "RandomNormal":
        shape = helper.make_tensor(f"{name}_shape", TensorProto.INT64, [len(given["shape"])], given["shape"])
        yield helper.make_node("Constant", [], [f"{name}_shape"], value=shape)
    else:
        yield helper.make_node("Shape", [node.input[0]], [f"{name}_shape"])
    yield helper.make_node("ReduceProd", [f"{name}_shape"], [f"{name}_size"], keepdims=0)
    yield helper.make_node("Range", ["steady_zero", f"{name}_size", "steady_one"], [f"{name}_places"])
    yield helper.make_node("Mod", [f"{name}_places", "steady_count"], [f"{name}_rows"])
    yield helper.make_node("Gather", ["steady_table", f"{name}_rows"], [f"{name}_flat"])
    yield helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [f"{name}_noise"])
    for step, (operator, value, source) in enumerate(
        (("Mul", scale, f"{name}_noise"), ("Add", mean, f"{name}_step0"))
    ):
        constant = helper.make_tensor(f"{name}_value{step}", TensorProto.FLOAT, [], [value])
        yield helper.make_node("Constant", [], [f"{name}_value{step}"], value=constant)
        yield helper.make_node(operator, [source, f"{name}_value{step}"], [f"{name}_step{step}"])
    yield helper.make_node("Cast", [f"{name}_step1"], [node.output[0]], to=kind)


def _file(key: str, path: str) -> Path:
    if not path:
        raise ValueError(
            f"{key}: which one? The path of a Piper voice, NAME.onnx, with NAME.onnx.json beside it, or packaged:joe"
        )
    kind, _, packaged = path.partition(":")
    if kind == "packaged":
        return models.weights(key, f"piper-{packaged}") / f"{packaged}.onnx"
    for needed in (Path(path), Path(f"{path}.json")):
        if not needed.is_file():
            raise ValueError(
                f"{key}: there is no file {needed}; a Piper voice is NAME.onnx and NAME.onnx.json"
            )
    return Path(path)


def _read_config(path: Path) -> PiperConfig:
    try:
        config = PiperConfig.from_dict(msgspec.json.decode(path.read_bytes()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"voice: {path} is no configuration of a Piper voice ({error!r})") from None
    if not math.isfinite(config.length_scale) or config.length_scale <= 0:
        raise ValueError(f"voice: {path} has a length_scale of {config.length_scale}")
    return config
