"""What a run is made of, built from its recipe and options: loaders, networks, loss, optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet import gluon

from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.class_names import check_class_names
from gluon_resnest.data.loading.loader import EvaluationLoader, TrainLoader
from gluon_resnest.data.loading.prefetch import DEFAULT_PATIENCE
from gluon_resnest.data.records.bad_records import DEFAULT_SHARE
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError
from gluon_resnest.models import ResNeSt, get_model
from gluon_resnest.tasks.classification.distillation import DistillationLoss, teacher_network
from gluon_resnest.tasks.classification.recipe import Recipe
from gluon_resnest.training.updater import Updater
from gluon_resnest.training.watchdog import DEFAULT_HANG_TIMEOUT
from gluon_resnest.workers import Workers


@dataclass(frozen=True)
class RunOptions:
    """Where a run reads and writes, what it starts from, how it reports and what it survives.

    Nothing here changes the result, but for `pretrained`, `nan_policy` and `steps`.
    """

    rec_train: Path
    save_dir: Path
    rec_train_idx: Path | None = None
    rec_val: Path | None = None
    rec_val_idx: Path | None = None
    overwrite: bool = False
    resume: str = "auto"
    override: bool = False
    pretrained: bool | Path = False
    steps: int | None = None
    data_nthreads: int | None = None
    data_timeout: float = DEFAULT_PATIENCE
    hang_timeout: float = DEFAULT_HANG_TIMEOUT
    max_bad_records: float = DEFAULT_SHARE
    skip_bad_records: bool = False
    nan_policy: str = "abort"
    no_cuda: bool = False
    eval_frequency: int = 1
    save_frequency: int = 1
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0
    keep: int = 2
    log_interval: int = 50
    tensorboard: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value
                for name, value in vars(self).items()}


@dataclass(frozen=True)
class Loaders:
    """Training batches, and validation batches if there are validation records."""

    records: RecordFile
    train: TrainLoader
    validation: EvaluationLoader | None
    validation_images: int


def make_loaders(recipe: Recipe, options: RunOptions, workers: Workers) -> Loaders:
    """Loaders of this worker's part of the records.

    Raises
    ------
    InputError
        For records or classes that cannot be used.
    """
    records = RecordFile(options.rec_train, options.rec_train_idx)
    shared = {"batch_size": recipe.batch_size, "rank": workers.rank, "world": workers.size,
              "classes": recipe.classes, "threads": options.data_nthreads,
              "patience": options.data_timeout}
    train = TrainLoader(
        records,
        TrainTransform(recipe.train_size, auto_augment=recipe.auto_aug,
                       color_jitter=recipe.color_jitter, lighting=recipe.lighting),
        seed=recipe.seed, sharding=recipe.sharding, max_bad_records=options.max_bad_records,
        **shared,
    )
    if options.rec_val is None:
        return Loaders(records, train, None, 0)
    validation = RecordFile(options.rec_val, options.rec_val_idx)
    check_class_names(validation, records.class_names)
    loader = EvaluationLoader(
        validation, EvaluationTransform(recipe.test_size, recipe.crop_ratio),
        skip_bad_records=options.skip_bad_records, **shared)
    return Loaders(records, train, loader, len(validation))


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


def make_updater(
    net: ResNeSt, recipe: Recipe, workers: Workers, ctx: mx.Context, lr: float
) -> Updater:
    """The optimizer and the loss of a recipe; `lr` is the learning rate before the first step."""
    teacher, loss = None, gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    if recipe.teacher is not None:
        teacher = teacher_network(recipe.teacher, recipe.teacher_params, recipe.classes, ctx)
        loss = DistillationLoss(recipe.temperature, recipe.hard_weight)
    optimizer = workers.trainer(
        net.collect_params(),
        mx.optimizer.NAG(momentum=recipe.momentum, wd=recipe.wd, learning_rate=lr),
        recipe.fp16_allreduce)
    if recipe.amp:
        from mxnet.contrib import amp

        amp.init_trainer(optimizer)
    return Updater(net, loss, optimizer, teacher, recipe.accumulate, recipe.clip_norm, recipe.amp)


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
