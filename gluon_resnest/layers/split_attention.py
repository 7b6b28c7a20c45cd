"""Split attention over the splits of a grouped convolution (paper, Section 3.1)."""

from __future__ import annotations

from typing import Any

from mxnet.gluon import nn

from gluon_resnest.layers.normalization import NormLayer, check_batch, make_norm
from gluon_resnest.layers.one_at_a_time import OneAtATime
from gluon_resnest.layers.operators import TwoForms, norm_relu, splits_of


def attention_channels(channels: int, radix: int) -> int:
    """Width of the hidden layer of the attention function G: a quarter of the R * C channels.

    At least 32, as in the published networks.
    """
    return max(channels * radix // 4, 32)


class SplitAttention(OneAtATime, TwoForms):
    r"""Grouped convolution whose R splits are weighed against each other, channel by channel.

    With cardinality K and radix R, the convolution makes G = K R feature groups. For the c-th
    channel of cardinal group k, with U_{k,r} the group's r-th split:

    .. math::
        s^k_c       &= \frac{1}{HW} \sum_{i,j} \sum_{r=1}^{R} U_{k,r,c}(i, j) \\
        a^k_{r,c}   &= \mathrm{softmax}_r \, \mathcal{G}^c_r(s^k)
                       \qquad (\text{sigmoid of } \mathcal{G}^c(s^k) \text{ when } R = 1) \\
        V^k_c       &= \sum_{r=1}^{R} a^k_{r,c} \, U_{k,r,c}

    and the V^k are concatenated. G is two 1x1 convolutions with K groups (so that each cardinal
    group sees its own s^k alone), batch normalisation and ReLU between them.

    The groups are laid out *radix-major* (paper, "Efficient Radix-major Implementation"): the
    channels of U run over r first, [r0: (k0, k1, ...), r1: (k0, k1, ...), ...], so that one
    grouped convolution makes all splits and a sum over the radix needs no shuffling. The output
    of G is necessarily *cardinality-major*, [k0: (r0, r1, ...), k1: ...], and is turned round
    before it is used. With K > 1 and R > 1 the two differ; a network that confuses them trains
    well and computes something else.

    Parameters
    ----------
    channels
        Channels C of input and output, over all cardinal groups.
    radix
        Splits R in each cardinal group, at least 1.
    cardinality
        Cardinal groups K. Must divide `channels`.
    kernel_size, strides, padding, dilation
        Of the grouped convolution.
    norm_layer, norm_kwargs
        Normalisation, as :func:`~gluon_resnest.layers.normalization.make_norm` takes it.

    Raises
    ------
    ValueError
        For groups that the channels cannot be divided into.
    InputError
        When called, for a training batch of one image that batch normalisation cannot train on.

    Shapes
    ------
    Input (N, C, H, W), output (N, C, H', W'). Weights: conv (R C, C / (K R), kh, kw);
    fc1 (A, C / K, 1, 1) and fc2 (R C, A / K, 1, 1) with A = :func:`attention_channels`.
    """

    def __init__(
        self,
        channels: int,
        radix: int = 2,
        cardinality: int = 1,
        kernel_size: int = 3,
        strides: int = 1,
        padding: int = 1,
        dilation: int = 1,
        norm_layer: NormLayer = nn.BatchNorm,
        norm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if radix < 1 or cardinality < 1:
            raise ValueError(f"radix {radix} and cardinality {cardinality} must be at least 1")
        if channels % (cardinality * radix):
            raise ValueError(
                f"channels {channels} must be divisible by cardinality x radix = "
                f"{cardinality} x {radix}"
            )
        norm_kwargs = norm_kwargs or {}
        hidden = attention_channels(channels, radix)
        if hidden % cardinality:
            raise ValueError(
                f"the attention's {hidden} hidden channels (a quarter of radix {radix} x channels "
                f"{channels}, at least 32) must be divisible by cardinality {cardinality}"
            )
        self.channels = channels
        self.radix = radix
        self.cardinality = cardinality
        self.conv = nn.Conv2D(
            channels * radix, kernel_size, strides, padding, dilation,
            groups=cardinality * radix, in_channels=channels, use_bias=False,
        )
        self.bn = make_norm(norm_layer, channels * radix, norm_kwargs,
                            relu_between=(channels // (cardinality * radix),))
        self.relu = nn.Activation("relu")
        # The bias of fc1 is cancelled by the normalisation behind it; published weights have it.
        self.fc1 = nn.Conv2D(hidden, 1, groups=cardinality, in_channels=channels)
        self.bn1 = make_norm(norm_layer, hidden, norm_kwargs, at_one_pixel=True,
                             relu_between=(channels // cardinality, hidden // cardinality))
        self.relu1 = nn.Activation("relu")
        self.fc2 = nn.Conv2D(channels * radix, 1, groups=cardinality, in_channels=hidden)

    def forward(self, x, *args):
        check_batch(x, self.bn1)
        return super().forward(x, *args)

    def hybrid_forward(self, F, x):
        # U: one grouped convolution makes all feature groups, (N, R C, H', W').
        groups = norm_relu(self.bn, self.relu, self.conv(x))
        splits = splits_of(self, F, groups, self.radix, self.channels)
        # s, their mean (N, C, 1, 1), and a: the two dense layers of G, then softmax over r.
        hidden = norm_relu(self.bn1, self.relu1, self.fc1(splits.global_mean()))
        attention = self._r_softmax(F, self.fc2(hidden))
        # V: the splits weighed by a and summed, (N, C, H', W').
        return splits.weighted_sum(attention)

    def _r_softmax(self, F, logits):
        """Attention a (N, R C, 1, 1), radix-major, of cardinality-major logits."""
        if self.radix == 1:
            return F.sigmoid(logits)
        attention = F.reshape(logits, shape=(0, self.cardinality, self.radix, -1))
        attention = F.softmax(attention, axis=2)
        if self.cardinality > 1:
            attention = F.transpose(attention, axes=(0, 2, 1, 3))
        return F.reshape(attention, shape=(0, -1, 1, 1))
