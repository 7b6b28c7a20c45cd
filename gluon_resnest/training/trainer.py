"""The training loop: one process a device, alone or under Horovod."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from typing import Any

import mxnet as mx

from gluon_resnest.data.augment.random_streams import dropping_seed
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import duration
from gluon_resnest.progress_bar import ProgressLines, progress_bar
from gluon_resnest.runs import run_directory as files
from gluon_resnest.training.bad_record_log import BadRecordLog
from gluon_resnest.training.non_finite import NonFinite
from gluon_resnest.training.resume import Parts, Started
from gluon_resnest.training.run_state import EpochSums
from gluon_resnest.training.signals import Stopped, Wishes
from gluon_resnest.training.step_log import DataClock
from gluon_resnest.training.step_sums import StepSumExchange, StepSums
from gluon_resnest.training.validation import Validation
from gluon_resnest.training.watchdog import Watchdog


class Trainer:
    """Takes the steps of a run that has begun.

    :func:`~gluon_resnest.training.run.train` makes one, and handles what ends it.

    Parameters
    ----------
    parts, started
        The run.
    wishes
        What signals ask for.
    watchdog
        Is told what has been finished.
    """

    def __init__(self, parts: Parts, started: Started, wishes: Wishes, watchdog: Watchdog) -> None:
        self.task, self.options, self.workers = parts.task, parts.options, parts.workers
        self.recipe, self.schedule = parts.task.recipe, parts.task.schedule
        self.data, self.draw = parts.task.training, parts.draw
        self.updater, self.average, self.arrays = parts.updater, parts.average, parts.arrays
        self.progress, self.saver = started.progress, started.saver
        self.directory, self.metrics = started.directory, started.metrics
        self.step_log = started.step_log
        self.wishes, self.watchdog = wishes, watchdog
        self.step_sums = StepSumExchange(self.workers, self.task.parts)
        self.bad_records = BadRecordLog(
            self.directory.path / files.BAD_RECORDS, self.data.bad_records, self.workers)
        self.non_finite = NonFinite(self.options.nan_policy, self.updater, self.arrays,
                                    self.workers, self.saver, parts.console.warn)
        self.validation = Validation(parts, self.saver, self.metrics, self._look_in_validation)
        self.saver.beat = lambda: watchdog.beat("a part of a checkpoint")
        self.upcoming = self._batches_left()

    def train(self) -> None:
        """Train all epochs that are left."""
        progress, saver = self.progress, self.saver
        if any(self.workers.gather(self.wishes.stop)):  # asked for while the run was prepared
            self._stop(together=True)
        while True:
            self._train_epoch()
            self._finish_epoch()
            if progress.position.epoch + 1 == self.recipe.epochs or not self._until_cap():
                break
            progress.position = progress.position.next_epoch()
            progress.sums = EpochSums()
        if self._directory_was_lost():
            self._save()
        if self.workers.rank == 0:
            if not saver.finish():
                raise InputError(f"the last checkpoint is missing: {saver.failure}",
                                 only_here=True)
            files.write_result(self.directory.path, {
                "complete": progress.position.epoch + 1 == self.recipe.epochs and not self._left(),
                **progress.as_dict(self.data.sampling)})

    def _left(self) -> int:
        """Steps left of the epoch."""
        return self.data.sampling.steps(
            self.recipe.batch_size, self.workers.size, self.progress.position.legs)

    def _until_cap(self) -> float:
        """Steps until --steps."""
        cap = self.options.steps
        return math.inf if cap is None else max(0, cap - self.progress.step)

    # ---- an epoch ----

    def _batches_left(self) -> Any:
        position = self.progress.position
        return self.data.epoch(position.epoch, position.legs)

    def _train_epoch(self) -> None:
        """Take the steps that are left of the epoch."""
        recipe, workers, progress = self.recipe, self.workers, self.progress
        epoch, left, whole = progress.position.epoch, self._left(), len(self.data)
        take = int(min(left, self._until_cap()))
        if take:
            sizes = self.data.sampling.sizes(
                recipe.batch_size, workers.size, progress.position.legs).tolist()
            # The end of an epoch is where the schedule has it, whatever workers it began with.
            scheduled = range((epoch + 1) * whole - left + 1, (epoch + 1) * whole + 1)
            with progress_bar(total=whole, desc=f"epoch {epoch + 1}/{recipe.epochs}", leave=True,
                              initial=whole - left, enabled=workers.rank == 0) as bar:
                self._take_steps(list(zip(scheduled, sizes))[:take], bar)
        self.upcoming.close()
        if take == left and epoch + 1 < recipe.epochs and self._until_cap():
            # Its first batches are made while this one is validated and saved.
            self.upcoming = self.data.epoch(epoch + 1)

    def _take_steps(self, steps: list[tuple[int, int]], bar: Any) -> None:
        """Take steps, each with its number in the schedule and its global batch."""
        progress, epoch = self.progress, self.progress.position.epoch
        sums, before = progress.sums, replace(progress.sums)
        clock = DataClock()
        self.step_log.start_epoch(clock)
        # The steps come first: zip asks them first, and no batch is taken that is not used.
        for (scheduled, size), batch in zip(steps, clock.waiting_for(self.upcoming)):
            self.bad_records.note(epoch)
            agreed = self._train_step(batch, size, scheduled)
            if self.directory.renew():
                self.wishes.save = True
            sums.seconds = before.seconds + clock.seconds
            sums.data_seconds = before.data_seconds + clock.data_seconds
            self._show(bar, agreed, size, scheduled)
            if scheduled == steps[-1][0]:
                self._tell_epoch(scheduled)  # before a checkpoint counts the lines
            self._keep_wishes(agreed)
        self.bad_records.note(epoch)  # before the next epoch's threads find more

    def _tell_epoch(self, scheduled: int) -> None:
        if self.metrics is None:
            return
        progress, sums, rate = self.progress, self.progress.sums, self.step_log.images_per_second
        self.metrics.write(
            "epoch", epoch=progress.position.epoch + 1, step=progress.step, loss=sums.loss,
            lr=self.schedule(scheduled), seconds=sums.seconds, data_seconds=sums.data_seconds,
            images_per_second=rate, peak_share=self.step_log.peak_share(rate))

    # ---- a step ----

    def _train_step(self, batch: Any, global_batch: int, scheduled: int) -> StepSums:
        """One update of the weights, number `scheduled` of the schedule."""
        recipe, progress, updater, workers = (
            self.recipe, self.progress, self.updater, self.workers)
        inputs, targets = self.task.prepare(batch, progress.position, workers.rank)
        progress.step += 1
        if self.task.draws_on_device:
            # Ranks drop different neurons. Anew in each step, as MXNet cannot save its generator.
            mx.random.seed(dropping_seed(recipe.seed, workers.rank, progress.step))
        self.task.before_step(scheduled)
        self.non_finite.before_step()
        # The ranks' batches differ by one sample at most.
        losses, backward = updater.forward(inputs, targets, global_batch // workers.size)
        exchanged = self.step_sums.start(
            losses, self.wishes.save or self.saver.wish(), bool(self.wishes.stop))
        backward()
        agreed = self.step_sums.wait(exchanged)
        share, lr = global_batch / workers.size, self.schedule(scheduled)
        logged = self.step_log.due(progress.step)
        allreduce_seconds = updater.exchange(timed=logged and workers.size > 1)
        norm = None
        if logged or self.options.nan_policy == "skip":
            norm = float(updater.gradient_norm(share).asscalar())
        if self.non_finite.is_usable(agreed, progress, inputs, targets, losses["loss"], norm, lr,
                                     self.metrics):
            updater.update(lr, share)
            if self.average is not None:
                self.average.update(progress.step)
            progress.sums.loss_sum += agreed.loss_sum
            progress.sums.images += global_batch
        progress.position = progress.position.advance(
            self.data.sampling, recipe.batch_size, workers.size)
        self.step_log.add(
            progress.step, global_batch, epoch=scheduled / len(self.data),
            loss=agreed.loss_sum / global_batch, lr=lr, grad_norm=norm,
            allreduce_seconds=allreduce_seconds,
            **{name: total / global_batch for name, total in agreed.parts.items()})
        self.watchdog.beat(f"step {progress.step}")
        return agreed

    def _show(self, bar: Any, agreed: StepSums, samples: int, scheduled: int) -> None:
        log = self.step_log
        bar.set_postfix_str(
            f"loss {agreed.loss_sum / samples:.3f}, lr {self.schedule(scheduled):.4g}, "
            f"{log.images_per_second:.1f} images/s, data {log.clock.share:.0%}, "
            f"{duration(self._seconds_left(scheduled))} left", refresh=False)
        bar.update()
        if log.due(self.progress.step) and isinstance(bar, ProgressLines):
            bar.say()

    def _seconds_left(self, scheduled: int) -> float:
        """Of the run, at the pace of this epoch, without the validations to come."""
        steps = min(self.schedule.total_steps - scheduled, self._until_cap())
        return self.step_log.clock.seconds / self.step_log.epoch_steps * steps

    # ---- checkpoints ----

    def _save(self) -> None:
        progress = self.progress
        progress.metrics_lines = self.metrics.lines if self.metrics else 0
        self.saver.save(self.arrays, progress.step, {
            "progress": progress.as_dict(self.data.sampling),
            "loss_scale": self.updater.loss_scale(), "updates": self.updater.updates()})

    def _directory_was_lost(self) -> bool:
        """Make the run directory again if that is necessary; every worker is told, and saves."""
        lost = self.workers.gather(self.workers.together(self.directory.renew))[0]
        if lost:
            self.saver.last_step = None  # the one that was written is gone
        return lost

    def _keep_wishes(self, agreed: StepSums) -> None:
        """Save if all know that it is wished or due; end if that is wished."""
        if agreed.save or agreed.stop or self.saver.due(self.progress.step):
            self.wishes.save = False
            self._save()
        if agreed.stop:
            self._stop(together=True)

    def _stop(self, together: bool) -> None:
        if self.workers.rank == 0 and not self.saver.finish():
            raise InputError(f"stopped, but the last checkpoint is missing: {self.saver.failure}",
                             only_here=True)
        raise self.stopped(together)

    def stopped(self, together: bool) -> Stopped:
        """The exception that ends the run for a signal."""
        written = self.saver.written_step
        newest = ("no checkpoint was written" if written is None
                  else f"a checkpoint has step {written}")
        return Stopped(
            self.wishes.stop or signal.SIGTERM, together,
            f"after step {self.progress.step}; {newest}: the same command goes on with --save-dir "
            f"{self.directory.path} (without --overwrite)")

    def _look_in_validation(self, number: int) -> None:
        """Stop if a signal asks for it: the epoch is saved already."""
        self.watchdog.beat(f"validation batch {number}")
        if self.wishes.stop:
            self._stop(together=False)

    def _finish_epoch(self) -> None:
        """Write a checkpoint; validate if it is due, and write what follows from that."""
        progress, options, epoch = self.progress, self.options, self.progress.position.epoch
        whole = not self._left()
        last = epoch + 1 == self.recipe.epochs or not self._until_cap()
        often = options.eval_frequency
        validated = (self.task.validation is not None and progress.validated <= epoch
                     and (last or (often > 0 and (epoch + 1) % often == 0)))
        self.workers.average(self.arrays.statistics())
        # Before validation: a fault in the validation data must not cost the epoch.
        lost = self._directory_was_lost()
        if last or validated or lost or (epoch + 1) % options.save_frequency == 0:
            self._save()
        self.workers.together(lambda: self.bad_records.share(epoch))
        if validated:
            self.validation.run(progress)
            progress.validated = epoch + 1 if whole else progress.validated
        if self.draw is not None and self.workers.rank == 0 and (validated or last):
            directory = self.directory.path
            self.draw(directory / files.METRICS, directory / files.CURVE,
                      f"{self.task.description.title}, {self.workers.size} worker(s)")
