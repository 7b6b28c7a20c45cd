"""The deployment graph: a trained network rewritten for inference.

Same input, same logits to rounding, fewer and cheaper operators:

* batch normalisation is folded into the convolution before it: with s = gamma / sqrt(var + eps),
  weights become s W and the bias beta + s (b - mean);
* DropBlock and dropout are gone;
* the sum over the splits, where there is one cardinal group, is in fc1's weights;
* the attention of two splits is one sigmoid, softmax(x, y) = (sigmoid(x - y), 1 - sigmoid(x - y)),
  so that half of fc2's outputs suffice, and the weighted sum is V = U_2 + a (U_1 - U_2);
* the splits are pooled as oneDNN does it, which is fast forward (its gradient is not).

What is left are convolutions with bias, ReLU, sums and pooling, which any runtime fuses further.
:func:`write_network` says what the graph is; a :class:`~.writer.Writer` puts it in the terms of a
runtime.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mxnet.gluon import HybridBlock, nn

from gluon_resnest.deploy.writer import Writer
from gluon_resnest.errors import InputError
from gluon_resnest.layers import IMAGENET_MEAN, IMAGENET_STD, SplitAttention
from gluon_resnest.models import Bottleneck, ResNeSt, ResNeStFeatures


def write_network(writer: Writer, net: ResNeStFeatures, x: Any) -> Any:
    """Write `net` for inference; `net` itself stays as it is.

    Parameters
    ----------
    net
        With weights. Normalisation other than by batch statistics is not folded.
    x
        The writer's value of the images, (N, in_channels, H, W), normalised.

    Returns
    -------
    The logits (N, classes), or of a network without a classifier a list of its four maps.
    """
    check_initialized(net)
    conv1, bn1, _, conv2, bn2, _, conv3 = net.conv1._children.values()
    for place, (conv, norm) in enumerate(((conv1, bn1), (conv2, bn2), (conv3, net.bn1))):
        x = writer.relu(_convolution(writer, f"conv1_{place}", x, conv, norm))
    x = writer.pooling(net.maxpool, x)
    maps = []
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(net, f"layer{stage}")):
            x = _bottleneck(writer, f"layer{stage}_{number}", x, block)
        maps.append(x)
    if not isinstance(net, ResNeSt):
        return maps
    return writer.dense("fc", writer.flatten(writer.mean(x)),
                        _value(net.fc.weight), _value(net.fc.bias))


def check_initialized(net: HybridBlock) -> None:
    """Refuse a network without weights, which MXNet answers with the name of one of them."""
    if any(parameter._data is None for parameter in net.collect_params().values()):
        raise InputError("the network has no weights yet: call net.initialize(), or load some with "
                         "gluon_resnest.models.load_weights(net, FILE), before it is exported")


def pixel_scale_and_offset() -> tuple[np.ndarray, np.ndarray]:
    """Normalisation as pixel * scale - offset, each (1, 3, 1, 1) float32."""
    mean, std = (np.array(values, np.float64).reshape(1, 3, 1, 1)
                 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)


def _bottleneck(writer: Writer, name: str, x: Any, block: Bottleneck) -> Any:
    shortcut = x
    if block.downsample is not None:
        pool, conv, norm = block.downsample
        if isinstance(pool, nn.AvgPool2D):
            shortcut = writer.pooling(pool, shortcut)
        shortcut = _convolution(writer, f"{name}_downsample", shortcut, conv, norm)
    pool = block.avd_layer
    if isinstance(block.conv2, SplitAttention) and _separate(writer, block.conv2, block.bn1):
        parts = []
        for number, conv1 in enumerate(_shares(block.conv1, block.bn1, block.conv2.radix)):
            part = writer.relu(writer.convolve(f"{name}_conv1_{number}", x, *conv1, block.conv1))
            parts.append(writer.pooling(pool, part) if pool is not None and block.pools_first
                         else part)
        x = _split_attention(writer, f"{name}_conv2", parts, block.conv2)
    else:
        x = writer.relu(_convolution(writer, f"{name}_conv1", x, block.conv1, block.bn1))
        if pool is not None and block.pools_first:
            x = writer.pooling(pool, x)
        if isinstance(block.conv2, SplitAttention):
            x = _split_attention(writer, f"{name}_conv2", [x], block.conv2)
        else:
            x = writer.relu(_convolution(writer, f"{name}_conv2", x, block.conv2, block.bn2))
    if pool is not None and not block.pools_first:
        x = writer.pooling(pool, x)
    x = _convolution(writer, f"{name}_conv3", x, block.conv3, block.bn3)
    return writer.relu(writer.add(x, shortcut))


def _separate(writer: Writer, block: SplitAttention, norm: HybridBlock) -> bool:
    """Whether each split is to have convolutions of its own; R is then 2 or more."""
    return (writer.separate_splits and block.radix > 1
            and isinstance(norm, nn.BatchNorm) and isinstance(block.bn, nn.BatchNorm))


def _split_attention(writer: Writer, name: str, inputs: list[Any], block: SplitAttention) -> Any:
    """Split attention (equations 1 and 2); `inputs` are one value, or one a split."""
    radix = block.radix
    if len(inputs) == 1:
        whole = writer.relu(_convolution(writer, f"{name}_conv", inputs[0], block.conv, block.bn))
        splits = writer.split(whole, radix) if radix > 1 else [whole]
        pooled, copies = _pooled(writer, whole, block)
    else:
        splits = [
            writer.relu(writer.convolve(f"{name}_conv_{number}", x, *conv, block.conv,
                                        groups=block.cardinality))
            for number, (x, conv) in enumerate(zip(inputs, _shares(block.conv, block.bn, radix)))]
        pooled, copies = writer.mean(writer.add(*splits)), 1
    hidden = writer.relu(_convolution(writer, f"{name}_fc1", pooled, block.fc1, block.bn1, copies))
    if radix == 1:
        logits = _convolution(writer, f"{name}_fc2", hidden, block.fc2)
        return writer.multiply(splits[0], writer.sigmoid(logits))
    weights = _attention(writer, name, hidden, block)
    # Attention sums to 1 over the radix: the last split's needs no product of its own.
    last = splits.pop()
    return writer.add(last, *(writer.multiply(writer.subtract(split, last), weight)
                              for split, weight in zip(splits, weights)))


def _pooled(writer: Writer, splits: Any, block: SplitAttention) -> tuple[Any, int]:
    """Means of the splits' sum, and how often fc1 has to be repeated to take their place."""
    pooled = writer.mean(splits)
    if block.radix == 1 or block.cardinality == 1:
        return pooled, block.radix
    pooled = writer.reshape(pooled, (0, block.radix, block.channels, 1, 1))
    return writer.total(pooled, axis=1), 1


def _attention(writer: Writer, name: str, hidden: Any, block: SplitAttention) -> list[Any]:
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
        return [writer.sigmoid(logits)]
    logits = _convolution(writer, f"{name}_fc2", hidden, block.fc2)
    attention = writer.softmax(writer.reshape(logits, (0, cardinality, radix, -1)), axis=2)
    if cardinality > 1:
        attention = writer.transpose(attention, (0, 2, 1, 3))
    return writer.split(writer.reshape(attention, (0, radix * channels, 1, 1)), radix)[:-1]


# ---- weights ----


def _convolution(writer: Writer, name: str, x: Any, conv: nn.Conv2D,
                 norm: HybridBlock | None = None, copies: int = 1) -> Any:
    """`conv` and the normalisation behind it, as one convolution if that can be folded.

    With `copies`, `x` has so many times the channels, and `conv` is of their sum.
    """
    weight, bias = _folded(conv, norm)
    x = writer.convolve(name, x, np.concatenate([weight] * copies, axis=1), bias, conv)
    return x if norm is None or isinstance(norm, nn.BatchNorm) else writer.normalize(norm, x)


def _shares(conv: nn.Conv2D, norm: HybridBlock, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of equal parts of a convolution's outputs."""
    weight, bias = _folded(conv, norm)
    return list(zip(np.split(weight, parts), np.split(bias, parts)))


def _folded(conv: nn.Conv2D, norm: HybridBlock | None) -> tuple[np.ndarray, np.ndarray]:
    weight = _value(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _value(conv.bias)
    if not isinstance(norm, nn.BatchNorm):
        return weight, bias
    settings: dict[str, Any] = norm._kwargs
    gamma = np.ones(1) if settings["fix_gamma"] else _value(norm.gamma)
    scale = gamma / np.sqrt(_value(norm.running_var) + settings["eps"])
    shift = _value(norm.beta) - _value(norm.running_mean) * scale
    return weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift


def _value(parameter: Any) -> np.ndarray:
    """In float64, so that folding rounds once."""
    return parameter.data(parameter.list_ctx()[0]).asnumpy().astype(np.float64)
