"""Validations: of the weights and of their moving average, and which weights are the best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

from gluon_resnest.progress_bar import progress_bar
from gluon_resnest.runs import run_directory as files
from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.training.resume import Parts
from gluon_resnest.training.run_state import Progress
from gluon_resnest.training.saving import Saver


class Validation:
    """Validates a task's network, and keeps the best weights.

    Parameters
    ----------
    parts, saver, metrics
        Of the run.
    look
        Called with the number of each batch; what it raises ends the validation.
    """

    def __init__(self, parts: Parts, saver: Saver, metrics: MetricsLog | None,
                 look: Callable[[int], None]) -> None:
        self._task, self._workers, self._average = parts.task, parts.workers, parts.average
        self._console = parts.console
        self._saver, self._metrics, self._look = saver, metrics, look

    def run(self, progress: Progress) -> None:
        """Validate the weights, and their average if there is one; every worker must call it.

        `progress` gets the figures that are the best until now.
        """
        progress.best = self._validated("validation", "validation", progress, progress.best,
                                        files.BEST)
        if self._average is not None:
            with self._average.in_place_of_weights():
                progress.best_ema = self._validated(
                    "validation_ema", "moving average", progress, progress.best_ema,
                    files.BEST_EMA)

    def _validated(self, event: str, what: str, progress: Progress,
                   best: dict[str, float] | None, name: str) -> dict[str, float]:
        """Validate the network as it is; the better of its figures and `best`."""
        figures, score = self.figures(), self._task.score
        better = best is None or figures[score] > best[score]
        if self._metrics is not None:
            epoch = progress.position.epoch + 1
            self._metrics.write(event, epoch=epoch, step=progress.step, **figures)
            self._console.say(f"epoch {epoch}: {what} {self._task.summary(figures)}")
        if better:
            self._saver.keep_best(name, average=name == files.BEST_EMA)
        return figures if better else best

    def figures(self) -> dict[str, float]:
        """Figures of the network as it is."""
        evaluator = self._task.evaluator()
        batches = progress_bar(self._watched(), total=len(self._task.validation),
                               desc="validation", unit="batch", enabled=self._workers.rank == 0)
        with self._task.evaluating():
            for batch in batches:
                evaluator.add(batch)
        return evaluator.result(self._workers)

    def _watched(self) -> Iterator[Any]:
        for number, batch in enumerate(self._task.validation):
            self._look(number)
            yield batch
