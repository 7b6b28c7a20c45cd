"""The deployment graph: a trained network rewritten for inference.

Same input, same logits to rounding, fewer and cheaper operators:

* batch normalisation is folded into the convolution before it: with s = gamma / sqrt(var + eps),
  weights become s W and the bias beta + s (b - mean);
* DropBlock and dropout are gone;
* the sum over the splits, where there is one cardinal group, is in fc1's weights;
* the attention of two splits is one sigmoid, softmax(x, y) = (sigmoid(x - y), 1 - sigmoid(x - y)),
  so that half of fc2's outputs suffice, and the weighted sum is V = U_2 + a (U_1 - U_2);
* the splits are pooled as oneDNN does it, which is fast forward (its gradient is not).

What is left are convolutions with bias, ReLU, sums and pooling, which any runtime fuses further;
:func:`fuse` has MXNet do it on a CPU.
"""

from __future__ import annotations

import warnings
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock, nn

from gluon_resnest import runtime
from gluon_resnest.layers import SplitAttention
from gluon_resnest.models.resnest import Bottleneck, ResNeSt

INPUT_NAME = "data"


def deployment_graph(net: ResNeSt) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Symbol and parameters of `net` for inference; `net` itself stays as it is.

    Parameters
    ----------
    net
        With weights. Normalisation other than by batch statistics is not folded.

    Returns
    -------
    symbol
        Input ``data`` (N, in_channels, H, W), any N, H and W; output the logits (N, classes), or
        of a network of features only the four maps.
    parameters
        By the names of the symbol's arguments, on the CPU.
    """
    writer = _Writer()
    x = mx.sym.var(INPUT_NAME)
    conv1, bn1, _, conv2, bn2, _, conv3 = net.conv1._children.values()
    for place, (conv, norm) in enumerate(((conv1, bn1), (conv2, bn2), (conv3, net.bn1))):
        x = _relu(writer.convolution(f"conv1_{place}", x, conv, norm))
    x = _pooling(net.maxpool, x)
    maps = []
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(net, f"layer{stage}")):
            x = _bottleneck(writer, f"layer{stage}_{number}", x, block)
        maps.append(x)
    if net.features_only:
        return mx.sym.Group(maps), writer.parameters
    x = mx.sym.Flatten(_mean(x))
    weight, bias = _value(net.fc.weight), _value(net.fc.bias)
    x = mx.sym.FullyConnected(x, writer.variable("fc_weight", weight),
                              writer.variable("fc_bias", bias),
                              num_hidden=len(weight), name="fc")
    return x, writer.parameters


def deployed(net: ResNeSt) -> SymbolBlock:
    """The deployment graph of `net` as a block for inference on the CPU, hybridized and fused."""
    symbol, parameters = deployment_graph(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that MXNet does not know the type of the input yet
        block = SymbolBlock(symbol, [mx.sym.var(INPUT_NAME)])
    for name, parameter in block.collect_params().items():
        parameter._load_init(parameters[name], mx.cpu())
    return fuse(block)


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


class _Writer:
    """Makes operators of a symbol and keeps the values of their parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, mx.nd.NDArray] = {}

    def variable(self, name: str, value: np.ndarray) -> mx.sym.Symbol:
        self.parameters[name] = mx.nd.array(value, ctx=mx.cpu(), dtype=np.float32)
        return mx.sym.var(name, shape=value.shape)

    def convolution(self, name: str, x: mx.sym.Symbol, conv: nn.Conv2D,
                    norm: HybridBlock | None = None, copies: int = 1) -> mx.sym.Symbol:
        """`conv` and the normalisation behind it, as one convolution if that can be folded.

        With `copies`, `x` has so many times the channels, and `conv` is of their sum.
        """
        weight = _value(conv.weight)
        bias = np.zeros(len(weight)) if conv.bias is None else _value(conv.bias)
        if isinstance(norm, nn.BatchNorm):
            scale, shift = _scale_and_shift(norm)
            weight, bias = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
        x = self.convolve(name, x, np.concatenate([weight] * copies, axis=1), bias, conv)
        if norm is None or isinstance(norm, nn.BatchNorm):
            return x
        self.parameters.update(
            {key: value.data().as_in_context(mx.cpu())
             for key, value in norm.collect_params().items()})
        return norm(x)

    def convolve(self, name: str, x: mx.sym.Symbol, weight: np.ndarray, bias: np.ndarray,
                 like: nn.Conv2D) -> mx.sym.Symbol:
        """A convolution with these weights, and strides and groups as `like` has them."""
        settings = {key: like._kwargs[key]
                    for key in ("kernel", "stride", "pad", "dilate", "num_group")}
        return mx.sym.Convolution(
            x, self.variable(f"{name}_weight", weight), self.variable(f"{name}_bias", bias),
            num_filter=len(weight), name=name, **settings)


def _bottleneck(writer: _Writer, name: str, x: mx.sym.Symbol, block: Bottleneck) -> mx.sym.Symbol:
    shortcut = x
    if block.downsample is not None:
        pool, conv, norm = block.downsample
        if isinstance(pool, nn.AvgPool2D):
            shortcut = _pooling(pool, shortcut)
        shortcut = writer.convolution(f"{name}_downsample", shortcut, conv, norm)
    x = _relu(writer.convolution(f"{name}_conv1", x, block.conv1, block.bn1))
    pool_first = block.avd_layer is not None and block.pools_first
    if pool_first:
        x = _pooling(block.avd_layer, x)
    if isinstance(block.conv2, SplitAttention):
        x = _split_attention(writer, f"{name}_conv2", x, block.conv2)
    else:
        x = _relu(writer.convolution(f"{name}_conv2", x, block.conv2, block.bn2))
    if block.avd_layer is not None and not pool_first:
        x = _pooling(block.avd_layer, x)
    x = writer.convolution(f"{name}_conv3", x, block.conv3, block.bn3)
    return _relu(x + shortcut)


def _split_attention(
    writer: _Writer, name: str, x: mx.sym.Symbol, block: SplitAttention
) -> mx.sym.Symbol:
    radix, channels = block.radix, block.channels
    splits = _relu(writer.convolution(f"{name}_conv", x, block.conv, block.bn))
    pooled = _mean(splits)
    copies = radix if block.cardinality == 1 else 1
    if copies < radix:
        pooled = mx.sym.reshape(pooled, shape=(0, radix, channels, 1, 1)).sum(axis=1)
    hidden = _relu(writer.convolution(f"{name}_fc1", pooled, block.fc1, block.bn1, copies))
    if radix == 1:
        logits = writer.convolution(f"{name}_fc2", hidden, block.fc2)
        return mx.sym.broadcast_mul(splits, mx.sym.sigmoid(logits))
    splits = list(mx.sym.split(splits, num_outputs=radix, axis=1, name=f"{name}_splits"))
    weights = _attention(writer, name, hidden, block)
    last = splits.pop()
    # Attention sums to 1 over the radix: the last split's needs no product of its own.
    return mx.sym.add_n(last, *(mx.sym.broadcast_mul(split - last, weight)
                                for split, weight in zip(splits, weights)))


def _attention(
    writer: _Writer, name: str, hidden: mx.sym.Symbol, block: SplitAttention
) -> list[mx.sym.Symbol]:
    """Attention of all splits but the last, each (N, C, 1, 1)."""
    radix, cardinality, channels = block.radix, block.cardinality, block.channels
    if radix == 2:
        # fc2's outputs are cardinality-major: (K, R, C / K). Their difference over R is (K, C / K).
        weight, bias = _value(block.fc2.weight), _value(block.fc2.bias)
        weight = weight.reshape(cardinality, 2, channels // cardinality, -1, 1, 1)
        bias = bias.reshape(cardinality, 2, -1)
        logits = writer.convolve(
            f"{name}_fc2", hidden,
            (weight[:, 0] - weight[:, 1]).reshape(channels, -1, 1, 1),
            (bias[:, 0] - bias[:, 1]).reshape(channels), block.fc2)
        return [mx.sym.sigmoid(logits)]
    logits = writer.convolution(f"{name}_fc2", hidden, block.fc2)
    logits = mx.sym.reshape(logits, shape=(0, cardinality, radix, -1))
    attention = mx.sym.softmax(logits, axis=2)
    if cardinality > 1:
        attention = mx.sym.transpose(attention, axes=(0, 2, 1, 3))
    attention = mx.sym.reshape(attention, shape=(0, -1, 1, 1))
    return list(mx.sym.split(attention, num_outputs=radix, axis=1))[:-1]


def _relu(x: mx.sym.Symbol) -> mx.sym.Symbol:
    return mx.sym.Activation(x, act_type="relu")


def _mean(x: mx.sym.Symbol) -> mx.sym.Symbol:
    return mx.sym.Pooling(x, kernel=(1, 1), pool_type="avg", global_pool=True)


def _pooling(layer: HybridBlock, x: mx.sym.Symbol) -> mx.sym.Symbol:
    return mx.sym.Pooling(x, **layer._kwargs)


def _value(parameter: mx.gluon.Parameter) -> np.ndarray:
    """In float64, so that folding rounds once."""
    return parameter.data(parameter.list_ctx()[0]).asnumpy().astype(np.float64)


def _scale_and_shift(norm: nn.BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    settings: dict[str, Any] = norm._kwargs
    gamma = np.ones(1) if settings["fix_gamma"] else _value(norm.gamma)
    scale = gamma / np.sqrt(_value(norm.running_var) + settings["eps"])
    return scale, _value(norm.beta) - _value(norm.running_mean) * scale
