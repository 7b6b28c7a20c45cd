"""Split attention over the splits of a grouped convolution (paper, Section 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from mxnet.gluon import nn

from gluon_resnest.layers.normalization import (
    NormLayer,
    check_batch,
    fits_one_operator,
    make_norm,
    norm_relu,
)
from gluon_resnest.layers.one_at_a_time import OneAtATime
from gluon_resnest.layers.operators import traces_for_cpu


def attention_channels(channels: int, radix: int) -> int:
    """Width of the hidden layer of the attention function G: a quarter of the R * C channels.

    At least 32, as in the published networks.
    """
    return max(channels * radix // 4, 32)


class SplitAttention(OneAtATime):
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
        self._dtype = "float32"
        self.conv = nn.Conv2D(
            channels * radix, kernel_size, strides, padding, dilation,
            groups=cardinality * radix, in_channels=channels, use_bias=False,
        )
        self.bn = make_norm(
            norm_layer, channels * radix, norm_kwargs,
            before_relu=fits_one_operator(channels // (cardinality * radix)))
        self.relu = nn.Activation("relu")
        # The bias of fc1 is cancelled by the normalisation behind it; published weights have it.
        self.fc1 = nn.Conv2D(hidden, 1, groups=cardinality, in_channels=channels)
        self.bn1 = make_norm(norm_layer, hidden, norm_kwargs, at_one_pixel=True,
                             before_relu=fits_one_operator(channels // cardinality,
                                                           hidden // cardinality))
        self.relu1 = nn.Activation("relu")
        self.fc2 = nn.Conv2D(channels * radix, 1, groups=cardinality, in_channels=hidden)

    def forward(self, x, *args):
        check_batch(x, self.bn1)
        return super().forward(x, *args)

    def hybrid_forward(self, F, x):
        splits = norm_relu(self.bn, self.relu, self.conv(x))  # (N, R C, H', W'), radix-major
        if self._dtype == "float32" and traces_for_cpu(F):
            return self._weighed_by_products(F, splits)
        return self._weighed_by_broadcasting(F, splits)

    def _weighed_by_broadcasting(self, F, splits):
        # Pooling commutes with the sum over the radix, and is far cheaper before it.
        pooled = F.contrib.AdaptiveAvgPooling2D(splits, output_size=1)
        if self.radix > 1:
            pooled = F.reshape(pooled, shape=(0, self.radix, self.channels, 1, 1)).sum(axis=1)
        weighed = F.broadcast_mul(splits, self._attention(F, pooled))
        return F.add_n(*F.split(weighed, num_outputs=self.radix, axis=1))

    def _weighed_by_products(self, F, splits):
        """Means over pixels and their opposite, spreading over pixels, as matrix products.

        Each is then the other's gradient, and both are fast. MXNet's pooling and broadcasting
        have gradients on the CPU that take longer than the convolutions around them.
        """
        # To plain memory once: behind a oneDNN operator every other one makes a copy of its own.
        splits = F.reshape(splits, shape=(0, 0, 0, 0))
        # One channel, for its shape. No gradient comes from there, not even a map of zeros.
        channel = F.slice_axis(F.BlockGrad(splits), axis=1, begin=0, end=1)
        pixels = F.reshape(channel, shape=(0, 0, -1))  # (N, 1, H' W')
        maps = F.reshape(splits, shape=(0, 0, -1))
        maps = [maps] if self.radix == 1 else list(
            F.split(maps, num_outputs=self.radix, axis=1))  # (N, C, H' W') each
        pooled = F.batch_dot(F.add_n(*maps), F.softmax(F.zeros_like(pixels)), transpose_b=True)
        attention = self._attention(F, F.expand_dims(pooled, axis=3))
        attention = F.reshape(attention, shape=(0, 0, 1))
        everywhere = F.ones_like(pixels)
        if self.radix == 1:
            weighed = F.elemwise_mul(*maps, F.batch_dot(attention, everywhere))
        else:
            # Attention sums to 1 over the radix: all but the last are added as differences to it.
            *others, last = maps
            weights = F.split(attention, num_outputs=self.radix, axis=1)
            weighed = F.add_n(last, *(
                F.elemwise_mul(F.elemwise_sub(split, last), F.batch_dot(weight, everywhere))
                for split, weight in zip(others, weights)))
        return F.reshape_like(weighed, channel, lhs_begin=2, lhs_end=3, rhs_begin=2, rhs_end=4)

    def _attention(self, F, pooled):
        """Attention (N, R C, 1, 1), radix-major, from the sum (N, C, 1, 1) of the splits' means."""
        hidden = norm_relu(self.bn1, self.relu1, self.fc1(pooled))
        logits = self.fc2(hidden)  # (N, R C, 1, 1), cardinality-major
        if self.radix == 1:
            return F.sigmoid(logits)
        attention = F.reshape(logits, shape=(0, self.cardinality, self.radix, -1))
        attention = F.softmax(attention, axis=2)
        if self.cardinality > 1:
            attention = F.transpose(attention, axes=(0, 2, 1, 3))
        return F.reshape(attention, shape=(0, -1, 1, 1))

    def cast(self, dtype: Any) -> None:
        super().cast(dtype)
        self._dtype = np.dtype(dtype).name
