"""Exponential moving average of a network's weights, evaluated beside the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mxnet as mx
from mxnet.gluon import HybridBlock


class MovingAverage:
    """Average of every parameter of a network, running statistics too, over its updates.

    After update number t it is ``d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``: the first weights, which are random, are forgotten
    soon, whatever the decay.

    Parameters
    ----------
    net
        An initialised network; the average begins at its weights.
    decay
        Above 0 and below 1; 0.9999 averages over the last ten thousand updates.

    Attributes
    ----------
    arrays
        By the network's structural names, on its device.
    """

    def __init__(self, net: HybridBlock, decay: float) -> None:
        self._parameters = net._collect_params_with_prefix()
        self.decay = decay
        self.arrays: dict[str, mx.nd.NDArray] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again at the present weights."""
        self.arrays = {name: parameter.data().copy()
                       for name, parameter in self._parameters.items()}

    def update(self, step: int) -> None:
        """Take the weights after update number `step`, counted from 1, into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.arrays.items():
            # d a + (1 - d) w in one pass over memory: a step of gradient descent from `a` with
            # the learning rate 1 - d, weight decay 1 and -w for a gradient.
            mx.nd.sgd_update(average, self._parameters[name].data(), out=average, lr=1 - decay,
                             wd=1.0, rescale_grad=-1.0)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Within it, the network computes with the average."""
        weights = {name: parameter.data().copy() for name, parameter in self._parameters.items()}
        self._set(self.arrays)
        try:
            yield
        finally:
            self._set(weights)

    def _set(self, arrays: dict[str, mx.nd.NDArray]) -> None:
        for name, parameter in self._parameters.items():
            parameter.set_data(arrays[name])
