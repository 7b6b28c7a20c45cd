"""The training loop: one process a device, alone or under Horovod."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm

from gluon_resnest.data.bad_records import DEFAULT_SHARE
from gluon_resnest.data.class_names import check_class_names
from gluon_resnest.data.loader import EvaluationLoader, TrainLoader
from gluon_resnest.data.mixup import MIXUP_STREAM, draw_lambdas, mix_with_reverse, smoothed_labels
from gluon_resnest.data.prefetch import DEFAULT_PATIENCE
from gluon_resnest.data.records import RecordFile
from gluon_resnest.data.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.errors import InputError
from gluon_resnest.evaluation import Result, evaluate
from gluon_resnest.layers import (
    Normalize,
    scheduled_drop_prob,
    set_drop_prob,
    without_dropblock,
)
from gluon_resnest.models import ResNeSt, get_model, save_weights
from gluon_resnest.training import run_directory as files
from gluon_resnest.training.bad_record_log import BadRecordLog
from gluon_resnest.training.distributed import SharedFault, Workers, device
from gluon_resnest.training.recipe import Recipe
from gluon_resnest.training.report import (
    DataClock,
    MetricsLog,
    draw_learning_curve,
    progress_bar,
)


@dataclass(frozen=True)
class RunOptions:
    """Where a run reads and writes, what it starts from, and how it reports."""

    rec_train: Path
    save_dir: Path
    rec_train_idx: Path | None = None
    rec_val: Path | None = None
    rec_val_idx: Path | None = None
    overwrite: bool = False
    pretrained: bool | Path = False
    data_nthreads: int | None = None
    data_timeout: float = DEFAULT_PATIENCE
    max_bad_records: float = DEFAULT_SHARE
    skip_bad_records: bool = False
    no_cuda: bool = False
    eval_frequency: int = 1
    save_frequency: int = 1
    log_interval: int = 50

    def as_dict(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value
                for name, value in vars(self).items()}


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
        self.recipe = recipe
        self.options = options
        self.workers = workers
        self.ctx = device(workers, options.no_cuda)
        self.records = RecordFile(options.rec_train, options.rec_train_idx)
        shared = {"batch_size": recipe.batch_size, "rank": workers.rank, "world": workers.size,
                  "classes": recipe.classes, "threads": options.data_nthreads,
                  "patience": options.data_timeout}
        self.loader = TrainLoader(
            self.records,
            TrainTransform(recipe.train_size, auto_augment=recipe.auto_aug,
                           color_jitter=recipe.color_jitter, lighting=recipe.lighting),
            seed=recipe.seed, sharding=recipe.sharding, max_bad_records=options.max_bad_records,
            **shared,
        )
        self.validation_loader = None
        if options.rec_val is not None:
            validation = RecordFile(options.rec_val, options.rec_val_idx)
            check_class_names(validation, self.records.class_names)
            self.validation_images = len(validation)
            self.validation_loader = EvaluationLoader(
                validation, EvaluationTransform(recipe.test_size, recipe.crop_ratio),
                skip_bad_records=options.skip_bad_records, **shared)
        self.net = self._network()
        self.normalize = Normalize()
        self.normalize.hybridize(static_alloc=True)
        self.loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        self.schedule = recipe.schedule(len(self.records), workers.size)
        self.global_batches = self.loader.sampling.sizes(recipe.batch_size, workers.size)
        self.step = 0
        self.best: Result | None = None

    def _network(self) -> ResNeSt:
        recipe = self.recipe
        mx.random.seed(recipe.seed)
        net = get_model(recipe.model, pretrained=self.options.pretrained, classes=recipe.classes,
                        ctx=self.ctx, final_drop=recipe.final_drop, last_gamma=recipe.last_gamma,
                        dropblock_prob=recipe.dropblock_prob)
        if not self.options.pretrained:
            net.initialize(ctx=self.ctx)
        if not recipe.wd_all:
            for name, parameter in net.collect_params().items():
                # Decay convolution and dense weights only (paper, "Regularization").
                parameter.wd_mult = 1.0 if name.endswith("weight") else 0.0
        net.hybridize(static_alloc=True)
        return net

    def run(self) -> Result | None:
        """Train all epochs; the best validation result, or None without validation data."""
        recipe, workers = self.recipe, self.workers
        self.save_dir = workers.gather(self.options.save_dir)[0]  # its default holds the time
        workers.together(self._create_run_directory)
        self.bad_records = BadRecordLog(
            self.save_dir / files.BAD_RECORDS, self.loader.bad_records, workers)
        params = self.net.collect_params()
        workers.broadcast(params)
        # Ranks start from the same weights, but drop different neurons.
        mx.random.seed(recipe.seed * 65_537 + workers.rank)
        self.gluon_trainer = workers.trainer(
            params, mx.optimizer.NAG(momentum=recipe.momentum, wd=recipe.wd,
                                     learning_rate=self.schedule(0)))
        self.upcoming = self.loader.epoch(0)
        epoch = 0
        try:
            for epoch in range(recipe.epochs):
                self._train_epoch(epoch)
                self._finish_epoch(epoch)
        except SharedFault:
            self.bad_records.give_up(epoch)
            if workers.rank == 0:
                files.discard_unless_trained(self.save_dir)
            raise
        except InputError as error:
            self.bad_records.give_up(epoch)
            # Here, whatever the rank: rank 0 waits for this one, and will not outlive it for long.
            files.discard_unless_trained(self.save_dir)
            raise InputError(str(error), only_here=True) from error
        except mx.MXNetError as error:
            if not workers.was_abandoned(error):
                raise
            self.bad_records.give_up(epoch)
            files.discard_unless_trained(self.save_dir)
            raise InputError("another worker stopped: its own line says why") from None
        finally:
            self.upcoming.close()
            if workers.rank == 0:
                self.metrics.close()
        return self.best

    def _create_run_directory(self) -> None:
        if self.workers.rank != 0:
            return
        config = {"recipe": self.recipe.as_dict(), "run": self.options.as_dict(),
                  "workers": self.workers.size}
        files.create_run_directory(self.save_dir, self.options.overwrite, config)
        if self.records.class_names:
            files.write_class_names(self.save_dir / files.CLASSES, self.records.class_names)
        self.metrics = MetricsLog(self.save_dir / files.METRICS)

    def _train_epoch(self, epoch: int) -> None:
        images_done, loss_sum, pending = 0, 0.0, None
        description = f"epoch {epoch + 1}/{self.recipe.epochs}"
        clock = self.clock = DataClock()
        with progress_bar(len(self.loader), description, self.workers.rank == 0) as bar:
            for batch, (images, labels) in enumerate(clock.waiting_for(self.upcoming)):
                self.bad_records.note(epoch)
                loss = self._train_step(epoch, batch, images, labels)
                images_done += int(self.global_batches[batch])
                if pending is not None:
                    # Read one step late: the device computes this step meanwhile.
                    loss_sum += self._report_step(*pending, bar, images_done)
                pending = (self.step, loss, len(labels))
            loss_sum += self._report_step(*pending, bar, images_done)
        seconds, data_seconds = clock.seconds, clock.data_seconds
        self.bad_records.note(epoch)  # before the next epoch's threads find more
        if epoch + 1 < self.recipe.epochs:
            # Its first batches are made while this one is validated and saved.
            self.upcoming = self.loader.epoch(epoch + 1)
        (loss_total,) = self.workers.sum(np.array([loss_sum]))
        if self.workers.rank == 0:
            self.metrics.write(
                "epoch", epoch=epoch + 1, step=self.step, loss=loss_total / len(self.records),
                lr=self.schedule(self.step), seconds=seconds, data_seconds=data_seconds,
                images_per_second=images_done / seconds)

    def _train_step(
        self, epoch: int, batch: int, images: np.ndarray, labels: np.ndarray
    ) -> mx.nd.NDArray:
        """One update of the weights; the mean loss of this rank's batch, not yet computed."""
        recipe = self.recipe
        self.step += 1
        inputs = self.normalize(mx.nd.array(images, ctx=self.ctx, dtype=np.uint8))
        targets = mx.nd.array(
            smoothed_labels(labels, recipe.classes, recipe.label_smoothing, recipe.smoothing_rule),
            ctx=self.ctx)
        if recipe.mixup_alpha > 0 and epoch < recipe.epochs - recipe.mixup_off_epoch:
            rng = np.random.default_rng(
                [recipe.seed, epoch, batch, self.workers.rank, MIXUP_STREAM])
            lambdas = mx.nd.array(
                draw_lambdas(len(labels), recipe.mixup_alpha, rng, recipe.mixup_lambda),
                ctx=self.ctx)
            inputs = mix_with_reverse(inputs, lambdas)
            targets = mix_with_reverse(targets, lambdas)
        set_drop_prob(self.net, scheduled_drop_prob(
            self.step, self.schedule.total_steps, recipe.dropblock_prob))
        with autograd.record():
            loss = self.loss(self.net(inputs), targets)
        loss.backward()
        self.gluon_trainer.set_learning_rate(self.schedule(self.step))
        # Horovod sums over the ranks and divides by their number: so each image of the global
        # batch weighs the same, also where the ranks' batches differ by one image.
        self.gluon_trainer.step(self.global_batches[batch] / self.workers.size)
        return loss.mean()

    def _report_step(self, step, loss, images, bar, images_done) -> float:
        """Wait for the loss of `step`, show it, and return its sum over this rank's images."""
        value = float(loss.asscalar())
        if not np.isfinite(value):
            raise InputError(
                f"the loss of rank {self.workers.rank} is {value} at step {step}: the run "
                f"diverged; try a lower --lr (it was {self.schedule(step):.4g} in all)"
            )
        lr, rate = self.schedule(step), images_done / self.clock.seconds
        bar.update()
        bar.set_postfix_str(f"loss {value:.3f}, lr {lr:.4g}, {rate:.1f} images/s, "
                            f"data {self.clock.share:.0%}", refresh=False)
        if self.workers.rank == 0 and step % self.options.log_interval == 0:
            self.metrics.write("step", step=step, loss=value, lr=lr, images_per_second=rate,
                               data_share=self.clock.share)
        return value * images

    def _finish_epoch(self, epoch: int) -> None:
        """Write a checkpoint; validate if it is due, and write what follows from that."""
        self.workers.average_running_statistics(self.net)
        last, every = epoch + 1 == self.recipe.epochs, self.options.eval_frequency
        # Before validation: a fault in the validation records must not cost the epoch.
        if self.workers.rank == 0 and (last or (epoch + 1) % self.options.save_frequency == 0):
            save_weights(self.net, self.save_dir / files.LAST)
        self.workers.together(lambda: self.bad_records.share(epoch))
        due = last or (every > 0 and (epoch + 1) % every == 0)
        result = self._validate() if due and self.validation_loader is not None else None
        if self.workers.rank != 0:
            return
        if result is not None:
            self._report_validation(epoch, result)
        if result is not None or last:
            draw_learning_curve(self.save_dir / files.METRICS, self.save_dir / files.CURVE,
                                f"{self.recipe.model}, {self.workers.size} worker(s)")

    def _report_validation(self, epoch: int, result: Result) -> None:
        self.metrics.write("validation", epoch=epoch + 1, step=self.step, **result.as_dict())
        print(f"epoch {epoch + 1}: validation top-1 {result.top1:.2f} %, top-5 "
              f"{result.top5:.2f} %, loss {result.loss:.4f}, {result.images} images", flush=True)
        if self.best is None or result.top1 > self.best.top1:
            self.best = result
            save_weights(self.net, self.save_dir / files.BEST)

    def _validate(self) -> Result:
        batches = tqdm(self.validation_loader, desc="validation", unit="batch", leave=False,
                       disable=self.workers.rank != 0)
        with without_dropblock(self.net):  # it would do nothing here, but cost a third of the time
            return evaluate(
                lambda pixels: self.net(self.normalize(pixels)),
                batches, self.ctx, self.validation_images,
                reduce=self.workers.sum, batch_size=self.recipe.batch_size,
                skipped=self.validation_loader.bad_records,
            )
