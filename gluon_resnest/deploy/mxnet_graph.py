"""The deployment graph as a symbol of MXNet, and as a block that runs here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock, nn

from gluon_resnest import runtime
from gluon_resnest.deploy.graph import pixel_scale_and_offset, write_network
from gluon_resnest.deploy.writer import Writer
from gluon_resnest.layers import OneAtATime
from gluon_resnest.models.resnest import ResNeStFeatures

INPUT_NAME, PIXELS_NAME = "data", "pixels"


class SymbolWriter(Writer):
    """Writes symbols; `parameters` are the values of their variables, on the CPU."""

    def __init__(self) -> None:
        self.parameters: dict[str, mx.nd.NDArray] = {}

    def variable(self, name: str, value: np.ndarray) -> mx.sym.Symbol:
        self.parameters[name] = mx.nd.array(value, ctx=mx.cpu(), dtype=np.float32)
        return mx.sym.var(name, shape=value.shape)

    def convolve(self, name: str, x: mx.sym.Symbol, weight: np.ndarray, bias: np.ndarray,
                 like: nn.Conv2D, groups: int | None = None) -> mx.sym.Symbol:
        settings = {key: like._kwargs[key] for key in ("kernel", "stride", "pad", "dilate")}
        return mx.sym.Convolution(
            x, self.variable(f"{name}_weight", weight), self.variable(f"{name}_bias", bias),
            num_filter=len(weight), num_group=groups or like._kwargs["num_group"], name=name,
            **settings)

    def normalize(self, norm: HybridBlock, x: mx.sym.Symbol) -> mx.sym.Symbol:
        self.parameters.update(
            {key: value.data().as_in_context(mx.cpu())
             for key, value in norm.collect_params().items()})
        return norm(x)

    def dense(self, name: str, x: mx.sym.Symbol, weight: np.ndarray,
              bias: np.ndarray) -> mx.sym.Symbol:
        return mx.sym.FullyConnected(
            x, self.variable(f"{name}_weight", weight), self.variable(f"{name}_bias", bias),
            num_hidden=len(weight), name=name)

    def pooling(self, layer: HybridBlock, x: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.Pooling(x, **layer._kwargs)

    def mean(self, x: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.Pooling(x, kernel=(1, 1), pool_type="avg", global_pool=True)

    def relu(self, x: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.Activation(x, act_type="relu")

    def sigmoid(self, x: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.sigmoid(x)

    def softmax(self, x: mx.sym.Symbol, axis: int) -> mx.sym.Symbol:
        return mx.sym.softmax(x, axis=axis)

    def add(self, *values: mx.sym.Symbol) -> mx.sym.Symbol:
        return values[0] + values[1] if len(values) == 2 else mx.sym.add_n(*values)

    def subtract(self, x: mx.sym.Symbol, y: mx.sym.Symbol) -> mx.sym.Symbol:
        return x - y

    def multiply(self, x: mx.sym.Symbol, y: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.broadcast_mul(x, y)

    def split(self, x: mx.sym.Symbol, parts: int) -> list[mx.sym.Symbol]:
        return list(mx.sym.split(x, num_outputs=parts, axis=1))

    def reshape(self, x: mx.sym.Symbol, shape: tuple[int, ...]) -> mx.sym.Symbol:
        return mx.sym.reshape(x, shape=shape)

    def transpose(self, x: mx.sym.Symbol, axes: tuple[int, ...]) -> mx.sym.Symbol:
        return mx.sym.transpose(x, axes=axes)

    def total(self, x: mx.sym.Symbol, axis: int) -> mx.sym.Symbol:
        return x.sum(axis=axis)

    def flatten(self, x: mx.sym.Symbol) -> mx.sym.Symbol:
        return mx.sym.Flatten(x)


def deployment_graph(net: ResNeStFeatures) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Symbol and parameters of `net` for inference; `net` itself stays as it is.

    Returns
    -------
    symbol
        Input ``data`` (N, in_channels, H, W), any N, H and W; output the logits (N, classes), or
        of a network without a classifier its four maps.
    parameters
        By the names of the symbol's arguments, on the CPU.
    """
    writer = SymbolWriter()
    output = write_network(writer, net, mx.sym.var(INPUT_NAME))
    if isinstance(output, list):
        output = mx.sym.Group(output)
    return output, writer.parameters


def symbol_from_pixels(
    symbol: mx.sym.Symbol, parameters: dict[str, mx.nd.NDArray]
) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """The same graph with the input ``pixels`` (N, H, W, 3), uint8, RGB, normalised in it."""
    scale, offset = pixel_scale_and_offset()
    images = mx.sym.transpose(mx.sym.var(PIXELS_NAME, dtype=np.uint8), axes=(0, 3, 1, 2))
    images = mx.sym.broadcast_mul(mx.sym.Cast(images, dtype="float32"),
                                  mx.sym.var("pixel_scale", shape=scale.shape))
    images = mx.sym.broadcast_sub(images, mx.sym.var("pixel_offset", shape=offset.shape))
    return symbol(**{INPUT_NAME: images}), {
        **parameters, "pixel_scale": mx.nd.array(scale), "pixel_offset": mx.nd.array(offset)}


class GraphBlock(OneAtATime, SymbolBlock):
    """A symbol with its parameters, which several threads may call."""


def as_block(
    symbol: mx.sym.Symbol, parameters: Mapping[str, mx.nd.NDArray], input_name: str = INPUT_NAME,
    ctx: mx.Context | None = None,
) -> GraphBlock:
    """A block that computes `symbol`, with the `parameters` that it names, on `ctx` (the CPU)."""
    with warnings.catch_warnings():
        # That it does not know the type of the input yet, and about MXNet's NumPy interface.
        warnings.simplefilter("ignore")
        block = GraphBlock(symbol, [mx.sym.var(input_name)])
    for name, parameter in block.collect_params().items():
        parameter._load_init(parameters[name], ctx or mx.cpu())
    return block


def deployed(net: ResNeStFeatures) -> GraphBlock:
    """The deployment graph of `net` as a block for inference on the CPU, hybridized and fused."""
    return fuse(as_block(*deployment_graph(net)))


def fuse(block: HybridBlock) -> HybridBlock:
    """Hybridize `block` for inference; on a CPU, with oneDNN's convolution + ReLU + sum.

    The fused operators have no gradient and are of this process alone: files are written without
    them.
    """
    backend = "MKLDNN" if runtime.onednn_is_on() and _is_on_cpu(block) else None
    block.hybridize(True, backend=backend, static_alloc=True, static_shape=True)
    return block


def _is_on_cpu(block: HybridBlock) -> bool:
    contexts = {ctx.device_type for parameter in block.collect_params().values()
                for ctx in parameter.list_ctx()}
    return contexts == {"cpu"} and mx.runtime.Features().is_enabled("MKLDNN")
