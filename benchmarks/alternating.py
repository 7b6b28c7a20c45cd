"""A trainer that takes turns with the bare loop it is built around."""

from __future__ import annotations

import time
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from gluon_resnest.tasks.classification.mixup import smoothed_labels
from gluon_resnest.training.trainer import Trainer

_IDLE_SECONDS = 3.0


class AlternatingTrainer(Trainer):
    """Trains `turn` steps by itself, then as many in a bare loop, and so on, by the clock.

    Both take the same batches of the same loader. The bare loop is forward, backward and update
    of this worker alone, with the loss read one step late: no gradients are exchanged, nothing
    is checked, scheduled, logged, shown or saved. On several workers all begin a turn together:
    so one run has the workers' speed together and, in the other turns, each for itself.

    Attributes
    ----------
    turn
        Steps of a turn.
    seconds
        By ``"trainer"`` and ``"bare"``: seconds of each turn after the first ones, and, where
        there are several workers, of each of them.
    idle_share
        Share of a core that this process takes while it does nothing: Horovod's thread, which
        slows the bare loop too.
    """

    turn = 10

    def _take_steps(self, steps: list[tuple[int, int]], bar: Any) -> None:
        self.seconds: dict[str, list[list[float]]] = {"trainer": [], "bare": []}
        self._alone = gluon.Trainer(
            self.task.network.collect_params(),
            mx.optimizer.NAG(momentum=self.recipe.momentum, wd=self.recipe.wd,
                             learning_rate=1e-6), kvstore=None)
        self._alone_loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        for number, start in enumerate(range(0, len(steps) - self.turn + 1, self.turn)):
            part = steps[start : start + self.turn]
            self.workers.sum(np.zeros(1))  # all at once
            mx.nd.waitall()
            started = time.perf_counter()
            if number % 2 == 0:
                super()._take_steps(part, bar)
            else:
                self._bare(part)
            mx.nd.waitall()
            seconds = self.workers.gather(time.perf_counter() - started)
            if number >= 2:  # the first of each kind makes graphs and memory
                self.seconds["trainer" if number % 2 == 0 else "bare"].append(seconds)
        self.progress.step = self.options.steps  # those of the bare loop count too
        self.upcoming.close()  # its threads rest now
        started = time.process_time()
        time.sleep(_IDLE_SECONDS)
        self.idle_share = (time.process_time() - started) / _IDLE_SECONDS

    def _bare(self, steps: list[tuple[int, int]]) -> None:
        before = None
        net, device, normalize = (
            self.task.network, self.task.device, self.task.preparation.normalize)
        for _, (images, labels) in zip(steps, self.upcoming):
            inputs = normalize(mx.nd.array(images, ctx=device, dtype=np.uint8))
            targets = mx.nd.array(smoothed_labels(labels, self.recipe.classes, 0.1), ctx=device)
            with autograd.record():
                losses = self._alone_loss(net(inputs), targets)
            losses.backward()
            self._alone.step(len(labels))
            mean = losses.mean()
            if before is not None:
                before.asscalar()
            before = mean
            self.progress.position = self.progress.position.advance(
                self.data.sampling, self.recipe.batch_size, self.workers.size)
        before.asscalar()

    def _finish_epoch(self) -> None:
        """Nothing is saved or validated here: these have times of their own."""

    def rates(self) -> dict[str, list[float]]:
        """Images a second of all workers, by kind, turn by turn."""
        images = self.turn * self.recipe.batch_size
        return {kind: [sum(images / seconds for seconds in of_all) if kind == "bare"
                       else images * self.workers.size / max(of_all) for of_all in turns]
                for kind, turns in self.seconds.items()}


def as_result(trainer: AlternatingTrainer) -> dict[str, Any]:
    """For JSON."""
    rates = trainer.rates()
    return {"images_per_second": rates, "workers": trainer.workers.size,
            "idle_share": trainer.idle_share,
            "ratios": [ours / bare for ours, bare in zip(rates["trainer"], rates["bare"])]}
