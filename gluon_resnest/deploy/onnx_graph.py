"""The deployment graph as a model of ONNX, written operator by operator.

MXNet's own exporter stamps the opset of the installed onnx on operators of opset 13, lists the
weights as inputs, and puts Shape and ScatterND around reshapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from mxnet.gluon import HybridBlock, nn
from onnx import TensorProto, helper, numpy_helper

from gluon_resnest.deploy.graph import pixel_scale_and_offset, write_network
from gluon_resnest.deploy.writer import Writer
from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt

OPSET = 13  # of 2020: the first with per-channel quantization, and read by every runtime since
IR_VERSION = 7  # what onnx wrote with that opset
INPUT_NAME, PIXELS_NAME, OUTPUT_NAME = "data", "pixels", "logits"


class OnnxWriter(Writer):
    """Writes nodes; values are their names.

    ONNX Runtime keeps the channels of maps in blocks, between operators that know such: a Split
    is none, and each of its outputs would be laid out anew twice.
    """

    separate_splits = True

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._counts: dict[str, int] = {}

    def node(self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None,
             **attributes: Any) -> Any:
        """Append a node; the name of its output, or a list of names."""
        if name is None:
            number = self._counts[kind] = self._counts.get(kind, -1) + 1
            name = f"{kind.lower()}{number}"
        names = [name] if outputs == 1 else [f"{name}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def convolve(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray, like: nn.Conv2D,
                 groups: int | None = None) -> str:
        settings = like._kwargs
        return self.node(
            "Conv", x, self.constant(f"{name}_weight", weight.astype(np.float32)),
            self.constant(f"{name}_bias", bias.astype(np.float32)), name=name,
            kernel_shape=settings["kernel"], strides=settings["stride"],
            pads=[*settings["pad"], *settings["pad"]], dilations=settings["dilate"],
            group=groups or settings["num_group"])

    def normalize(self, norm: HybridBlock, x: str) -> str:
        raise InputError(f"{type(norm).__name__} cannot be exported to ONNX: only batch "
                         "normalisation can; use --format symbol")

    def dense(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        return self.node("Gemm", x, self.constant(f"{name}_weight", weight.astype(np.float32)),
                         self.constant(f"{name}_bias", bias.astype(np.float32)),
                         name=OUTPUT_NAME, transB=1)

    def pooling(self, layer: HybridBlock, x: str) -> str:
        settings = layer._kwargs
        pads = [*settings["pad"], *settings["pad"]]
        shared = {"kernel_shape": settings["kernel"], "strides": settings["stride"], "pads": pads,
                  "ceil_mode": int(settings["pooling_convention"] == "full")}
        if settings["pool_type"] == "max":
            return self.node("MaxPool", x, **shared)
        return self.node("AveragePool", x, **shared,
                         count_include_pad=int(settings["count_include_pad"]))

    def mean(self, x: str) -> str:
        return self.node("GlobalAveragePool", x)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def sigmoid(self, x: str) -> str:
        return self.node("Sigmoid", x)

    def softmax(self, x: str, axis: int) -> str:
        return self.node("Softmax", x, axis=axis)

    def add(self, *values: str) -> str:
        return self.node("Add" if len(values) == 2 else "Sum", *values)

    def subtract(self, x: str, y: str) -> str:
        return self.node("Sub", x, y)

    def multiply(self, x: str, y: str) -> str:
        return self.node("Mul", x, y)

    def split(self, x: str, parts: int) -> list[str]:
        return self.node("Split", x, outputs=parts, axis=1)

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        name = f"shape_{'_'.join(map(str, shape)).replace('-', 'm')}"
        if all(known.name != name for known in self.weights):
            self.constant(name, np.array(shape, np.int64))
        return self.node("Reshape", x, name)

    def transpose(self, x: str, axes: tuple[int, ...]) -> str:
        return self.node("Transpose", x, perm=axes)

    def total(self, x: str, axis: int) -> str:
        self.constant(f"axes{len(self.weights)}", np.array([axis], np.int64))
        return self.node("ReduceSum", x, self.weights[-1].name, keepdims=0)

    def flatten(self, x: str) -> str:
        return self.node("Flatten", x)


def onnx_graph(net: ResNeSt, size: int | None = None) -> onnx.ModelProto:
    """`net` for inference as a model of ONNX.

    Parameters
    ----------
    net
        With weights, three input channels and logits.
    size
        Side of the images, in pixels: only where shapes are known does ONNX Runtime join a
        convolution with the sum behind it. None for any.

    Returns
    -------
    onnx.ModelProto
        Input ``data`` (N, 3, size, size), float32, normalised, any N; output ``logits``
        (N, classes), float32. Weights are no inputs.
    """
    writer = OnnxWriter()
    logits = write_network(writer, net, INPUT_NAME)
    graph = helper.make_graph(
        writer.nodes, "resnest",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT,
                                       ["N", 3, size or "H", size or "W"])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", net.fc.weight.shape[0]])],
        writer.weights)
    model = helper.make_model(graph, producer_name="gluon_resnest", ir_version=IR_VERSION,
                              opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_from_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the input ``pixels`` (N, H, W, 3), uint8, RGB, normalised in it."""
    scale, offset = pixel_scale_and_offset()
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    nodes = [
        helper.make_node("Transpose", [PIXELS_NAME], ["pixels_nchw"], perm=(0, 3, 1, 2)),
        helper.make_node("Cast", ["pixels_nchw"], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_float", "pixel_scale"], ["pixels_scaled"]),
        helper.make_node("Sub", ["pixels_scaled", "pixel_offset"], [INPUT_NAME]),
        *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend([numpy_helper.from_array(scale, "pixel_scale"),
                              numpy_helper.from_array(offset, "pixel_offset")])
    *_, height, width = graph.input[0].type.tensor_type.shape.dim
    shape = ["N", *(side.dim_value or side.dim_param for side in (height, width)), 3]
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(PIXELS_NAME, TensorProto.UINT8, shape))
    onnx.checker.check_model(changed, full_check=True)
    return changed
