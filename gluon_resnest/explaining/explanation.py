"""What a trained network looked at in one image, and which splits its blocks attended to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import Block, HybridBlock

from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize, SplitAttention
from gluon_resnest.models import ResNeSt


@dataclass(frozen=True)
class BlockAttention:
    """The attention of one block for one image.

    Attributes
    ----------
    stage, block
        Which one, both counted from 1.
    weights
        a^k_{r,c} of equation 2 of the paper, float64 of shape (radix, channels), over all
        cardinal groups: `weights[r, c]` is what channel c of the block's output takes from its
        r-th split. For radix 2 and more they sum to 1 over r; for radix 1 they are gates, each
        between 0 and 1.
    """

    stage: int
    block: int
    weights: np.ndarray


@dataclass(frozen=True)
class StageAttention:
    """The attention of all blocks of a stage.

    Attributes
    ----------
    stage
        Counted from 1.
    weights
        (radix, channels of all blocks): those of the blocks side by side.
    """

    stage: int
    weights: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """What each split receives, (radix,): the mean over channels and blocks.

        For radix 2 and more the shares sum to 1.
        """
        return self.weights.mean(axis=1)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over channels and blocks, (radix,): 0 where all are treated alike."""
        return self.weights.std(axis=1)


@dataclass(frozen=True)
class Explanation:
    """One image, one class, and how the network comes to it.

    Attributes
    ----------
    crop
        What the network saw, uint8 of shape (H, W, 3).
    logits
        Of all classes, float64 of shape (classes,).
    label
        The class that is explained.
    class_map
        Its class activation map (Zhou et al., 2016), float64 of shape (H', W') as the last stage
        has it: the sum over channels of the classifier's weight times the feature map. Its mean
        over the pixels and `bias` add up to the logit.
    bias
        Of the class in the classifier.
    attention
        Of all blocks with split attention, from the input on; none with radix 0.
    """

    crop: np.ndarray
    logits: np.ndarray
    label: int
    class_map: np.ndarray
    bias: float
    attention: tuple[BlockAttention, ...]

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (classes,)."""
        exponentials = np.exp(self.logits - self.logits.max())
        return exponentials / exponentials.sum()

    @property
    def map_on_crop(self) -> np.ndarray:
        """The class activation map on the crop's pixels, (H, W), bilinear.

        A value of the map stands for the square of the crop that its pixel covers, so its middle
        keeps the value, and beyond the outermost middles nothing is made up.
        """
        height, width = self.crop.shape[:2]
        return cv2.resize(self.class_map, (width, height), interpolation=cv2.INTER_LINEAR)


def explain(net: ResNeSt, crop: np.ndarray, label: int | None = None) -> Explanation:
    """Explain what a network says of one image.

    The network is left as it was: hooks are removed again, also after an error, and the graphs of
    a hybridized network stay. While this runs no other thread may call the network.

    Parameters
    ----------
    net
        A classifier of this package, of any variant, with its parameters in float32.
    crop
        The image as the network is to see it, uint8 RGB of shape (H, W, 3).
    label
        The class to explain; the one with the highest logit by default.

    Raises
    ------
    InputError
        The network has no classifier, no float32 parameters or no finite logits, the crop is not
        uint8 of shape (H, W, 3), or there is no such class.
    """
    if not isinstance(net, ResNeSt):
        raise InputError(f"{net.variant.name} was made with features_only=True and has no "
                         "classes to explain: make it without")
    if np.dtype(net.fc.weight.dtype) != np.float32:
        raise InputError(f"{net.variant.name} is in {np.dtype(net.fc.weight.dtype).name}: "
                         "net.cast('float32') before it is explained")
    if net.variant.in_channels != 3:
        raise InputError(f"{net.variant.name} takes images of {net.variant.in_channels} channels; "
                         "only those of RGB can be explained")
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8:
        raise InputError(f"an image of shape {crop.shape} and {crop.dtype} cannot be explained; "
                         "give uint8 RGB of shape (H, W, 3)")
    weight, bias = (parameter.data(parameter.list_ctx()[0])
                    for parameter in (net.fc.weight, net.fc.bias))
    if label is not None and not 0 <= label < len(bias):
        raise InputError(f"class {label} cannot be explained: the network has the classes 0 to "
                         f"{len(bias) - 1}")
    # pause(): prediction mode, whatever the caller records. A fresh Normalize leaves no graph.
    with autograd.pause(train_mode=False), _operator_by_operator(net), ExitStack() as hooks:
        features = hooks.enter_context(_outputs_of(net.layer4))
        # Of G alone: equation 2 is applied to it below.
        attended = [(stage, block, layer, hooks.enter_context(_outputs_of(layer.fc2)))
                    for stage, block, layer in split_attention_layers(net)]
        image = Normalize()(mx.nd.array(crop[None], ctx=weight.context, dtype=np.uint8))
        logits = _float64(net(image))[0]
    if not np.isfinite(logits).all():
        raise InputError(f"{net.variant.name} gives logits that are no numbers: its weights are "
                         "not usable")
    if label is None:
        label = int(logits.argmax())
    class_map = np.tensordot(_float64(weight[label]), _float64(features[0])[0], axes=1)
    return Explanation(crop, logits, label, class_map, float(bias[label].asscalar()), tuple(
        BlockAttention(stage, block, _attention(_float64(outputs[0])[0].ravel(), layer))
        for stage, block, layer, outputs in attended))


def split_attention_layers(net: ResNeSt) -> Iterator[tuple[int, int, SplitAttention]]:
    """Stage, block and layer of each split attention of `net`, both counted from 1."""
    for stage in range(1, 5):
        for block, bottleneck in enumerate(getattr(net, f"layer{stage}"), start=1):
            if isinstance(bottleneck.conv2, SplitAttention):
                yield stage, block, bottleneck.conv2


def attention_by_stage(attention: Sequence[BlockAttention]) -> list[StageAttention]:
    """The blocks' attention put together by stages."""
    stages = sorted({one.stage for one in attention})
    return [StageAttention(stage, np.concatenate(
        [one.weights for one in attention if one.stage == stage], axis=1)) for stage in stages]


def _attention(logits: np.ndarray, layer: SplitAttention) -> np.ndarray:
    """Weights (R, C) by equation 2 from the output (R C,) of G, which is cardinality-major."""
    if layer.radix == 1:
        return 1 / (1 + np.exp(-logits.reshape(1, layer.channels)))
    groups = logits.reshape(layer.cardinality, layer.radix, -1)
    exponentials = np.exp(groups - groups.max(axis=1, keepdims=True))
    weights = exponentials / exponentials.sum(axis=1, keepdims=True)
    return weights.transpose(1, 0, 2).reshape(layer.radix, layer.channels)


def _float64(array: mx.nd.NDArray) -> np.ndarray:
    return array.asnumpy().astype(np.float64)


@contextmanager
def _outputs_of(block: Block) -> Iterator[list[mx.nd.NDArray]]:
    """Within it, what `block` returns is put into the list."""
    outputs: list[mx.nd.NDArray] = []
    hook = block.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.detach()


@contextmanager
def _operator_by_operator(net: Block) -> Iterator[None]:
    """Within it, `net` runs as if it had not been hybridized: within a graph no hook is called.

    `hybridize(False)` would drop the graphs and settings, which then cannot be put back.
    """
    hybridized: list[Any] = []

    def stop(block: Block) -> None:
        if isinstance(block, HybridBlock) and block._active:
            hybridized.append(block)
            block._active = False

    try:
        net.apply(stop)
        yield
    finally:
        for block in hybridized:
            block._active = True
