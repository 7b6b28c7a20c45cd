"""The bottleneck around split attention, and stages of bottlenecks (paper, Sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mxnet.gluon import contrib, nn

from gluon_resnest.layers import DropBlock, NormLayer, SplitAttention, make_norm, norm_relu
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


def make_stage(
    stage: int, blocks: int, in_channels: int, settings: BlockSettings,
    strides: int, dilation_before: int, dilation: int,
) -> nn.HybridSequential:
    """Stage 1 to 4: bottlenecks of 32 * 2 ** stage planes, the first with a projected shortcut.

    `strides` are those of its first block, `dilation` that of all others, and `dilation_before`
    that of the stage before.
    """
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
