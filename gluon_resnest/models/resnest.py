"""ResNeSt: bottleneck blocks around split attention (paper, Sections 3 and 4)."""

from __future__ import annotations

from typing import Any, Callable

import mxnet as mx
from mxnet.gluon import nn

from gluon_resnest.layers import SplitAttention
from gluon_resnest.models.variants import Variant

EXPANSION = 4
NormLayer = Callable[..., nn.HybridBlock]

# Attribute names, and the order in which layers are made, are those of GluonCV's and the ResNeSt
# repository's networks: the first make the keys of .params files, the second the names in symbols.


class Bottleneck(nn.HybridBlock):
    """1x1 convolution, split attention, 1x1 convolution, and a shortcut around them.

    A block with stride 2 pools with a 3x3 average instead of striding the convolution (paper,
    "Average Downsampling"), behind the split attention or, if `avd_first`, before it.

    Shapes
    ------
    Input (N, in_channels, H, W), output (N, 4 * planes, ceil(H / strides), ceil(W / strides)).
    """

    def __init__(
        self,
        planes: int,
        in_channels: int,
        variant: Variant,
        strides: int = 1,
        downsample: nn.HybridSequential | None = None,
        last_gamma: bool = False,
        norm_layer: NormLayer = nn.BatchNorm,
        norm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        norm_kwargs = norm_kwargs or {}
        self._avd_first = variant.avd_first
        group_width = planes * variant.width // 64 * variant.cardinality
        self.conv1 = nn.Conv2D(group_width, 1, in_channels=in_channels, use_bias=False)
        self.bn1 = norm_layer(in_channels=group_width, **norm_kwargs)
        self.relu1 = nn.Activation("relu")
        self.conv2 = SplitAttention(
            group_width, variant.radix, variant.cardinality,
            norm_layer=norm_layer, norm_kwargs=norm_kwargs, prefix="",
        )
        self.avd_layer = nn.AvgPool2D(3, strides, padding=1) if strides > 1 else None
        self.conv3 = nn.Conv2D(planes * EXPANSION, 1, in_channels=group_width, use_bias=False)
        # Zero: the block starts as its shortcut, which steadies training with large batches.
        gamma = {"gamma_initializer": "zeros"} if last_gamma else {}
        self.bn3 = norm_layer(in_channels=planes * EXPANSION, **{**norm_kwargs, **gamma})
        self.relu3 = nn.Activation("relu")
        self.downsample = downsample

    def hybrid_forward(self, F, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        if self.avd_layer is not None and self._avd_first:
            out = self.avd_layer(out)
        out = self.conv2(out)
        if self.avd_layer is not None and not self._avd_first:
            out = self.avd_layer(out)
        out = self.bn3(self.conv3(out))
        return self.relu3(out + shortcut)


class ResNeSt(nn.HybridBlock):
    """Classifier: deep stem, four stages of bottlenecks, global average pooling, dense layer.

    Parameters
    ----------
    variant
        The architecture, a row of :mod:`gluon_resnest.models.variants`.
    classes
        Outputs of the classifier.
    last_gamma
        Start the last batch normalisation of each block with gamma = 0 (paper, "Large Mini-batch
        Distributed Training"). Matters for training from scratch only.
    norm_layer, norm_kwargs
        Normalisation, called as ``norm_layer(in_channels=..., **norm_kwargs)``.

    Shapes
    ------
    Input (N, 3, H, W): RGB, normalised with ImageNet's mean and standard deviation, any size of
    at least 32 pixels. Output (N, classes): logits.
    """

    def __init__(
        self,
        variant: Variant,
        classes: int = 1000,
        last_gamma: bool = False,
        norm_layer: NormLayer = nn.BatchNorm,
        norm_kwargs: dict[str, Any] | None = None,
        prefix: str = "resnest_",
        **kwargs: Any,
    ) -> None:
        super().__init__(prefix=prefix, **kwargs)
        self.variant = variant
        self.classes = classes
        block_kwargs = {"variant": variant, "last_gamma": last_gamma, "norm_layer": norm_layer,
                        "norm_kwargs": dict(norm_kwargs or {})}
        norm_kwargs = block_kwargs["norm_kwargs"]
        stem = variant.stem_width
        with self.name_scope():
            self.conv1 = nn.HybridSequential(prefix="conv1")
            self.conv1.add(
                nn.Conv2D(stem, 3, 2, 1, in_channels=3, use_bias=False),
                norm_layer(in_channels=stem, **norm_kwargs),
                nn.Activation("relu"),
                nn.Conv2D(stem, 3, 1, 1, in_channels=stem, use_bias=False),
                norm_layer(in_channels=stem, **norm_kwargs),
                nn.Activation("relu"),
                nn.Conv2D(stem * 2, 3, 1, 1, in_channels=stem, use_bias=False),
            )
            self.bn1 = norm_layer(in_channels=stem * 2, **norm_kwargs)
            self.relu = nn.Activation("relu")
            self.maxpool = nn.MaxPool2D(3, 2, padding=1)
            channels = stem * 2
            for stage, blocks in enumerate(variant.layers, start=1):
                planes = 32 << stage
                strides = 1 if stage == 1 else 2
                setattr(self, f"layer{stage}",
                        _make_stage(stage, blocks, planes, channels, strides, block_kwargs))
                channels = planes * EXPANSION
            self.avgpool = nn.GlobalAvgPool2D()
            self.flat = nn.Flatten()
            self.drop = nn.Dropout(variant.final_drop) if variant.final_drop > 0 else None
            self.fc = nn.Dense(classes, in_units=channels)

    def initialize(self, init=None, ctx=None, verbose=False, force_reinit=False):
        """Initialise all parameters; by default as He et al. do (paper, Section 5.1).

        Weights are drawn from N(0, sqrt(2 / fan_in)), biases are zero.
        """
        super().initialize(init or kaiming(), ctx, verbose, force_reinit)

    def hybrid_forward(self, F, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.flat(self.avgpool(x))
        if self.drop is not None:
            x = self.drop(x)
        return self.fc(x)


def kaiming() -> mx.init.Initializer:
    """Kaiming initialisation of the weights, fan-in, for ReLU."""
    return mx.init.MSRAPrelu(factor_type="in", slope=0)


def _make_stage(
    stage: int, blocks: int, planes: int, in_channels: int, strides: int,
    block_kwargs: dict[str, Any],
) -> nn.HybridSequential:
    out_channels = planes * EXPANSION
    # The projection pools before its 1x1 convolution (ResNet-D). In the first stage the pool is
    # 1x1 and does nothing; it stands there because published weights count it as a child.
    downsample = nn.HybridSequential(prefix=f"down{stage}_")
    with downsample.name_scope():
        downsample.add(
            nn.AvgPool2D(strides, strides, ceil_mode=True, count_include_pad=False),
            nn.Conv2D(out_channels, 1, in_channels=in_channels, use_bias=False),
            block_kwargs["norm_layer"](in_channels=out_channels, **block_kwargs["norm_kwargs"]),
        )
    layers = nn.HybridSequential(prefix=f"layers{stage}_")
    with layers.name_scope():
        layers.add(Bottleneck(planes, in_channels, strides=strides, downsample=downsample,
                              prefix="", **block_kwargs))
        for _ in range(blocks - 1):
            layers.add(Bottleneck(planes, out_channels, prefix="", **block_kwargs))
    return layers
