"""One update of the trainer, recomputed by formula; and how faults end a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mxnet as mx
import numpy as np
import pytest
from conftest import DIGIT_CLASSES
from mxnet import autograd
from trainers import begun, train_with

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize
from gluon_resnest.tasks.classification import preparation
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, Source
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.trainer import Trainer
from gluon_resnest.workers import Workers


class OneOf(Workers):
    """Rank 0 of `size` workers whose gradients nobody adds up."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.fixture
def make(digits, tmp_path):
    @contextmanager
    def make(world: int = 1, eval_frequency: int = 1, **overrides) -> Iterator[Trainer]:
        settings = {"epochs": 2, "warmup_epochs": 1, "warmup_lr": 0.01, **overrides}
        recipe = recipe_of("resnest14", classes=DIGIT_CLASSES, train_size=32, batch_size=14,
                           auto_aug=False, **settings)
        source = Source(digits / "train.rec", rec_val=digits / "val.rec", no_cuda=True)
        options = RunOptions(tmp_path / "run", eval_frequency=eval_frequency)
        workers = OneOf(world)
        with begun(ClassificationTask(recipe, source, workers), options, workers) as trainer:
            yield trainer
    return make


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("mixup", ["sample", "batch", None])
def test_an_update_by_its_formula(world, mixup, make, monkeypatch):
    """Smoothed and mixed targets, mean over the global batch, decay of weights alone, NAG."""
    lambdas = {"mixup_alpha": 0.2, "mixup_lambda": mixup} if mixup else {"mixup_alpha": 0.0}
    with make(world, wd=0.05, momentum=0.8, **lambdas) as trainer:
        check_update(trainer, world, mixup, monkeypatch)


def check_update(trainer: Trainer, world: int, mixup: str | None, monkeypatch) -> None:
    net = trainer.task.network
    batch = next(iter(trainer.data.epoch(0)))
    images, labels = batch
    twin = gluon_resnest.get_model("resnest14", classes=DIGIT_CLASSES, last_gamma=True)
    twin.initialize()
    before = {key: parameter.data().asnumpy()
              for key, parameter in net._collect_params_with_prefix().items()}
    for key, parameter in twin._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(before[key]))
    drawn = []
    draw = preparation.draw_lambdas
    monkeypatch.setattr(preparation, "draw_lambdas", lambda *a: drawn.append(draw(*a)) or drawn[0])
    trainer._train_step(batch, world * len(labels), 1)

    share = drawn[0].astype(np.float64)[:, None] if mixup else np.ones((len(labels), 1))
    targets = np.full((len(labels), DIGIT_CLASSES), 0.1 / (DIGIT_CLASSES - 1))
    targets[np.arange(len(labels)), labels] = 0.9
    targets = share * targets + (1 - share) * targets[::-1]
    inputs = Normalize()(mx.nd.array(images, dtype=np.uint8)).asnumpy()
    inputs = share[..., None, None] * inputs + (1 - share[..., None, None]) * inputs[::-1]
    with autograd.record():
        logits = twin(mx.nd.array(inputs))
        loss = -(mx.nd.log_softmax(logits) * mx.nd.array(targets)).sum()
    loss.backward()

    steps = -(-240 // (14 * world))
    rate = 0.01 + (0.1 * 14 * world / 256 - 0.01) / steps
    assert trainer.updater.optimizer.learning_rate == pytest.approx(rate)
    global_batch = world * len(labels)
    for key, parameter in twin._collect_params_with_prefix().items():
        if parameter.grad_req == "null":
            continue
        gradient = parameter.grad().asnumpy() * world / global_batch
        if key.endswith("weight"):
            gradient = gradient + 0.05 * before[key]
        expected = -rate * (1 + 0.8) * gradient  # Nesterov's first step: momentum begins at 0
        found = net._collect_params_with_prefix()[key].data().asnumpy() - before[key]
        # Rounding, enlarged by batch statistics over few pixels; a wrong term is of order 1.
        error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-7)
        assert error < 0.03, (key, error)


def test_dropblock_rises_linearly_and_rests_in_validation(make, monkeypatch):
    with make(dropblock_prob=0.2) as trainer:
        block = trainer.task.network.layer4[0].dropblock3
        batch = next(iter(trainer.data.epoch(0)))
        for step in (1, 2, 3):
            trainer._train_step(batch, len(batch.labels), step)
            assert block.drop_prob == pytest.approx(0.2 * step / trainer.schedule.total_steps)
        seen, logits = [], trainer.task._logits
        monkeypatch.setattr(trainer.task, "_logits",
                            lambda pixels: seen.append(block._left_out) or logits(pixels))
        trainer.validation.figures()
    assert len(seen) == len(trainer.task.validation)
    assert all(seen)


def test_only_weights_decay_unless_told(make):
    for wd_all in (False, True):
        with make(wd_all=wd_all) as trainer:
            net = trainer.task.network
        decaying = {name for name, parameter in net.collect_params().items()
                    if parameter.wd_mult > 0 and parameter.grad_req != "null"}
        trainable = {name for name, parameter in net.collect_params().items()
                     if parameter.grad_req != "null"}
        weights = {name for name in trainable
                   if name.endswith("weight") and ("conv" in name or "dense" in name)}
        assert decaying == (trainable if wd_all else weights)


def test_a_diverged_run_says_so_and_leaves_nothing(make, monkeypatch, tmp_path):
    def break_loss(trainer: Trainer) -> None:
        monkeypatch.setattr(trainer.task, "_loss",
                            lambda logits, _: mx.nd.array([np.nan, 1.0]) + 0 * logits[:2, 0])

    with pytest.raises(InputError, match=r"loss is NaN or infinite for 1 sample at step 1 .*first "
                                         r"such tensor: the loss itself: the run diverged"):
        train_with(make(), break_loss)
    assert not (tmp_path / "run").exists()


def test_a_fault_in_validation_keeps_the_epoch(make, monkeypatch, tmp_path):
    def break_validation(trainer: Trainer) -> None:
        monkeypatch.setattr(trainer, "_train_epoch", lambda: None)
        monkeypatch.setattr(trainer.task, "evaluator",
                            lambda: (_ for _ in ()).throw(InputError("a bad record")))

    with pytest.raises(InputError, match="a bad record"):
        train_with(make(), break_validation)
    assert (tmp_path / "run" / "last.params").is_file()


@pytest.mark.parametrize(("frequency", "validated"), [(1, [1, 2, 3]), (2, [2, 3]), (0, [3])])
def test_validation_is_due_every_so_often_and_at_the_end(frequency, validated, make, monkeypatch,
                                                         tmp_path):
    with make(epochs=3, eval_frequency=frequency) as trainer:
        seen, found = [], []
        monkeypatch.setattr(trainer, "_train_epoch",
                            lambda: seen.append(trainer.progress.position.epoch))
        evaluator = trainer.task.evaluator
        monkeypatch.setattr(trainer.task, "evaluator",
                            lambda: found.append(len(seen)) or evaluator())
        trainer.train()
    assert found == validated
