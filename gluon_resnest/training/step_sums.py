"""What all workers know of a step in the same moment: its losses, and what is wished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mxnet as mx

from gluon_resnest.workers import Workers


class StepSums(NamedTuple):
    """The same on every worker.

    Attributes
    ----------
    loss_sum
        Over the samples of the global batch.
    not_finite
        Samples whose loss is NaN or infinite.
    save, stop
        Whether any worker wishes a checkpoint, or a checkpoint and the end.
    parts
        Sums of what the loss consists of, by name.
    """

    loss_sum: float
    not_finite: int
    save: bool
    stop: bool
    parts: Mapping[str, float]


class StepSumExchange:
    """Sums of a few numbers over the workers, once a step.

    A worker that acted alone on a signal, on its clock or on a loss that only it has seen would
    leave the others waiting for it. The sum travels while the gradients are being computed, so
    that it costs no time of its own.
    """

    def __init__(self, workers: Workers, parts: Sequence[str] = ()) -> None:
        self._workers, self._parts = workers, tuple(parts)

    def start(self, losses: Mapping[str, mx.nd.NDArray], save: bool, stop: bool) -> mx.nd.NDArray:
        """Send this worker's losses (N,), by name, and wishes. Nothing is waited for."""
        loss = losses["loss"]
        wishes = mx.nd.array([float(save), float(stop)], ctx=loss.context)
        broken = 1 - mx.nd.contrib.isfinite(loss)
        sums = [loss.sum(), broken.sum(), wishes, *(losses[name].sum() for name in self._parts)]
        return self._workers.add_up(mx.nd.concat(*sums, dim=0), name="step sums")

    def wait(self, started: mx.nd.NDArray) -> StepSums:
        """What :meth:`start` comes to, once every worker has sent its part."""
        loss_sum, not_finite, save, stop, *parts = started.asnumpy().tolist()
        return StepSums(loss_sum, round(not_finite), save > 0, stop > 0,
                        dict(zip(self._parts, parts)))
