"""Classification as a task of the engine: what a recipe and its records are made into."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_resnest import command_line
from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.class_names import check_class_names
from gluon_resnest.data.loading.labelled_images import Batch, EvaluationLoader, TrainLoader
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.prefetch import DEFAULT_PATIENCE
from gluon_resnest.data.records.bad_records import DEFAULT_SHARE
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError
from gluon_resnest.layers import scheduled_drop_prob, set_drop_prob, without_dropblock
from gluon_resnest.models import ResNeSt, get_model
from gluon_resnest.planning.cost import summary as cost_of
from gluon_resnest.runs import run_directory as files
from gluon_resnest.settings import setting
from gluon_resnest.tasks.classification.ablation import published
from gluon_resnest.tasks.classification.distillation import DistillationLoss, teacher_network
from gluon_resnest.tasks.classification.evaluation import ClassificationEvaluator
from gluon_resnest.tasks.classification.preparation import Preparation
from gluon_resnest.tasks.classification.recipe import Recipe
from gluon_resnest.training.options import as_settings
from gluon_resnest.training.task import Arrays, Description, Figures, Task
from gluon_resnest.workers import Workers, device

# A backward pass computes two products of matrices where the forward pass computes one, and a
# multiply-add is two operations.
_OPERATIONS = 3 * 2


@dataclass(frozen=True)
class Source:
    """Where a run reads, and what it starts from.

    Nothing here changes the result, but for the records themselves and `pretrained`.
    """

    rec_train: Path = setting(
        help="training images, made by scripts/pack_records.py or im2rec", group="data",
        metavar="FILE", type=command_line.path)
    rec_train_idx: Path | None = setting(
        None, "its index (default: the .idx beside it)", group="data", metavar="FILE",
        type=command_line.path)
    rec_val: Path | None = setting(
        None, "validation images", group="data", metavar="FILE", type=command_line.path)
    rec_val_idx: Path | None = setting(
        None, "its index (default: the .idx beside it)", group="data", metavar="FILE",
        type=command_line.path)
    pretrained: bool | Path = False
    data_nthreads: int | None = setting(
        None, "threads that decode images (default: one a core of this worker)", group="run",
        metavar="N", type=command_line.threads)
    data_timeout: float = setting(
        int(DEFAULT_PATIENCE), "stop when a thread has been at one image for longer, as on a disk "
        "that hangs (default: %(default)s)", group="data", metavar="SECONDS",
        type=command_line.positive)
    max_bad_records: float = setting(
        DEFAULT_SHARE, "stop when more of the training records are bad; until then others replace "
        "them and bad_records.jsonl lists them (default: %(default)s)", group="data",
        metavar="SHARE", type=command_line.share)
    skip_bad_records: bool = setting(
        False, "leave validation images that cannot be used out of the accuracy, and count them "
        "(default: refuse)", group="data")
    no_cuda: bool = setting(False, "use the CPU even if there is a GPU", group="run")


class ClassificationTask(Task[Batch]):
    """A classifier on records, trained by a recipe.

    Raises
    ------
    InputError
        For records, classes, weights or devices that cannot be used.
    """

    score = "top1"

    def __init__(self, recipe: Recipe, source: Source, workers: Workers) -> None:
        self.recipe = recipe
        self.device = device(workers, source.no_cuda)
        if recipe.amp:
            start_mixed_precision(self.device)
        records = RecordFile(source.rec_train, source.rec_train_idx)
        self.training = _training_data(records, recipe, source, workers)
        self.validation = _validation_data(records, recipe, source, workers)
        self.network = make_network(recipe, source.pretrained, self.device)
        self.preparation = Preparation(recipe, workers.rank, self.device)
        self.optimizer = mx.optimizer.NAG(momentum=recipe.momentum, wd=recipe.wd)
        self.schedule = recipe.schedule(len(records), workers.size)
        self.draws_on_device = bool(recipe.dropblock_prob or recipe.final_drop)
        self._make_loss(recipe)
        self._validation_images = 0 if self.validation is None else len(self.validation.records)
        self.description = self._described(records, source)

    def _make_loss(self, recipe: Recipe) -> None:
        self._teacher, self._loss = None, gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        if recipe.teacher is not None:
            self._teacher = teacher_network(recipe.teacher, recipe.teacher_params, recipe.classes,
                                            self.device)
            self._loss = DistillationLoss(recipe.temperature, recipe.hard_weight)

    def _described(self, records: RecordFile, source: Source) -> Description:
        recipe, names = self.recipe, records.class_names
        return Description(
            title=recipe.model,
            operations=_OPERATIONS * cost_of(self.network, recipe.train_size).multiply_adds,
            facts={"model": recipe.model, "peak_lr": self.schedule.peak_lr,
                   "published_top1": published(recipe)["published_top1"]},
            source=as_settings(source),
            sizes={"training images": len(records), "validation images": self._validation_images},
            files={files.CLASSES: "".join(f"{name}\n" for name in names)} if names else {})

    # ---- a step ----

    def prepare(self, batch: Batch, position: Position, rank: int) -> tuple[Arrays, Arrays]:
        inputs, targets = self.preparation(batch.images, batch.labels, position)
        return [inputs], [targets]

    def before_step(self, scheduled: int) -> None:
        set_drop_prob(self.network, scheduled_drop_prob(
            scheduled, self.schedule.total_steps, self.recipe.dropblock_prob))

    def losses(self, inputs: Arrays, targets: Arrays) -> Mapping[str, mx.nd.NDArray]:
        (images,), (distribution,) = inputs, targets
        extra = []
        if self._teacher is not None:
            with mx.autograd.pause():  # it answers as in inference, and learns nothing
                extra = [self._teacher(images)]
        return {"loss": self._loss(self.network(images), distribution, *extra)}

    # ---- validation ----

    def evaluator(self) -> ClassificationEvaluator:
        return ClassificationEvaluator(
            self._logits, self._validation_images, self.recipe.batch_size,
            self.validation.bad_records)

    def evaluating(self) -> AbstractContextManager[Any]:
        # DropBlock would do nothing here, but cost a third of the time.
        return without_dropblock(self.network)

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        pixels = mx.nd.array(pixels, ctx=self.device, dtype=np.uint8)
        return self.network(self.preparation.normalize(pixels)).asnumpy()

    def summary(self, figures: Figures) -> str:
        return (f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %, "
                f"loss {figures['loss']:.4f}, {figures['images']} images")

    def upgraded(self, figures: dict[str, Any]) -> dict[str, Any]:
        return upgraded(figures)


def train_transform(recipe: Recipe) -> TrainTransform:
    """The augmentation of a recipe."""
    return TrainTransform(
        recipe.train_size, auto_augment=recipe.auto_aug, color_jitter=recipe.color_jitter,
        lighting=recipe.lighting,
        area=None if recipe.crop_area is None else (recipe.crop_area, 1.0))


def _training_data(records: RecordFile, recipe: Recipe, source: Source,
                   workers: Workers) -> TrainLoader:
    return TrainLoader(
        records, train_transform(recipe), seed=recipe.seed, sharding=recipe.sharding,
        max_bad_records=source.max_bad_records, **_shared(recipe, source, workers))


def _validation_data(training: RecordFile, recipe: Recipe, source: Source,
                     workers: Workers) -> EvaluationLoader | None:
    if source.rec_val is None:
        return None
    records = RecordFile(source.rec_val, source.rec_val_idx)
    check_class_names(records, training.class_names)
    return EvaluationLoader(
        records, EvaluationTransform(recipe.test_size, recipe.crop_ratio),
        skip_bad_records=source.skip_bad_records, **_shared(recipe, source, workers))


def _shared(recipe: Recipe, source: Source, workers: Workers) -> dict[str, Any]:
    return {"batch_size": recipe.batch_size, "rank": workers.rank, "world": workers.size,
            "classes": recipe.classes, "threads": source.data_nthreads,
            "patience": source.data_timeout}


def make_network(recipe: Recipe, pretrained: bool | Path, ctx: mx.Context) -> ResNeSt:
    """The network of a recipe, with the weights that training starts from.

    Raises
    ------
    InputError
        For weights that cannot be used.
    """
    mx.random.seed(recipe.seed)
    net = get_model(recipe.model, pretrained=pretrained, classes=recipe.classes, ctx=ctx,
                    final_drop=recipe.final_drop, last_gamma=recipe.last_gamma,
                    dropblock_prob=recipe.dropblock_prob)
    if not pretrained:
        net.initialize(ctx=ctx)
    if not recipe.wd_all:
        for name, parameter in net.collect_params().items():
            # Decay convolution and dense weights only (paper, "Regularization").
            parameter.wd_mult = 1.0 if name.endswith("weight") else 0.0
    net.hybridize(static_alloc=True)
    return net


def start_mixed_precision(ctx: mx.Context) -> None:
    """Let MXNet compute in float16 where that is safe; before any network is made.

    Raises
    ------
    InputError
        On a CPU.
    """
    if ctx.device_type == "cpu":
        raise InputError(
            "--amp needs a GPU: MXNet's CPU kernels have no float16 matrix product, and its "
            "bfloat16 kernels need a CPU that few have; leave it out")
    from mxnet.contrib import amp

    amp.init()


def upgraded(figures: dict[str, Any]) -> dict[str, Any]:
    """Checkpoints of version 0.1 have counts of hits in place of shares."""
    if "top1_hits" not in figures:
        return figures
    images, first, five = (figures.get(name) for name in ("images", "top1_hits", "top5_hits"))
    if not (all(isinstance(count, int) for count in (images, first, five))
            and 0 <= first <= five <= images and images > 0):
        raise InputError(f"the best validation of the checkpoint has {first} and {five} hits "
                         f"of {images} images, which cannot be: it is damaged; delete it, or "
                         "choose another --save-dir")
    loss = figures.get("loss_sum")
    return {"images": images, "skipped": figures.get("skipped", 0),
            "top1": 100 * first / images, "top5": 100 * five / images,
            "loss": None if loss is None else loss / images}
