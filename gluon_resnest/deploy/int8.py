"""INT8 for MXNet: the deployment graph on oneDNN's 8-bit convolutions.

What is rounded, and how:

* convolutions compute on 8 bits, and poolings and the classifier where what is before them does.
  Weights have a scale per output channel, activations one per tensor: uint8 behind a ReLU, int8
  elsewhere. A convolution takes its ReLU and the identity shortcut's sum with it.
* the first convolution stays float: it has three channels, which gain no speed, and the logits of
  the demo's network were nearer to the float ones so.
* grouped convolutions and sums with a projected shortcut stay float (:func:`_left_float`).
* the split attention's weighted sum is float; oneDNN has no 8-bit product that broadcasts.

Ranges come from real images (:mod:`.calibration`). The weights in the file stay
float32, as MXNet wants them: it rounds them when the network first runs, so the file does not
shrink. That of :mod:`gluon_resnest.deploy.onnx_int8` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import mxnet as mx
import numpy as np
from mxnet.contrib import quantization

from gluon_resnest import runtime
from gluon_resnest.deploy.calibration import Run, best_range, check_batches, observe
from gluon_resnest.deploy.graph import write_network
from gluon_resnest.deploy.mxnet_graph import INPUT_NAME, SymbolWriter, as_block
from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt

_BACKEND = "MKLDNN_QUANTIZE"  # fuses for, and later into, oneDNN's 8-bit operators


class _SeparateSplits(SymbolWriter):
    separate_splits = True  # so that no convolution has groups, see `_left_float`


def graph_for_int8(net: ResNeSt) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """The deployment graph of `net` with a convolution for each split, to be quantized.

    As :func:`~.mxnet_graph.deployment_graph`, which :func:`quantize_symbol` takes, too; but it
    would leave the grouped convolutions of that float.
    """
    writer = _SeparateSplits()
    output = write_network(writer, net, mx.sym.var(INPUT_NAME))
    if isinstance(output, list):
        output = mx.sym.Group(output)
    return output, writer.parameters


def quantize_symbol(
    symbol: mx.sym.Symbol,
    parameters: Mapping[str, mx.nd.NDArray],
    batches: Sequence[np.ndarray],
) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """The deployment graph with 8-bit operators of oneDNN, for CPUs.

    Parameters
    ----------
    symbol, parameters
        As :func:`graph_for_int8` gives them; left as they are.
    batches
        Real images (N, C, H, W), normalised, float32, such as the network will see: a hundred
        are enough. They are gone through twice.

    Returns
    -------
    symbol, parameters
        Same input, same output, any N, H and W. MXNet alone loads them once they are saved.

    Raises
    ------
    InputError
        This MXNet computes without oneDNN, or the images are none.
    """
    if not (runtime.onednn_is_on() and mx.runtime.Features().is_enabled("MKLDNN")):
        raise InputError("8-bit operators are oneDNN's, and this MXNet computes without it: unset "
                         "MXNET_MKLDNN_ENABLED, or use ONNX")
    check_batches(batches)
    fused = symbol.get_backend_symbol(_BACKEND)
    quantized, _, _, collector = quantization.quantize_graph(
        fused, dict(parameters), {}, mx.cpu(), excluded_sym_names=_left_float(fused),
        calib_mode="naive", quantized_dtype="auto", quantize_mode="smart",
        quantize_granularity="channel-wise", logger=None)
    # MXNet's own way to collect is a callback from C for every operator, and a Module; its ranges
    # are the largest values, or entropy by way of SciPy. Its thresholds are set from ours.
    seen = observe(_tensors(fused, parameters, collector.include_layer), batches)
    collector.min_max_dict = {name: best_range(one, symmetric=True) for name, one in seen.items()}
    quantized, values, _ = quantization.calib_graph(
        quantized, dict(parameters), {}, collector, calib_mode="naive", quantized_dtype="auto",
        logger=None)
    return quantized.get_backend_symbol(_BACKEND), dict(values)


def _left_float(fused: mx.sym.Symbol) -> list[str]:
    """Names of the operators that oneDNN would get wrong on 8 bits, and of those that gain nothing.

    Measured with MXNet 1.9.1, on random weights: grouped convolutions are off by 0.1 to 0.3 of the
    root mean square, others by 0.01; so are sums of a shortcut that can be negative (int8) and a
    convolution whose result cannot (uint8).
    """
    nodes = json.loads(fused.tojson())["nodes"]

    def inside(node: dict) -> list[dict]:
        return [inner for graph in node.get("subgraphs", ()) for inner in graph["nodes"]]

    def is_wrong(node: dict) -> bool:
        if node["op"] != "_sg_mkldnn_conv":
            return False
        grouped = any(int(inner.get("attrs", {}).get("num_group", 1)) > 1
                      for inner in inside(node) if inner["op"] == "Convolution")
        adds = any("add" in inner["op"] for inner in inside(node))
        shortcut = nodes[node["inputs"][-1][0]]  # the last operand, where one is added
        signed = not any(inner["op"] == "Activation" for inner in inside(shortcut))
        return grouped or (adds and signed)

    return [node["name"] for node in nodes
            if is_wrong(node)
            or any(nodes[place]["name"] == INPUT_NAME for place, *_ in node["inputs"])]


def _tensors(symbol: mx.sym.Symbol, parameters: Mapping[str, mx.nd.NDArray],
             names: Sequence[str]) -> Run:
    """What computes the tensors `names` within a symbol."""
    inner = symbol.get_internals()
    known = set(inner.list_outputs())
    names = [name for name in names if name in known and name != INPUT_NAME]
    block = as_block(mx.sym.Group([inner[name] for name in names]), parameters)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, (value.asnumpy() for value in block(mx.nd.array(images)))))

    return run
