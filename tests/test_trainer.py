"""One update of the trainer, recomputed by formula; and how faults end a run."""

from __future__ import annotations

from dataclasses import replace

import mxnet as mx
import numpy as np
import pytest
from conftest import DIGIT_CLASSES
from mxnet import autograd

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize
from gluon_resnest.tasks.classification import preparation
from gluon_resnest.tasks.classification.build import RunOptions
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.training import trainer as training
from gluon_resnest.training.trainer import Trainer
from gluon_resnest.workers import Workers


class OneOf(Workers):
    """Rank 0 of `size` workers whose gradients nobody adds up."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.fixture
def make(digits, tmp_path):
    def make(world: int = 1, **overrides) -> Trainer:
        recipe = recipe_of("resnest14", classes=DIGIT_CLASSES, train_size=32, batch_size=14,
                           epochs=2, warmup_epochs=1, warmup_lr=0.01, auto_aug=False, **overrides)
        options = RunOptions(digits / "train.rec", tmp_path / "run", rec_val=digits / "val.rec",
                             no_cuda=True)
        return Trainer(recipe, options, OneOf(world))
    return make


def stop_after_setup(trainer: Trainer, monkeypatch) -> None:
    """Let `run` do everything up to its first epoch."""
    monkeypatch.setattr(trainer, "_train_epoch", lambda: (_ for _ in ()).throw(EOFError))
    with pytest.raises(EOFError):
        trainer.run()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("mixup", ["sample", "batch", None])
def test_an_update_by_its_formula(world, mixup, make, monkeypatch):
    """Smoothed and mixed targets, mean over the global batch, decay of weights alone, NAG."""
    lambdas = {"mixup_alpha": 0.2, "mixup_lambda": mixup} if mixup else {"mixup_alpha": 0.0}
    trainer = make(world, wd=0.05, momentum=0.8, **lambdas)
    stop_after_setup(trainer, monkeypatch)
    images, labels = next(iter(trainer.loader.epoch(0)))
    twin = gluon_resnest.get_model("resnest14", classes=DIGIT_CLASSES, last_gamma=True)
    twin.initialize()
    before = {key: parameter.data().asnumpy()
              for key, parameter in trainer.net._collect_params_with_prefix().items()}
    for key, parameter in twin._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(before[key]))
    drawn = []
    draw = preparation.draw_lambdas
    monkeypatch.setattr(preparation, "draw_lambdas", lambda *a: drawn.append(draw(*a)) or drawn[0])
    trainer._train_step(images, labels, world * len(labels), 1)

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
        found = trainer.net._collect_params_with_prefix()[key].data().asnumpy() - before[key]
        # Rounding, enlarged by batch statistics over few pixels; a wrong term is of order 1.
        error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-7)
        assert error < 0.03, (key, error)


def test_dropblock_rises_linearly_and_rests_in_validation(make, monkeypatch):
    trainer = make(dropblock_prob=0.2)
    stop_after_setup(trainer, monkeypatch)
    block = trainer.net.layer4[0].dropblock3
    images, labels = next(iter(trainer.loader.epoch(0)))
    for step in (1, 2, 3):
        trainer._train_step(images, labels, len(labels), step)
        assert block.drop_prob == pytest.approx(0.2 * step / trainer.schedule.total_steps)
    seen = []
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: seen.append(block._left_out))
    trainer._validate()
    assert seen == [True]


def test_only_weights_decay_unless_told(make):
    for wd_all in (False, True):
        net = make(wd_all=wd_all).net
        decaying = {name for name, parameter in net.collect_params().items()
                    if parameter.wd_mult > 0 and parameter.grad_req != "null"}
        trainable = {name for name, parameter in net.collect_params().items()
                     if parameter.grad_req != "null"}
        weights = {name for name in trainable
                   if name.endswith("weight") and ("conv" in name or "dense" in name)}
        assert decaying == (trainable if wd_all else weights)


def test_a_diverged_run_says_so_and_leaves_nothing(make, monkeypatch, tmp_path):
    trainer = make()
    monkeypatch.setattr(trainer.updater, "loss",
                        lambda logits, _: mx.nd.array([np.nan, 1.0]) + 0 * logits[:2, 0])
    with pytest.raises(InputError, match=r"the loss of 1 images is no finite number at step 1 .*"
                                         r"first such tensor: the loss itself: the run diverged"):
        trainer.run()
    assert not (tmp_path / "run").exists()


def test_a_fault_in_validation_keeps_the_epoch(make, monkeypatch, tmp_path):
    trainer = make()
    monkeypatch.setattr(trainer, "_train_epoch", lambda: None)
    monkeypatch.setattr(trainer, "_validate",
                        lambda: (_ for _ in ()).throw(InputError("a bad record")))
    with pytest.raises(InputError, match="a bad record"):
        trainer.run()
    assert (tmp_path / "run" / "last.params").is_file()


@pytest.mark.parametrize(("frequency", "validated"), [(1, [1, 2, 3]), (2, [2, 3]), (0, [3])])
def test_validation_is_due_every_so_often_and_at_the_end(frequency, validated, make, monkeypatch,
                                                         tmp_path):
    trainer = make()
    trainer.recipe = replace(trainer.recipe, epochs=3)
    trainer.options = replace(trainer.options, eval_frequency=frequency)
    seen = []
    monkeypatch.setattr(trainer, "_train_epoch",
                        lambda: seen.append(trainer.progress.position.epoch))
    monkeypatch.setattr(training, "draw_learning_curve", lambda *_: None)
    validate = trainer._validate
    found = []
    monkeypatch.setattr(trainer, "_validate", lambda: found.append(len(seen)) or validate())
    trainer.run()
    assert found == validated
