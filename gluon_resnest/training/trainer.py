"""The training loop: one process a device, alone or under Horovod."""

from __future__ import annotations

import math
import signal
import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np
from tqdm import tqdm

from gluon_resnest.drawing.run_plots import draw_learning_curve
from gluon_resnest.errors import InputError
from gluon_resnest.layers import scheduled_drop_prob, set_drop_prob, without_dropblock
from gluon_resnest.plain_text import duration
from gluon_resnest.progress_bar import ProgressLines, progress_bar
from gluon_resnest.runs import run_directory as files
from gluon_resnest.tasks.classification.build import (
    RunOptions,
    make_loaders,
    make_network,
    make_updater,
    start_mixed_precision,
)
from gluon_resnest.tasks.classification.evaluation import Result, evaluate
from gluon_resnest.tasks.classification.preparation import Preparation
from gluon_resnest.tasks.classification.recipe import Recipe
from gluon_resnest.training.bad_record_log import BadRecordLog
from gluon_resnest.training.ema import MovingAverage
from gluon_resnest.training.non_finite import Divergence
from gluon_resnest.training.resume import Start, begin_or_resume, renew_directory
from gluon_resnest.training.run_arrays import RunArrays
from gluon_resnest.training.run_state import EpochSums, Progress
from gluon_resnest.training.signals import Stopped, Wishes
from gluon_resnest.training.step_log import DataClock
from gluon_resnest.training.step_sums import StepSumExchange, StepSums
from gluon_resnest.training.watchdog import Watchdog
from gluon_resnest.workers import Abandoned, SharedFault, Workers, check_alike, device


class Trainer:
    """A run: its data, network, optimizer and run directory.

    What can be wrong with the input is found here, before anything is written; what only shows
    when a record is read ends :meth:`run`.

    Raises
    ------
    InputError
        For records, classes, weights, devices or a run directory that cannot be used.
    """

    def __init__(self, recipe: Recipe, options: RunOptions, workers: Workers) -> None:
        self.recipe, self.options, self.workers = recipe, options, workers
        self.ctx = device(workers, options.no_cuda)
        if recipe.amp:
            start_mixed_precision(self.ctx)
        data = make_loaders(recipe, options, workers)
        self.records, self.loader = data.records, data.train
        self.validation_loader = data.validation
        self.validation_images = data.validation_images
        self.net = make_network(recipe, options.pretrained, self.ctx)
        self.preparation = Preparation(recipe, workers.rank, self.ctx)
        self.schedule = recipe.schedule(len(self.records), workers.size)
        self.updater = make_updater(self.net, recipe, workers, self.ctx, self.schedule(0))
        self.agreeing = StepSumExchange(workers)
        self.wishes = Wishes()
        self.progress = Progress()

    # ---- the whole run ----

    def run(self) -> Result | None:
        """Train all epochs that are not behind; the best validation, or None without validation.

        Raises
        ------
        Stopped
            A signal asked for the end; a checkpoint is written.
        InputError
            Records that cannot be read, a loss that is no finite number, a disk that is full.
        """
        # First: a signal must not end the process once the run directory is locked.
        with self.wishes:
            return self._run()

    def _run(self) -> Result | None:
        workers = self.workers
        self.save_dir = workers.gather(self.options.save_dir)[0]  # its default holds the time
        check_alike(workers, {
            "training images": len(self.records), "validation images": self.validation_images,
            **self.recipe.as_dict()})
        workers.broadcast(self.net.collect_params())
        self.average = MovingAverage(self.net, self.recipe.ema) if self.recipe.ema else None
        self.arrays = RunArrays(self.updater, self.average, workers)
        start = begin_or_resume(self)
        self.progress = start.progress
        if start.complete:
            self.say(f"the run in {self.save_dir} is complete: nothing is left to do")
            start.close()
            return self.progress.best
        with closing(start):
            self._prepare(start)
            try:
                self._train_watched()
            finally:
                self.upcoming.close()
                self.saver.settle()
        return self.progress.best

    def _train_watched(self) -> None:
        workers = self.workers
        who = f"rank {workers.rank} of {workers.size}" if workers.size > 1 else "the run"
        try:
            with Watchdog(self.options.hang_timeout, who) as self.watchdog:
                self.saver.beat = lambda: self.watchdog.beat("a part of a checkpoint")
                self._train()
        except Stopped:
            self.bad_records.give_up(self.progress.position.epoch)
            raise
        except SharedFault:
            self._give_up(discard=workers.rank == 0)
            raise
        except InputError as error:
            # Here, whatever the rank: rank 0 waits for this one, and will not outlive it for long.
            self._give_up(discard=True)
            raise InputError(str(error), only_here=True) from error
        except mx.MXNetError as error:
            if not workers.was_abandoned(error):
                raise
            self._give_up(discard=True)
            if self.wishes.stop:
                raise Stopped(self.wishes.stop, together=False) from None
            raise Abandoned("another worker stopped: its own line says why") from None

    def _prepare(self, start: Start) -> None:
        self.start = start
        self.saver, self.metrics, self.step_log = start.saver, start.metrics, start.step_log
        self.bad_records = BadRecordLog(
            self.save_dir / files.BAD_RECORDS, self.loader.bad_records, self.workers)
        self.divergence = Divergence(self.options.nan_policy, self.updater, self.arrays,
                                     self.workers, self.saver, self.warn)
        self.upcoming = self._batches_left()

    def _give_up(self, discard: bool) -> None:
        self.bad_records.give_up(self.progress.position.epoch)
        self.saver.settle()
        if discard and self.saver.last_step is None and not self.start.displaced:
            files.discard_unless_trained(self.save_dir)

    def say(self, text: str) -> None:
        if self.workers.rank == 0:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Say something on rank 0, above the progress line."""
        if self.workers.rank == 0:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def _train(self) -> None:
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
            files.write_result(self.save_dir, {
                "complete": progress.position.epoch + 1 == self.recipe.epochs and not self._left(),
                **progress.as_dict(self.loader.sampling)})

    def _left(self) -> int:
        """Steps left of the epoch."""
        return self.loader.sampling.steps(
            self.recipe.batch_size, self.workers.size, self.progress.position.legs)

    def _until_cap(self) -> float:
        """Steps until --steps."""
        cap = self.options.steps
        return math.inf if cap is None else max(0, cap - self.progress.step)

    # ---- an epoch ----

    def _batches_left(self) -> Any:
        position = self.progress.position
        return self.loader.epoch(position.epoch, position.legs)

    def _train_epoch(self) -> None:
        """Take the steps that are left of the epoch."""
        recipe, workers, progress = self.recipe, self.workers, self.progress
        epoch, left, whole = progress.position.epoch, self._left(), len(self.loader)
        take = int(min(left, self._until_cap()))
        if take:
            sizes = self.loader.sampling.sizes(
                recipe.batch_size, workers.size, progress.position.legs).tolist()
            # The end of an epoch is where the schedule has it, whatever workers it began with.
            scheduled = range((epoch + 1) * whole - left + 1, (epoch + 1) * whole + 1)
            with progress_bar(total=whole, desc=f"epoch {epoch + 1}/{recipe.epochs}", leave=True,
                              initial=whole - left, enabled=workers.rank == 0) as bar:
                self._take_steps(list(zip(scheduled, sizes))[:take], bar)
        self.upcoming.close()
        if take == left and epoch + 1 < recipe.epochs and self._until_cap():
            # Its first batches are made while this one is validated and saved.
            self.upcoming = self.loader.epoch(epoch + 1)

    def _take_steps(self, steps: list[tuple[int, int]], bar: Any) -> None:
        """Take steps, each with its number in the schedule and its global batch."""
        progress, epoch = self.progress, self.progress.position.epoch
        sums, before = progress.sums, replace(progress.sums)
        clock = DataClock()
        self.step_log.start_epoch(clock)
        # The steps come first: zip asks them first, and no batch is taken that is not used.
        for (scheduled, size), batch in zip(steps, clock.waiting_for(self.upcoming)):
            self.bad_records.note(epoch)
            agreed = self._train_step(*batch, size, scheduled)
            if renew_directory(self, self.start):
                self.wishes.save = True
            sums.seconds = before.seconds + clock.seconds
            sums.data_seconds = before.data_seconds + clock.data_seconds
            self._show(bar, agreed, size, scheduled)
            if scheduled == steps[-1][0]:
                self._tell_epoch(scheduled)  # before a checkpoint counts the lines
            self._keep_wishes(agreed)
        self.bad_records.note(epoch)  # before the next epoch's threads find more

    def _tell_epoch(self, scheduled: int) -> None:
        if self.workers.rank != 0:
            return
        progress, sums, rate = self.progress, self.progress.sums, self.step_log.images_per_second
        self.metrics.write(
            "epoch", epoch=progress.position.epoch + 1, step=progress.step, loss=sums.loss,
            lr=self.schedule(scheduled), seconds=sums.seconds, data_seconds=sums.data_seconds,
            images_per_second=rate, peak_share=self.step_log.peak_share(rate))

    # ---- a step ----

    def _train_step(
        self, images: np.ndarray, labels: np.ndarray, global_batch: int, scheduled: int
    ) -> StepSums:
        """One update of the weights, number `scheduled` of the schedule."""
        recipe, progress, updater = self.recipe, self.progress, self.updater
        inputs, targets = self.preparation(images, labels, progress.position)
        progress.step += 1
        if recipe.dropblock_prob or recipe.final_drop:
            # Ranks drop different neurons. Anew in each step, as MXNet cannot save its generator.
            key = (recipe.seed, self.workers.rank, progress.step)
            mx.random.seed(int(np.random.SeedSequence(key).generate_state(1)[0] >> 1))
        set_drop_prob(self.net, scheduled_drop_prob(
            scheduled, self.schedule.total_steps, recipe.dropblock_prob))
        self.divergence.before_step()
        losses, backward = updater.forward(inputs, targets)
        answer = self.agreeing.ask(
            losses, self.wishes.save or self.saver.wish(), bool(self.wishes.stop))
        backward()
        agreed = self.agreeing.read(answer)
        share, lr = global_batch / self.workers.size, self.schedule(scheduled)
        logged = self.step_log.due(progress.step)
        self.allreduce_seconds = updater.exchange(timed=logged and self.workers.size > 1)
        self.norm = None
        if logged or self.options.nan_policy == "skip":
            self.norm = float(updater.gradient_norm(share).asscalar())
        if self.divergence.is_usable(agreed, progress, inputs, losses, self.norm, lr, self.metrics):
            updater.update(lr, share)
            if self.average is not None:
                self.average.update(progress.step)
            progress.sums.loss_sum += agreed.loss_sum
            progress.sums.images += global_batch
        progress.position = progress.position.advance(
            self.loader.sampling, recipe.batch_size, self.workers.size)
        self.watchdog.beat(f"step {progress.step}")
        return agreed

    def _show(self, bar: Any, agreed: StepSums, images: int, scheduled: int) -> None:
        progress, lr = self.progress, self.schedule(scheduled)
        loss, log = agreed.loss_sum / images, self.step_log
        log.add(progress.step, images, epoch=scheduled / len(self.loader), loss=loss, lr=lr,
                grad_norm=self.norm, allreduce_seconds=self.allreduce_seconds)
        bar.set_postfix_str(
            f"loss {loss:.3f}, lr {lr:.4g}, {log.images_per_second:.1f} images/s, "
            f"data {log.clock.share:.0%}, {duration(self._seconds_left(scheduled))} left",
            refresh=False)
        bar.update()
        if log.due(progress.step) and isinstance(bar, ProgressLines):
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
            "progress": progress.as_dict(self.loader.sampling),
            "loss_scale": self.updater.loss_scale()})

    def _directory_was_lost(self) -> bool:
        """Make the run directory again if that is necessary; every worker is told, and saves."""
        renewed = self.workers.together(lambda: renew_directory(self, self.start))
        lost = self.workers.gather(renewed)[0]
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
        raise Stopped(self.wishes.stop or signal.SIGTERM, together)

    def _finish_epoch(self) -> None:
        """Write a checkpoint; validate if it is due, and write what follows from that."""
        progress, options, epoch = self.progress, self.options, self.progress.position.epoch
        whole = not self._left()
        last = epoch + 1 == self.recipe.epochs or not self._until_cap()
        often = options.eval_frequency
        validated = (self.validation_loader is not None and progress.validated <= epoch
                     and (last or (often > 0 and (epoch + 1) % often == 0)))
        self.workers.average(self.arrays.statistics())
        # Before validation: a fault in the validation records must not cost the epoch.
        lost = self._directory_was_lost()
        if last or validated or lost or (epoch + 1) % options.save_frequency == 0:
            self._save()
        self.workers.together(lambda: self.bad_records.share(epoch))
        if validated:
            progress.best = self._validated("validation", progress.best, files.BEST)
            if self.average is not None:
                with self.average.in_place_of_weights():
                    progress.best_ema = self._validated(
                        "validation_ema", progress.best_ema, files.BEST_EMA)
            progress.validated = epoch + 1 if whole else progress.validated
        if self.workers.rank == 0 and (validated or last):
            draw_learning_curve(self.save_dir / files.METRICS, self.save_dir / files.CURVE,
                                f"{self.recipe.model}, {self.workers.size} worker(s)")

    def _validated(self, event: str, best: Result | None, name: str) -> Result:
        """Validate the network as it is; the better of this result and `best`."""
        result, progress = self._validate(), self.progress
        better = best is None or result.top1 > best.top1
        if self.workers.rank == 0:
            epoch = progress.position.epoch + 1
            self.metrics.write(event, epoch=epoch, step=progress.step, **result.as_dict())
            what = "validation" if event == "validation" else "moving average"
            print(f"epoch {epoch}: {what} top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
                  f"loss {result.loss:.4f}, {result.images} images", flush=True)
            if better:
                self.saver.keep_best(name, average=name == files.BEST_EMA)
        return result if better else best

    def _validate(self) -> Result:
        batches = progress_bar(self._watched(), total=len(self.validation_loader),
                               desc="validation", unit="batch", enabled=self.workers.rank == 0)
        with without_dropblock(self.net):  # it would do nothing here, but cost a third of the time
            return evaluate(
                self._logits, batches, self.validation_images,
                reduce=self.workers.sum, batch_size=self.recipe.batch_size,
                skipped=self.validation_loader.bad_records,
            )

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        pixels = mx.nd.array(pixels, ctx=self.ctx, dtype=np.uint8)
        return self.net(self.preparation.normalize(pixels)).asnumpy()

    def _watched(self) -> Any:
        """Validation batches, unless a signal asks for the end: the epoch is saved already."""
        for number, batch in enumerate(self.validation_loader):
            self.watchdog.beat(f"validation batch {number}")
            if self.wishes.stop:
                self._stop(together=False)
            yield batch
