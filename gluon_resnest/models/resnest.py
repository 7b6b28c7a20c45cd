"""ResNeSt: bottleneck blocks around split attention (paper, Sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import contrib, nn

from gluon_resnest.errors import InputError
from gluon_resnest.layers import (
    DropBlock,
    NormLayer,
    OneAtATime,
    SplitAttention,
    check_batch,
    make_norm,
    norm_relu,
    portable_operators,
    without_dropblock,
)
from gluon_resnest.models.refusals import check_cast, input_fault, refuse_float16_on_cpu
from gluon_resnest.models.variants import Variant

EXPANSION = 4

# Attribute names, and the order in which layers are made, are those of GluonCV's and the ResNeSt
# repository's networks: the first make the keys of .params files, the second the names in symbols.


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a network share."""

    variant: Variant
    last_gamma: bool = False
    norm_layer: NormLayer = nn.BatchNorm
    norm_kwargs: dict[str, Any] = field(default_factory=dict)

    def norm(self, channels: int, **kwargs: Any) -> nn.HybridBlock:
        return make_norm(self.norm_layer, channels, self.norm_kwargs, **kwargs)


class Bottleneck(nn.HybridBlock):
    """1x1 convolution, split attention, 1x1 convolution, and a shortcut around them.

    A block with stride 2 pools with a 3x3 average instead of striding the convolution (paper,
    "Average Downsampling"), behind the split attention or, if the variant is "fast", before it.
    The first block of a dilated stage pools with stride 1 in its place. With radix 0 a strided
    3x3 convolution takes the place of split attention and pooling, as in ResNet-D.

    Parameters
    ----------
    planes, in_channels
        Nominal width, and channels of the input.
    settings
        Of the network.
    strides, dilation
        Of the block.
    pool
        Whether it stands at a transition and therefore pools.
    drop_prob
        Of DropBlock, behind each of the three convolutions; 0 leaves the layers out.
    downsample
        Projection on the shortcut.

    Shapes
    ------
    Input (N, in_channels, H, W), output (N, 4 * planes, ceil(H / strides), ceil(W / strides)).
    """

    def __init__(
        self,
        planes: int,
        in_channels: int,
        settings: BlockSettings,
        strides: int = 1,
        dilation: int = 1,
        pool: bool = False,
        drop_prob: float = 0.0,
        downsample: nn.HybridSequential | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        variant = settings.variant
        self.pools_first = variant.avd_first
        group_width = planes * variant.width // 64 * variant.cardinality
        self.conv1 = nn.Conv2D(group_width, 1, in_channels=in_channels, use_bias=False)
        groups = variant.cardinality * max(variant.radix, 1)
        widths = (in_channels, group_width // groups)
        self.bn1 = settings.norm(group_width, relu_between=widths)
        self.relu1 = nn.Activation("relu")
        self.bn2 = self.avd_layer = None
        if variant.radix == 0:
            self.conv2 = nn.Conv2D(group_width, 3, strides, dilation, dilation,
                                   groups=groups, in_channels=group_width,
                                   use_bias=False)
            self.bn2 = settings.norm(group_width, relu_between=widths)
            self.relu2 = nn.Activation("relu")
        else:
            self.conv2 = SplitAttention(
                group_width, variant.radix, variant.cardinality, padding=dilation,
                dilation=dilation, norm_layer=settings.norm_layer,
                norm_kwargs=settings.norm_kwargs, prefix="",
            )
            if pool:
                self.avd_layer = nn.AvgPool2D(3, strides, padding=1)
        self.conv3 = nn.Conv2D(planes * EXPANSION, 1, in_channels=group_width, use_bias=False)
        # Zero: the block starts as its shortcut, which steadies training with large batches.
        self.bn3 = settings.norm(planes * EXPANSION, zero_gamma=settings.last_gamma)
        self.relu3 = nn.Activation("relu")
        self.downsample = downsample
        self.dropblock1, self.dropblock2, self.dropblock3 = (
            DropBlock(drop_prob) if drop_prob > 0 else None for _ in range(3))

    def hybrid_forward(self, F, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        # DropBlock only drops and scales: it may as well stand behind ReLU.
        out = _dropped(self.dropblock1, norm_relu(self.bn1, self.relu1, self.conv1(x)))
        if self.avd_layer is not None and self.pools_first:
            out = self.avd_layer(out)
        if self.bn2 is None:
            out = _dropped(self.dropblock2, self.conv2(out))
        else:
            out = norm_relu(self.bn2, self.relu2, self.conv2(out))
            out = _dropped(self.dropblock2, out)
        if self.avd_layer is not None and not self.pools_first:
            out = self.avd_layer(out)
        out = _dropped(self.dropblock3, self.bn3(self.conv3(out)))
        return self.relu3(out + shortcut)


def _dropped(dropblock: DropBlock | None, x):
    return x if dropblock is None else dropblock(x)


class StemConvolutions(nn.HybridSequential):
    """The three convolutions of the deep stem, with what stands between them."""

    def hybrid_forward(self, F, x):
        conv1, bn1, relu1, conv2, bn2, relu2, conv3 = self._children.values()
        x = norm_relu(bn1, relu1, conv1(x))
        return conv3(norm_relu(bn2, relu2, conv2(x)))


class ResNeSt(OneAtATime):
    """Classifier: deep stem, four stages of bottlenecks, global average pooling, dense layer.

    Parameters
    ----------
    variant
        The architecture, a row of :mod:`gluon_resnest.models.variants`.
    classes
        Outputs of the classifier.
    features_only
        Leave the classifier out and return the maps of the four stages, for detectors and
        segmenters; see the attributes `strides` and `channels`.
    last_gamma
        Start the last batch normalisation of each block with gamma = 0 (paper, "Large Mini-batch
        Distributed Training"). Matters for training from scratch only.
    norm_layer, norm_kwargs
        Normalisation, as :func:`~gluon_resnest.layers.normalization.make_norm` takes it.

    Attributes
    ----------
    strides, channels
        Of the four stages, C2 to C5: what they divide height and width by, and their channels.

    Shapes
    ------
    Input (N, in_channels, H, W): RGB, normalised with ImageNet's mean and standard deviation, any
    size of at least 17 pixels (9 or 5 with `output_stride` 16 or 8). Output (N, classes): logits;
    or, of features only, four maps (N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])).

    Raises
    ------
    InputError
        When called, for a training batch of one image that batch normalisation cannot train on,
        for an input of another shape or type, or in float16 on a CPU.
    """

    def __init__(
        self,
        variant: Variant,
        classes: int = 1000,
        features_only: bool = False,
        last_gamma: bool = False,
        norm_layer: NormLayer = nn.BatchNorm,
        norm_kwargs: dict[str, Any] | None = None,
        prefix: str = "resnest_",
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.variant = variant
        self.classes = classes
        self.features_only = features_only
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
                layers = _make_stage(stage + 1, blocks, channels, settings,
                                     self.strides[stage] // stride, dilation, dilations[stage])
                setattr(self, f"layer{stage + 1}", layers)
                channels, dilation, stride = (
                    self.channels[stage], dilations[stage], self.strides[stage])
            self.drop = None
            if not features_only:
                self.avgpool = nn.GlobalAvgPool2D()
                self.flat = nn.Flatten()
                if variant.final_drop > 0:
                    self.drop = nn.Dropout(variant.final_drop)
                self.fc = nn.Dense(classes, in_units=channels)

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

    def hybrid_forward(self, F, x):
        x = self.maxpool(norm_relu(self.bn1, self.relu, self.conv1(x)))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        if self.features_only:
            return c2, c3, c4, c5
        x = self.flat(self.avgpool(c5))
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


def _make_stage(
    stage: int, blocks: int, in_channels: int, settings: BlockSettings,
    strides: int, dilation_before: int, dilation: int,
) -> nn.HybridSequential:
    planes = 32 << stage
    out_channels = planes * EXPANSION
    # The projection pools before its 1x1 convolution (ResNet-D). Where the stage does not stride
    # nothing is to be pooled, but published weights count the layer.
    downsample = nn.HybridSequential(prefix=f"down{stage}_")
    with downsample.name_scope():
        downsample.add(
            nn.AvgPool2D(strides, strides, ceil_mode=True, count_include_pad=False)
            if strides > 1 else contrib.nn.Identity(),
            nn.Conv2D(out_channels, 1, in_channels=in_channels, use_bias=False),
            settings.norm(out_channels),
        )
    # In the last two stages only (paper, "Regularization").
    drop_prob = settings.variant.dropblock_prob if stage >= 3 else 0.0
    layers = nn.HybridSequential(prefix=f"layers{stage}_")
    with layers.name_scope():
        # The first block still dilates as the stage before, as the published networks do.
        layers.add(Bottleneck(planes, in_channels, settings, strides, dilation_before,
                              pool=strides > 1 or dilation != dilation_before,
                              drop_prob=drop_prob, downsample=downsample, prefix=""))
        for _ in range(blocks - 1):
            layers.add(Bottleneck(planes, out_channels, settings, dilation=dilation,
                                  drop_prob=drop_prob, prefix=""))
    return layers
