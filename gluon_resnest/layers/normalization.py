"""Normalisation layers as the networks make them: batch, synchronised, frozen or by groups."""

from __future__ import annotations

from typing import Any, Callable

from mxnet import autograd
from mxnet.gluon import Parameter, nn
from mxnet.ndarray import NDArray

from gluon_resnest.errors import InputError
from gluon_resnest.layers.operators import BatchNormReLU, fits_one_operator
from gluon_resnest.layers.running_statistics import RunningStatistic

NormLayer = Callable[..., nn.HybridBlock]

# At 1x1, where the attention is computed, a group of one channel would normalise to zero.
_LEAST_GROUP_AT_ONE_PIXEL = 8


class GroupNorm(nn.HybridBlock):
    """Group normalisation with a gamma and a beta for each channel (Wu and He, 2018).

    MXNet 1.9.1's own has one of each for a whole group, and takes no `in_channels`.

    Shapes
    ------
    Input and output (N, C, H, W); gamma and beta (C,).
    """

    def __init__(self, in_channels: int, num_groups: int = 32, epsilon: float = 1e-5,
                 gamma_initializer: str = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if in_channels % num_groups:
            raise InputError(f"num_groups {num_groups} must divide the {in_channels} channels that "
                             "are normalised")
        self._groups, self._epsilon = num_groups, epsilon
        self.gamma = self.params.get("gamma", shape=(in_channels,), init=gamma_initializer)
        self.beta = self.params.get("beta", shape=(in_channels,), init="zeros")

    def hybrid_forward(self, F, x, gamma, beta):
        # The operator's own gamma and beta belong to groups, so they are left at 1 and 0.
        one = F.ones_like(F.slice_axis(gamma, axis=0, begin=0, end=self._groups))
        x = F.GroupNorm(x, one, F.zeros_like(one), num_groups=self._groups, eps=self._epsilon)
        shape = (1, -1, 1, 1)
        x = F.broadcast_mul(x, F.reshape(gamma, shape=shape))
        return F.broadcast_add(x, F.reshape(beta, shape=shape))


def make_norm(norm_layer: NormLayer, channels: int, norm_kwargs: dict[str, Any],
              at_one_pixel: bool = False, zero_gamma: bool = False,
              relu_between: tuple[int, ...] = ()) -> nn.HybridBlock:
    """A normalisation of (N, channels, H, W).

    Parameters
    ----------
    norm_layer
        ``nn.BatchNorm``, ``contrib.nn.SyncBatchNorm``, :class:`GroupNorm`, ``nn.GroupNorm`` (made
        as :class:`GroupNorm`) or anything that takes `in_channels`.
    norm_kwargs
        For `norm_layer`; not changed.
    at_one_pixel
        H = W = 1: groups are made large enough that they do not normalise everything away.
    zero_gamma
        Start at gamma = 0.
    relu_between
        If ReLU follows at once: the channels of the convolutions before and behind the two; of a
        grouped one, of each group. Call both layers by
        :func:`~gluon_resnest.layers.operators.norm_relu`.
    """
    kwargs = dict(norm_kwargs)
    if zero_gamma:
        kwargs["gamma_initializer"] = "zeros"
    if norm_layer in (nn.GroupNorm, GroupNorm):
        norm_layer = GroupNorm
        groups = kwargs.get("num_groups", 32)
        while at_one_pixel and groups > 1 and channels // groups < _LEAST_GROUP_AT_ONE_PIXEL:
            groups //= 2
        kwargs["num_groups"] = groups
    elif norm_layer is nn.BatchNorm and relu_between and fits_one_operator(*relu_between):
        norm_layer = BatchNormReLU
    norm = norm_layer(in_channels=channels, **kwargs)
    for name in ("running_mean", "running_var"):
        if isinstance(getattr(norm, name, None), Parameter):
            RunningStatistic.take_over(getattr(norm, name))
    return norm


def check_batch(x: Any, norm: nn.HybridBlock) -> None:
    """Refuse to train batch normalisation on a single value a channel.

    With one image and a 1x1 map each value is its own mean: the output is beta, whatever the
    input. PyTorch raises an error there; MXNet trains on silently.

    Raises
    ------
    InputError
        If `x` is one image, this is a training pass, and `norm`, which sees a 1x1 map, takes its
        statistics from this device's batch.
    """
    if not isinstance(x, NDArray) or x.shape[0] != 1 or not autograd.is_training():
        return
    if _takes_batch_statistics(norm):
        raise InputError(
            "a training batch of 1 image a device leaves the attention's batch normalisation one "
            "value a channel: give larger batches, or norm_layer=SyncBatchNorm over several "
            "devices, GroupNorm, or use_global_stats=True"
        )


def _takes_batch_statistics(norm: nn.HybridBlock) -> bool:
    if not isinstance(norm, nn.BatchNorm):
        return False
    return not norm._kwargs["use_global_stats"] and norm._kwargs.get("ndev", 1) <= 1
