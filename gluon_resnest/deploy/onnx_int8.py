"""INT8 for ONNX: a model with QuantizeLinear and DequantizeLinear around what computes on 8 bits.

That is the format that ONNX Runtime and others fuse into their own 8-bit operators; the graph
stays valid ONNX of the opset it had. Weights and biases are integers in the file, which is a
quarter as large:

* weights are int8 with a scale per output channel, of 7 bits. CPUs without VNNI add two products
  of uint8 and int8 in 16 bits; 2 * 255 * 64 is the most that fits there, and more is cut off
  without a word.
* activations are uint8, one scale a tensor, with a zero point where they can be negative. A ReLU
  between a convolution and its rounding is the rounding itself.
* the first convolution stays float, as for MXNet, and the difference of two splits in the
  attention, for which there is no 8-bit operator.

onnxruntime.quantization does the same with coarser ranges, and needs packages beside it that
ONNX Runtime does not install. Ranges come from :mod:`.calibration`, as for MXNet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from gluon_resnest import runtime
from gluon_resnest.deploy.calibration import Observed, Run, best_range, check_batches, observe
from gluon_resnest.deploy.onnx_graph import INPUT_NAME, OUTPUT_NAME

WEIGHT_LIMIT = 63  # largest 7-bit weight
_WEIGHTED = ("Conv", "Gemm")
# These only move values or choose among them: what comes out has the scale of what went in.
_SAME_SCALE = ("Split", "MaxPool", "Flatten")
_QUANTIZED = (*_WEIGHTED, *_SAME_SCALE, "Add", "Sum", "Mul", "Sigmoid", "AveragePool",
              "GlobalAveragePool")
_LARGEST_BIAS = 2 ** 30  # in steps; half of what an int32 holds is left for the products


def quantize_onnx(model: onnx.ModelProto, batches: Sequence[np.ndarray]) -> onnx.ModelProto:
    """The same model with 8-bit weights and activations.

    Parameters
    ----------
    model
        As :func:`~.onnx_graph.onnx_graph` gives it; left as it is.
    batches
        Real images (N, 3, H, W), normalised, float32, such as the network will see: a hundred are
        enough. They are gone through twice.

    Returns
    -------
    onnx.ModelProto
        Same input and output, both float32, any N, H and W, same opset; weights are no inputs.

    Raises
    ------
    InputError
        There are no images, or they are none.
    """
    check_batches(batches)
    names = _activations(model.graph)
    seen = observe(_tensors(model, names), batches)
    writer = _QuantizedGraph(model.graph, _scales(model.graph, names, seen))
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend(writer.nodes)
    changed.graph.initializer.extend(writer.constants)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def _computes_on_integers(node: onnx.NodeProto) -> bool:
    return node.op_type in _QUANTIZED and INPUT_NAME not in node.input


def _activations(graph: onnx.GraphProto) -> list[str]:
    """Names of the tensors that are rounded: what 8-bit operators read and write."""
    weights = {value.name for value in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, None] = {}  # in the order of the graph
    for node in graph.node:
        if _computes_on_integers(node):
            found.update(dict.fromkeys([*node.input, *node.output]))
    # Rounding in front of a ReLU would part it from its operator; logits leave as they are. What
    # is subtracted stays float up to the product.
    float_outputs = {name for node in graph.node if node.op_type == "Sub" for name in node.output}
    return [name for name in found
            if name not in weights and name != OUTPUT_NAME and name not in float_outputs
            and [node.op_type for node in readers.get(name, [])] not in ([], ["Relu"])]


def _tensors(model: onnx.ModelProto, names: Sequence[str]) -> Run:
    """What computes the tensors `names` within a model."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.thread_count()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {INPUT_NAME: images})))

    return run


def _scales(graph: onnx.GraphProto, names: Sequence[str],
            seen: Mapping[str, Observed]) -> dict[str, tuple[np.float32, np.uint8]]:
    """Step and zero point of each tensor: value = step * (uint8 - zero point)."""
    scales: dict[str, tuple[np.float32, np.uint8]] = {}
    same = {output: node.input[0] for node in graph.node if node.op_type in _SAME_SCALE
            for output in node.output}
    for name in names:
        source = name
        while source in same and same[source] in seen:
            source = same[source]
        low, high = best_range(seen[source], symmetric=False)
        step = np.float32((high - low) / 255)
        scales[name] = step, np.uint8(np.clip(np.round(-low / step), 0, 255))
    return scales


class _QuantizedGraph:
    """Nodes and constants of the quantized graph, written in the order of the float one."""

    def __init__(self, graph: onnx.GraphProto,
                 scales: Mapping[str, tuple[np.float32, np.uint8]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._floats = {value.name: value for value in graph.initializer}
        self._scales = scales
        for original in graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            if _computes_on_integers(node) and node.op_type in _WEIGHTED:
                self._quantize_weights(node)
            for place, name in enumerate(node.input):
                if name in scales:
                    node.input[place] = f"{name}_dequantized"
                elif name in self._floats:
                    self.constants.append(self._floats.pop(name))
            self.nodes.append(node)
            for name in node.output:
                if name in scales:
                    self._round(name)

    def _round(self, name: str) -> None:
        """Round the tensor `name`, for all that read it."""
        step, zero = self._scales[name]
        constants = [self._constant(f"{name}_scale", step), self._constant(f"{name}_zero", zero)]
        self._node("QuantizeLinear", [name, *constants], f"{name}_quantized")
        self._node("DequantizeLinear", [f"{name}_quantized", *constants], f"{name}_dequantized")

    def _quantize_weights(self, node: onnx.NodeProto) -> None:
        """Integers for weight and bias of a convolution or of the classifier."""
        source, weight_name, bias_name = node.input
        weight, bias = (numpy_helper.to_array(self._floats.pop(name)).astype(np.float64)
                        for name in (weight_name, bias_name))
        step_in = float(self._scales[source][0])
        largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        # The bias counts in steps of both scales: a channel of tiny weights must not overflow it.
        step = np.maximum(largest / WEIGHT_LIMIT, np.abs(bias) / (_LARGEST_BIAS * step_in))
        step = np.where(step > np.finfo(np.float32).tiny, step, 1.0).astype(np.float32)
        column = step.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
        rounded = np.clip(np.round(weight / column), -WEIGHT_LIMIT, WEIGHT_LIMIT)
        bias_step = (step * np.float32(step_in)).astype(np.float32)
        node.input[1] = self._integers(weight_name, rounded.astype(np.int8), step)
        node.input[2] = self._integers(
            bias_name, np.round(bias / bias_step.astype(np.float64)).astype(np.int32), bias_step)

    def _integers(self, name: str, value: np.ndarray, step: np.ndarray) -> str:
        """A constant of integers with a step per output channel; the name of its float value."""
        constants = [self._constant(name, value), self._constant(f"{name}_scale", step),
                     self._constant(f"{name}_zero", np.zeros(len(step), value.dtype))]
        return self._node("DequantizeLinear", constants, f"{name}_dequantized", axis=0)

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name
