"""What all workers know of a step in the same moment: its loss, and what is wished."""

from __future__ import annotations

from typing import NamedTuple

import mxnet as mx

from gluon_resnest.workers import Workers


class StepSums(NamedTuple):
    """The same on every worker.

    Attributes
    ----------
    loss_sum
        Over the images of the global batch.
    not_finite
        Images whose loss is no finite number.
    save, stop
        Whether any worker wishes a checkpoint, or a checkpoint and the end.
    """

    loss_sum: float
    not_finite: int
    save: bool
    stop: bool


class StepSumExchange:
    """Sums of a few numbers over the workers, once a step.

    A worker that acted alone on a signal, on its clock or on a loss that only it has seen would
    leave the others waiting for it. The sum travels while the gradients are being computed, so
    that it costs no time of its own.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def ask(self, losses: mx.nd.NDArray, save: bool, stop: bool) -> mx.nd.NDArray:
        """Send this worker's part: losses (N,) and wishes. Nothing is waited for."""
        wishes = mx.nd.array([float(save), float(stop)], ctx=losses.context)
        broken = 1 - mx.nd.contrib.isfinite(losses)
        parts = mx.nd.concat(losses.sum(), broken.sum(), wishes, dim=0)
        return self._workers.add_up(parts, name="agreement")

    @staticmethod
    def read(answer: mx.nd.NDArray) -> StepSums:
        """What :meth:`ask` comes to; waits until every worker has sent its part."""
        loss_sum, not_finite, save, stop = answer.asnumpy().tolist()
        return StepSums(loss_sum, round(not_finite), save > 0, stop > 0)
