"""Tiny models in the real file formats, made on the spot: what tests load where users load gigabytes.

Weights are random (seeded) or chosen by hand; no model here has learned anything. Needs the packages whose formats
it writes (ctranslate2 and tokenizers, onnx), imported where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    from tokenizers import Tokenizer

_WHISPER_LANGUAGES = ("en", "de", "fr")
# Where a multilingual Whisper has its empty token, by which CTranslate2 knows one.
_NAMELESS = "Ġnameless"
_WORDS = (
    "yes",
    "no",
    "go",
    "forward",
    "ten",
    "meters",
    "he",
    "was",
    "not",
    "young",
    "man",
    "and",
    "so",
    "my",
)


def build_whisper(
    folder: Path, *, seed: int = 1, is_multilingual: bool = False, attention: float = 4.0
) -> Path:
    """A Whisper of a few thousand weights as a CTranslate2 folder. It says words without sense. ``attention``: how much
    they follow the audio; with 0 it says the same whatever it hears."""
    import ctranslate2

    generator = np.random.default_rng(seed)
    tokenizer = _whisper_tokenizer()
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    spec = ctranslate2.specs.WhisperSpec(1, 2, 1, 2)
    width = 32
    _fill_encoder(spec.encoder, generator, width)
    _fill_decoder(spec.decoder, generator, width, len(tokens), attention)
    ids = {token: index for index, token in enumerate(tokens)}
    spec.config.lang_ids = [ids[f"<|{language}|>"] for language in _WHISPER_LANGUAGES]
    speakable = {f"Ġ{word}" for word in _WORDS} | {"<|endoftext|>"}
    spec.config.suppress_ids = [index for token, index in ids.items() if token not in speakable]
    spec.config.suppress_ids_begin = [ids["Ġ"], ids["<|endoftext|>"]]
    spec.config.alignment_heads = [[0, 0]]
    spec.register_vocabulary(["" if is_multilingual and token == _NAMELESS else token for token in tokens])
    spec.validate()
    spec.optimize(quantization="float32")
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _whisper_tokenizer() -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = [f"Ġ{word}" for word in _WORDS]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    vocabulary = list(letters)
    for word in words:
        head = word[0]
        for letter in word[1:]:
            if head + letter not in vocabulary:
                vocabulary.append(head + letter)
                merges.append((head, letter))
            head += letter
    vocabulary.append(_NAMELESS)
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *_WHISPER_LANGUAGES, "translate", "transcribe"]
    names += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    names += [f"{step * 0.02:.2f}" for step in range(1501)]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True) for name in names])
    return tokenizer


def _fill_encoder(encoder: Any, generator: np.random.Generator, width: int, mels: int = 80) -> None:
    encoder.conv1.weight = _random(generator, width, mels, 3)
    encoder.conv1.bias = _random(generator, width)
    encoder.conv2.weight = _random(generator, width, width, 3)
    encoder.conv2.bias = _random(generator, width)
    encoder.position_encodings.encodings = _random(generator, 1500, width, scale=0.5)
    _fill_norm(encoder.layer_norm, width)
    for layer in encoder.layer:
        _fill_attention(layer.self_attention, generator, width, is_self=True)
        _fill_feed_forward(layer.ffn, generator, width)


def _fill_decoder(
    decoder: Any, generator: np.random.Generator, width: int, tokens: int, attention: float
) -> None:
    decoder.embeddings.weight = _random(generator, tokens, width, scale=1.0)
    decoder.position_encodings.encodings = _random(generator, 448, width, scale=0.5)
    decoder.scale_embeddings = False
    _fill_norm(decoder.layer_norm, width)
    decoder.projection.weight = decoder.embeddings.weight
    for layer in decoder.layer:
        _fill_attention(layer.self_attention, generator, width, is_self=True)
        _fill_attention(layer.attention, generator, width, is_self=False, gain=attention)
        _fill_feed_forward(layer.ffn, generator, width)


def _fill_attention(
    attention: Any, generator: np.random.Generator, width: int, *, is_self: bool, gain: float = 1.0
) -> None:
    _fill_norm(attention.layer_norm, width)
    sizes = (3 * width, width) if is_self else (width, 2 * width, width)
    for linear, size in zip(attention.linear, sizes, strict=True):
        linear.weight = _random(generator, size, width, scale=gain / width**0.5)
        linear.bias = _random(generator, size, scale=0.1 if gain else 0.0)


def _fill_feed_forward(ffn: Any, generator: np.random.Generator, width: int) -> None:
    _fill_norm(ffn.layer_norm, width)
    ffn.linear_0.weight = _random(generator, 2 * width, width, scale=width**-0.5)
    ffn.linear_0.bias = _random(generator, 2 * width)
    ffn.linear_1.weight = _random(generator, width, 2 * width, scale=width**-0.5)
    ffn.linear_1.bias = _random(generator, width)


def _fill_norm(norm: Any, width: int) -> None:
    norm.gamma = np.ones(width, np.float32)
    norm.beta = np.zeros(width, np.float32)


def _random(generator: np.random.Generator, *shape: int, scale: float = 0.1) -> np.ndarray:
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def build_piper_voice(
    folder: Path, *, speakers: int = 1, rate_hz: int = 22050, phoneme_type: str = "espeak"
) -> Path:
    """A Piper voice with the inputs, the output and the chance of the real ones, and arithmetic in place of VITS: each
    phoneme id is a tone of ``50 * id`` Hz (plus 400 per speaker), as long as ``length_scale`` says, with noise."""
    import onnx
    from onnx import TensorProto, helper

    frame = 256
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    if speakers > 1:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, ["batch"]))
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 1, "samples"])
    constants: dict[str, np.ndarray] = {
        "zero": np.array(0.0, np.float32),
        "one": np.array(1.0, np.float32),
        "column": np.array([-1, 1], np.int64),
        "whole": np.array([1, 1, 1, -1], np.int64),
        "first": np.array(0, np.int64),
        "second": np.array(1, np.int64),
        "third": np.array(2, np.int64),
        "frame": np.array(float(4 * frame), np.float32),
        "hz": np.array(50.0, np.float32),
        "speaker_hz": np.array(400.0, np.float32),
        "turn": np.array(2 * np.pi / rate_hz, np.float32),
        "quiet": np.array(0.3, np.float32),
        "noise_gain": np.array(0.01, np.float32),
    }
    nodes = [
        ("Gather", ["scales", "first"], "noise_scale"),
        ("Gather", ["scales", "second"], "length_scale"),
        ("Gather", ["scales", "third"], "noise_w"),
        ("Cast", ["input"], "ids"),
        ("Reshape", ["ids", "column"], "per_phoneme"),
        ("Mul", ["per_phoneme", "hz"], "base_hz"),
        # Rhythm by chance, as in VITS: one number stretches the whole sentence.
        ("RandomNormalLike", ["length_scale"], "rhythm"),
        ("Mul", ["rhythm", "noise_w"], "rhythm_scaled"),
        ("Mul", ["rhythm_scaled", "noise_gain"], "rhythm_small"),
        ("Add", ["rhythm_small", "length_scale"], "stretch"),
        ("Mul", ["stretch", "frame"], "length"),
        ("Range", ["zero", "length", "one"], "time"),
    ]
    pitch = "base_hz"
    if speakers > 1:
        nodes += [
            ("Cast", ["sid"], "sid_float"),
            ("Mul", ["sid_float", "speaker_hz"], "sid_hz"),
            ("Add", ["base_hz", "sid_hz"], "tone_hz"),
        ]
        pitch = "tone_hz"
    nodes += [
        ("Mul", [pitch, "time"], "cycles"),
        ("Mul", ["cycles", "turn"], "angle"),
        ("Sin", ["angle"], "wave"),
        ("Mul", ["wave", "quiet"], "soft"),
        ("RandomNormalLike", ["soft"], "hiss"),
        ("Mul", ["hiss", "noise_scale"], "hiss_scaled"),
        ("Mul", ["hiss_scaled", "noise_gain"], "hiss_small"),
        ("Add", ["soft", "hiss_small"], "sound"),
        ("Reshape", ["sound", "whole"], "output"),
    ]
    _save_onnx(folder / "voice.onnx", nodes, inputs, [output], constants, onnx)
    config = {
        "audio": {"sample_rate": rate_hz},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.667, "length_scale": 1.0, "noise_w": 0.8},
        "phoneme_type": phoneme_type,
        "phoneme_id_map": _phoneme_ids(),
        "num_symbols": 130,
        "num_speakers": speakers,
        "speaker_id_map": {f"speaker{number}": number for number in range(speakers)} if speakers > 1 else {},
    }
    (folder / "voice.onnx.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "voice.onnx"


def _phoneme_ids() -> dict[str, list[int]]:
    from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

    return {phoneme: list(ids) for phoneme, ids in DEFAULT_PHONEME_ID_MAP.items()}


def build_turn_model(path: Path, *, frames: int = 20, steepness: float = 4.0, middle: float = 0.0) -> Path:
    """A smart-turn of one thought: sigmoid(steepness * (mean of the last ``frames`` of the spectrum - middle))."""
    import onnx
    from onnx import TensorProto, helper

    constants = {
        "start": np.array([800 - frames], np.int64),
        "end": np.array([800], np.int64),
        "axis": np.array([2], np.int64),
        "column": np.array([-1, 1], np.int64),
        "middle": np.array(middle, np.float32),
        "steepness": np.array(steepness, np.float32),
        "axes": np.array([1, 2], np.int64),
    }
    nodes = [
        ("Slice", ["input_features", "start", "end", "axis"], "tail"),
        ("ReduceMean", ["tail", "axes"], "mean"),
        ("Reshape", ["mean", "column"], "flat"),
        ("Sub", ["flat", "middle"], "centred"),
        ("Mul", ["centred", "steepness"], "steep"),
        ("Sigmoid", ["steep"], "logits"),
    ]
    inputs = [helper.make_tensor_value_info("input_features", TensorProto.FLOAT, ["n", 80, 800])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])]
    return _save_onnx(path, nodes, inputs, outputs, constants, onnx)


def _save_onnx(
    path: Path,
    nodes: Sequence[tuple[str, list[str], str]],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
    onnx: Any,
    attributes: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """nodes: operator, inputs, output. attributes: by operator."""
    attributes = {"Cast": {"to": onnx.TensorProto.FLOAT}, **(attributes or {})}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(operator, given, [result], **attributes.get(operator, {}))
            for operator, given, result in nodes
        ],
        "built_by_tests",
        inputs,
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def build_ctc(path: Path, tones_hz: Sequence[float], *, rate_hz: int = 16000) -> Path:
    """A CTC model that hears tones: label 0 (blank) in silence, label ``i + 1`` at ``tones_hz[i]``, in frames of 20 ms.
    One convolution with a sine and a cosine for each tone, and their power."""
    import onnx
    from onnx import TensorProto, helper

    frame, count = rate_hz // 50, len(tones_hz)
    phase = 2 * np.pi * np.arange(frame) / rate_hz * np.array(tones_hz)[:, None]
    waves = np.concatenate((np.sin(phase), np.cos(phase)))[:, None, :].astype(np.float32) * (2 / frame)
    constants = {
        "waves": waves,
        "to_channel": np.array([0, 1, -1], np.int64),
        "to_pairs": np.array([0, 2, count, -1], np.int64),
        "pair_axis": np.array([1], np.int64),
        "blank_pads": np.array([0, 1, 0, 0, 0, 0], np.int64),
        "quiet": np.array(0.01, np.float32),
    }
    nodes = [
        ("Reshape", ["audio", "to_channel"], "channel"),
        ("Conv", ["channel", "waves"], "swings"),
        ("Mul", ["swings", "swings"], "squares"),
        ("Reshape", ["squares", "to_pairs"], "pairs"),
        ("ReduceSum", ["pairs", "pair_axis"], "power"),
        ("Pad", ["power", "blank_pads", "quiet"], "by_label"),
        ("Transpose", ["by_label"], "logits"),
    ]
    inputs = [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["n", "samples"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "frames", count + 1])]
    attributes: dict[str, dict[str, Any]] = {
        "Conv": {"strides": [frame]},
        "ReduceSum": {"keepdims": 0},
        "Transpose": {"perm": [0, 2, 1]},
    }
    return _save_onnx(path, nodes, inputs, outputs, constants, onnx, attributes)
