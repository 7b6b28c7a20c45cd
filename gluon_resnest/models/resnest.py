"""ResNeSt: the features of an image, and a classifier on top (paper, Sections 3 and 4)."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from gluon_resnest.errors import InputError
from gluon_resnest.layers import (
    NormLayer,
    OneAtATime,
    check_batch,
    norm_relu,
    portable_operators,
    without_dropblock,
)
from gluon_resnest.models.bottleneck import EXPANSION, BlockSettings, make_stage
from gluon_resnest.models.refusals import check_cast, input_fault, refuse_float16_on_cpu
from gluon_resnest.models.variants import Variant

# Attribute names, and the order in which layers are made, are those of GluonCV's and the ResNeSt
# repository's networks: the first make the keys of .params files, the second the names in symbols.


class StemConvolutions(nn.HybridSequential):
    """The three convolutions of the deep stem, with what stands between them."""

    def hybrid_forward(self, F, x):
        conv1, bn1, relu1, conv2, bn2, relu2, conv3 = self._children.values()
        x = norm_relu(bn1, relu1, conv1(x))
        return conv3(norm_relu(bn2, relu2, conv2(x)))


class ResNeStFeatures(OneAtATime):
    """Deep stem and four stages of bottlenecks: feature maps, for detectors and segmenters.

    Parameters
    ----------
    variant
        The architecture, a row of :mod:`gluon_resnest.models.variants`.
    last_gamma
        Start the last batch normalisation of each block with gamma = 0 (paper, "Large Mini-batch
        Distributed Training"). Matters for training from scratch only.
    norm_layer, norm_kwargs
        Normalisation, as :func:`~gluon_resnest.layers.normalization.make_norm` takes it.

    Attributes
    ----------
    strides, channels
        Of the four stages, C2 to C5: what they divide height and width by, and their channels.
        4, 8, 16, 32 and 256, 512, 1024, 2048, unless the variant's `output_stride` stops the
        strides at 16 or 8.

    Shapes
    ------
    Input (N, in_channels, H, W): RGB, normalised with ImageNet's mean and standard deviation, any
    size of at least 17 pixels (9 or 5 with `output_stride` 16 or 8). Output C2 to C5: four maps
    (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Raises
    ------
    InputError
        When called, for a training batch of one image that batch normalisation cannot train on,
        for an input of another shape or type, or in float16 on a CPU.
    """

    features_only = True

    def __init__(
        self,
        variant: Variant,
        last_gamma: bool = False,
        norm_layer: NormLayer = nn.BatchNorm,
        norm_kwargs: dict[str, Any] | None = None,
        prefix: str = "resnest_",
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.variant = variant
        self._is_float16 = False
        settings = BlockSettings(variant, last_gamma, norm_layer, dict(norm_kwargs or {}))
        stem = variant.stem_width
        self.channels = tuple(64 * 2**stage * EXPANSION for stage in range(4))
        dilations, self.strides = _dilations_and_strides(variant.output_stride)
        with self.name_scope():
            self.conv1 = StemConvolutions(prefix="conv1")
            self.conv1.add(
                nn.Conv2D(stem, 3, 2, 1, in_channels=variant.in_channels, use_bias=False),
                settings.norm(stem, relu_between=(stem,)),
                nn.Activation("relu"),
                nn.Conv2D(stem, 3, 1, 1, in_channels=stem, use_bias=False),
                settings.norm(stem, relu_between=(stem,)),
                nn.Activation("relu"),
                nn.Conv2D(stem * 2, 3, 1, 1, in_channels=stem, use_bias=False),
            )
            self.bn1 = settings.norm(stem * 2, relu_between=(stem,))
            self.relu = nn.Activation("relu")
            self.maxpool = nn.MaxPool2D(3, 2, padding=1)
            channels, dilation, stride = stem * 2, 1, 4
            for stage, blocks in enumerate(variant.layers):
                layers = make_stage(stage + 1, blocks, channels, settings,
                                    self.strides[stage] // stride, dilation, dilations[stage])
                setattr(self, f"layer{stage + 1}", layers)
                channels, dilation, stride = (
                    self.channels[stage], dilations[stage], self.strides[stage])

    def stages(self, x: Any) -> tuple[Any, Any, Any, Any]:
        """The maps C2 to C5 of images `x`, for the `hybrid_forward` of whatever stands on them."""
        x = self.maxpool(norm_relu(self.bn1, self.relu, self.conv1(x)))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def hybrid_forward(self, F, x):
        return self.stages(x)

    def initialize(self, init=None, ctx=None, verbose=False, force_reinit=False):
        """Initialise all parameters; by default as He et al. do (paper, Section 5.1).

        Weights are drawn from N(0, sqrt(2 / fan_in)), biases are zero.
        """
        super().initialize(init or kaiming(), ctx, verbose, force_reinit)

    def export(self, path, epoch=0, **kwargs):
        """Write ``PATH-symbol.json`` and ``PATH-EPOCH.params``, that run on any build of MXNet.

        There is nothing of DropBlock in them.
        """
        weight = self.conv1[0].weight
        image = mx.nd.zeros((1, self.variant.in_channels, 64, 64), weight.list_ctx()[0],
                            weight.dtype)
        with without_dropblock(self), portable_operators(self):
            self._build_cache(image)  # traces the graph, and runs nothing: float16 needs a GPU
            return super().export(path, epoch, **kwargs)

    def cast(self, dtype):
        """Compute in float16 (on GPUs only), float32 or float64."""
        check_cast(dtype)
        super().cast(dtype)
        self._is_float16 = np.dtype(dtype) == np.float16

    def forward(self, x, *args):
        if self._is_float16:
            refuse_float16_on_cpu(x)
        if self.variant.radix:
            # Each layer looks too, but in a hybridized network no layer is called again. All
            # have the same kind of normalisation.
            check_batch(x, self.layer1[0].conv2.bn1)
        try:
            return super().forward(x, *args)
        except (mx.MXNetError, RuntimeError, ValueError):
            fault = input_fault(self, x)
            if fault is None:
                raise
            raise InputError(fault) from None


class ResNeSt(ResNeStFeatures):
    """Classifier: global average pooling and a dense layer on the last of the features.

    It has the layers of :class:`ResNeStFeatures` under the same names, so that weights of the one
    fit the other.

    Parameters
    ----------
    variant, **kwargs
        As for :class:`ResNeStFeatures`.
    classes
        Outputs of the classifier.

    Shapes
    ------
    Input as of :class:`ResNeStFeatures`. Output (N, classes): logits.
    """

    features_only = False

    def __init__(self, variant: Variant, classes: int = 1000, **kwargs: Any) -> None:
        super().__init__(variant, **kwargs)
        self.classes = classes
        with self.name_scope():
            self.avgpool = nn.GlobalAvgPool2D()
            self.flat = nn.Flatten()
            self.drop = nn.Dropout(variant.final_drop) if variant.final_drop > 0 else None
            self.fc = nn.Dense(classes, in_units=self.channels[-1])

    def hybrid_forward(self, F, x):
        x = self.flat(self.avgpool(self.stages(x)[-1]))
        if self.drop is not None:
            x = self.drop(x)
        return self.fc(x)


def kaiming() -> mx.init.Initializer:
    """Kaiming initialisation of the weights, fan-in, for ReLU."""
    return mx.init.MSRAPrelu(factor_type="in", slope=0)


def _dilations_and_strides(output_stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the four stages: a stage that must not stride any more dilates instead."""
    dilations, strides = [], []
    for wanted in (4, 8, 16, 32):
        strides.append(min(wanted, output_stride))
        dilations.append(wanted // strides[-1])
    return tuple(dilations), tuple(strides)
