"""Operations that have two forms: one that is fast on a CPU, one that every build of MXNet has.

On a CPU, oneDNN runs convolution, normalisation, pooling and ReLU on blocked memory, and MXNet's
own operators run beside it on plain memory, some of them very slowly. The forms that are fast
there are not what a GPU wants (and one of them, normalisation with ReLU in one operator, it does
not have). Both compute the same from the same parameters. A graph is traced once for all devices,
so :meth:`TwoForms.is_fast` decides by the build; nothing else chooses.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Iterator

import mxnet as mx
import numpy as np
from mxnet.gluon import Block, HybridBlock, nn

from gluon_resnest import runtime
from gluon_resnest.layers.declared_writes import writes_are_declared
from gluon_resnest.layers.tracing import is_symbol_for_others, traced_with


class TwoForms(HybridBlock):
    """A layer with a form that is fast on a CPU beside the one that runs anywhere."""

    portable_only = False  # True within `portable_operators`
    _dtype = "float32"

    def is_fast(self, F: Any) -> bool:
        """Whether the layer, called with `F`, takes the form that is fast on a CPU.

        Not in a symbol that somebody takes away, who may run it anywhere or hand it to a
        converter: ``net(mx.sym.var("data"))``, or what is traced in :func:`portable_operators`.
        """
        return (self._dtype == "float32" and not self.portable_only and _built_for_cpu()
                and runtime.onednn_is_on() and not is_symbol_for_others(F))

    def cast(self, dtype: Any) -> None:
        super().cast(dtype)
        self._dtype = np.dtype(dtype).name


@lru_cache(maxsize=None)
def _built_for_cpu() -> bool:
    # A network on a machine with a GPU can be moved to it after it was traced.
    features = mx.runtime.Features()
    return features.is_enabled("MKLDNN") and not features.is_enabled("CUDA")


@contextmanager
def portable_operators(net: Block) -> Iterator[Block]:
    """Within it, `net` is traced with operators that every build of MXNet has, and ONNX.

    Traced graphs are dropped on entry and exit, so run `net` once inside before ``net.export``.
    Calls by other threads wait. If `net` is part of a larger hybridized block, give that one: its
    graph is not known here.
    """
    with traced_with(net, TwoForms, "portable_only"):
        yield net


# ---- normalisation and ReLU ----


class BatchNormReLU(TwoForms, nn.BatchNorm):
    r"""Batch normalisation and the ReLU behind it, in one operator where there is one.

    .. math:: \max(0, \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta)

    In training one operator takes half the time of the two, or less: one pass over the map
    instead of two forward and back, and nothing kept but one bit an element of what ReLU let
    through. It exists with oneDNN alone, and is safe only where its write of the running
    statistics is declared (:mod:`~gluon_resnest.layers.declared_writes`).

    MXNet's own ``nn.BatchNormReLU`` has no other form and runs on CPUs only. Parameters and
    their names are those of ``nn.BatchNorm``.

    Shapes
    ------
    Input and output (N, C, H, W).
    """

    def hybrid_forward(self, F, x, gamma, beta, running_mean, running_var):
        if self.is_fast(F) and writes_are_declared():
            return F.contrib.BatchNormWithReLU(x, gamma, beta, running_mean, running_var,
                                               name="fwd", **self._kwargs)
        x = super().hybrid_forward(F, x, gamma, beta, running_mean, running_var)
        return F.Activation(x, act_type="relu", name="relu")

    def _alias(self) -> str:
        return "batchnorm"  # makes the names of parameters in symbols


def norm_relu(norm: HybridBlock, relu: HybridBlock, x: Any) -> Any:
    """ReLU of the normalisation of `x`: by both layers, or by the first where it does both."""
    return norm(x) if isinstance(norm, BatchNormReLU) else relu(norm(x))


def fits_one_operator(*widths: int) -> bool:
    """Whether normalisation and ReLU between convolutions may be one operator.

    They may not where memory is laid out in different ways before and behind them: in 1.9.1 the
    operator's gradient then fails ("could not create a primitive descriptor iterator"). oneDNN
    puts channels together by 16 or 8, and in other ways where there is no multiple of that.

    Parameters
    ----------
    *widths
        Channels of the convolutions before and behind; of a grouped one, of each group.
    """
    return all(width % 16 == 0 for width in widths)


# ---- means over pixels and their opposite ----


def splits_of(layer: TwoForms, F: Any, maps: Any, radix: int, channels: int) -> Splits:
    """The splits in `maps` (N, R C, H, W), in the form that suits `layer` called with `F`."""
    return (ProductSplits if layer.is_fast(F) else Splits)(F, maps, radix, channels)


class Splits:
    r"""Splits :math:`U_r` of a map, r = 1 ... R, and the two operations over all their pixels.

    This form runs anywhere: pooling and broadcasting.

    Parameters
    ----------
    maps
        (N, R C, H, W), radix-major: C channels of the first split, then of the second.
    """

    def __init__(self, F: Any, maps: Any, radix: int, channels: int) -> None:
        self._F, self._maps, self._radix, self._channels = F, maps, radix, channels

    def global_mean(self) -> Any:
        r"""(N, C, 1, 1): :math:`s_c = \frac{1}{HW} \sum_{i,j} \sum_r U_{r,c}(i, j)`."""
        # Pooling commutes with the sum over the radix, and is far cheaper before it.
        pooled = self._F.contrib.AdaptiveAvgPooling2D(self._maps, output_size=1)
        if self._radix == 1:
            return pooled
        return self._F.reshape(pooled, shape=(0, self._radix, self._channels, 1, 1)).sum(axis=1)

    def weighted_sum(self, weights: Any) -> Any:
        r"""(N, C, H, W): :math:`V_c = \sum_r a_{r,c} U_{r,c}`.

        The `weights` a are (N, R C, 1, 1), radix-major; of two splits or more they sum to 1 over
        r.
        """
        weighted = self._F.broadcast_mul(self._maps, weights)
        return self._F.add_n(*self._F.split(weighted, num_outputs=self._radix, axis=1))


class ProductSplits(Splits):
    r"""The form of :class:`Splits` that is fast on a CPU: matrix products with a row of ones.

    A mean over H W pixels is :math:`U 1^T / HW`, with U as a matrix (C, H W), and spreading a
    weight over the pixels is :math:`a 1`. Each is the other's gradient, and both are fast.
    MXNet's pooling and broadcasting have gradients on the CPU that take longer than the
    convolutions around them.
    """

    def __init__(self, F: Any, maps: Any, radix: int, channels: int) -> None:
        # To plain memory once: behind a oneDNN operator every other one makes a copy of its own.
        maps = F.reshape(maps, shape=(0, 0, 0, 0))
        super().__init__(F, maps, radix, channels)
        # One channel, for its shape. No gradient comes from there, not even a map of zeros.
        self._channel = F.slice_axis(F.BlockGrad(maps), axis=1, begin=0, end=1)
        self._pixels = F.reshape(self._channel, shape=(0, 0, -1))  # (N, 1, H W)
        matrices = F.reshape(maps, shape=(0, 0, -1))
        self._splits = [matrices] if radix == 1 else list(
            F.split(matrices, num_outputs=radix, axis=1))  # (N, C, H W) each

    def global_mean(self) -> Any:
        F = self._F
        share = F.softmax(F.zeros_like(self._pixels))  # 1 / HW, H W times
        pooled = F.batch_dot(F.add_n(*self._splits), share, transpose_b=True)
        return F.expand_dims(pooled, axis=3)

    def weighted_sum(self, weights: Any) -> Any:
        F = self._F
        weights = F.reshape(weights, shape=(0, 0, 1))
        ones = F.ones_like(self._pixels)
        if self._radix == 1:
            weighted = F.elemwise_mul(*self._splits, F.batch_dot(weights, ones))
        else:
            # Weights sum to 1 over the radix: all but the last are added as differences to it.
            *others, last = self._splits
            parts = F.split(weights, num_outputs=self._radix, axis=1)
            weighted = F.add_n(last, *(
                F.elemwise_mul(F.elemwise_sub(split, last), F.batch_dot(weight, ones))
                for split, weight in zip(others, parts)))
        return F.reshape_like(weighted, self._channel, lhs_begin=2, lhs_end=3, rhs_begin=2,
                              rhs_end=4)
