"""What a step does beside the plain update: parts, averages, teachers, broken numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import mxnet as mx
import numpy as np
import pytest
from conftest import DIGIT_CLASSES, randomize
from jobs import checkpoints, records
from mxnet import autograd, gluon
from trainers import begun, train_with

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.tasks.classification.distillation import DistillationLoss, teacher_network
from gluon_resnest.tasks.classification.recipe import recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, Source
from gluon_resnest.training import non_finite
from gluon_resnest.training.ema import MovingAverage
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.trainer import Trainer
from gluon_resnest.training.watchdog import HUNG, Watchdog
from gluon_resnest.workers import Workers


def tiny_network(rng) -> gluon.nn.HybridSequential:
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Conv2D(4, 3, in_channels=3, use_bias=False), gluon.nn.BatchNorm(in_channels=4),
            gluon.nn.Activation("relu"), gluon.nn.Dense(5, in_units=4 * 6 * 6))
    net.initialize()
    randomize(net, rng)
    net.hybridize(static_alloc=True)
    return net


def test_moving_average_by_its_formula(rng):
    net = tiny_network(rng)
    average = MovingAverage(net, 0.6)
    parameters = net._collect_params_with_prefix()
    expected = {name: parameter.data().asnumpy().astype(np.float64)
                for name, parameter in parameters.items()}
    for step in range(1, 9):
        for parameter in parameters.values():
            parameter.set_data(mx.nd.array(rng.standard_normal(parameter.shape)))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, parameter in parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.data().asnumpy()
    weights = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    x = mx.nd.array(rng.standard_normal((2, 3, 8, 8)))
    before = net(x).asnumpy()
    with average.in_place_of_weights():
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.data().asnumpy(), expected[name], atol=1e-6)
        assert np.abs(net(x).asnumpy() - before).max() > 1e-3
    for name, parameter in parameters.items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), weights[name])
    np.testing.assert_array_equal(net(x).asnumpy(), before)


@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_distillation_is_gluoncvs(hard_weight, temperature, rng):
    """Their loss takes the teacher's probabilities, as their script computes them."""
    from gluoncv.loss import DistillationSoftmaxCrossEntropyLoss

    logits, teacher = (mx.nd.array(3 * rng.standard_normal((6, 7))) for _ in range(2))
    targets = mx.nd.array(rng.dirichlet(np.ones(7), size=6))
    theirs = DistillationSoftmaxCrossEntropyLoss(temperature, hard_weight, sparse_label=False)
    ours = DistillationLoss(temperature, hard_weight)
    values, gradients = [], []
    for loss, third in ((theirs, mx.nd.softmax(teacher / temperature)), (ours, teacher)):
        logits.attach_grad()
        with autograd.record():
            value = loss(logits, targets, third)
        value.backward()
        values.append(value.asnumpy())
        gradients.append(logits.grad.asnumpy())
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_a_teacher_learns_nothing(tmp_path):
    net = gluon_resnest.get_model("resnest14", classes=5)
    net.initialize()
    randomize(net, 3)
    net.save_parameters(str(tmp_path / "teacher.params"))
    teacher = teacher_network("resnest14", tmp_path / "teacher.params", 5, mx.cpu())
    assert {parameter.grad_req for parameter in teacher.collect_params().values()} == {"null"}
    x = mx.nd.random.uniform(shape=(2, 3, 32, 32))
    np.testing.assert_allclose(teacher(x).asnumpy(), net(x).asnumpy(), atol=1e-5)


# ---- values that are NaN or infinite ----


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda net, x: net[0].weight.set_data(net[0].weight.data() * np.nan), "weights 0.weight"),
    (lambda net, x: x.__setitem__(1, np.inf), "input batch"),
    (lambda net, x: net[0].weight.set_data(net[0].weight.data() * 3e38), "output of 0 (Conv2D)"),
    (lambda net, x: net[3].weight.set_data(net[3].weight.data() * 0 + 3e38),
     "output of 3 (Dense)"),
    (lambda net, x: None, None),
], ids=["weights", "input", "first layer", "last layer", "nothing"])
def test_the_first_broken_tensor(spoil, words, rng):
    net = tiny_network(rng)
    x = mx.nd.array(1 + rng.random((2, 3, 8, 8)))
    spoil(net, x)
    assert non_finite.first_offender(net, [x], lambda: net(x), Workers()) == words
    assert net._active  # it is a graph again


@pytest.fixture
def make(digits, tmp_path):
    @contextmanager
    def make(policy: str, log_interval: int = 1, **overrides) -> Iterator[Trainer]:
        recipe = recipe_of("resnest14", classes=DIGIT_CLASSES, train_size=32, batch_size=24,
                           epochs=1, warmup_epochs=0, auto_aug=False, **overrides)
        task = ClassificationTask(recipe, Source(digits / "train.rec", no_cuda=True), Workers())
        options = RunOptions(tmp_path / "run", log_interval=log_interval, nan_policy=policy,
                             checkpoint_steps=3, tensorboard=False)
        with begun(task, options) as trainer:
            yield trainer
    return make


def break_steps(trainer: Trainer, monkeypatch, broken, how: str):
    """Let the loss, or a gradient, of some steps be NaN; snapshots of the arrays before each."""
    seen = {}
    forward = trainer.updater.forward

    def spoilt(*batch):
        step = trainer.progress.step
        seen[step] = trainer.arrays.copy()
        losses, backward = forward(*batch)
        if step not in broken:
            return losses, backward
        if how == "loss":
            return {"loss": losses["loss"] * np.nan}, backward

        def spoilt_backward() -> None:
            backward()
            trainer.task.network.layer2[0].conv1.weight.grad()[0] = np.inf
        return losses, spoilt_backward

    monkeypatch.setattr(trainer.updater, "forward", spoilt)
    return seen


def assert_same(one, other) -> None:
    assert {key: set(arrays) for key, arrays in one.items()} == {
        key: set(arrays) for key, arrays in other.items()}
    for key, arrays in one.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[key][name], err_msg=f"{key} {name}")


@pytest.mark.parametrize(("how", "words"), [
    ("loss", "the loss itself"), ("gradient", "gradient of layer2.0.conv1.weight")])
def test_skipped_steps_change_nothing(how, words, make, monkeypatch, tmp_path, capsys):
    with make("skip") as trainer:
        seen = break_steps(trainer, monkeypatch, {4, 7}, how)
        trainer.train()
    assert_same(seen[5], seen[4])
    assert_same(seen[8], seen[7])
    assert np.abs(seen[6]["weights"]["fc.weight"] - seen[5]["weights"]["fc.weight"]).max() > 0
    told = records(tmp_path / "run", "skipped_step")
    assert [(record["step"], record["tensor"]) for record in told] == [(4, words), (7, words)]
    assert trainer.progress.skipped == 2
    assert capsys.readouterr().err.count("the step is skipped") == 2


def test_too_many_skips_in_a_row_end_the_run(make, monkeypatch):
    monkeypatch.setattr(non_finite, "MOST_SKIPS", 2)
    with pytest.raises(InputError, match=r"at step 6 .*for the 3th time in a row: the run div"):
        train_with(make("skip"),
                   lambda trainer: break_steps(trainer, monkeypatch, {2, 4, 5, 6}, "loss"))


def test_rollback_goes_back_to_the_checkpoint_and_on_with_the_next_images(
        make, monkeypatch, tmp_path):
    with make("rollback", ema=0.5) as trainer:
        seen = break_steps(trainer, monkeypatch, {5, 9}, "loss")
        trainer.train()
    assert_same(seen[6], seen[4])  # what step 3 left
    assert_same(seen[10], seen[7])
    told = records(tmp_path / "run", "rollback")
    assert [(record["step"], record["to_step"]) for record in told] == [(5, 3), (9, 6)]
    assert trainer.progress.step == 10  # of ten batches, each once


def test_broken_gradients_are_found_where_a_line_of_metrics_is_due(make, monkeypatch):
    with pytest.raises(InputError, match=r"a gradient is NaN or infinite at step 6 .*: gradient of"
                                         r" layer2.0.conv1.weight: the run diverged"):
        train_with(make("abort"),
                   lambda trainer: break_steps(trainer, monkeypatch, {6}, "gradient"))


def test_broken_weights_are_never_saved(make, monkeypatch, tmp_path):
    """Where no gradient is looked at, and the loss stays finite: ReLU makes 0 of NaN."""
    with pytest.raises(InputError, match=r"^\S+weight is no finite .* after step 6"):
        train_with(make("abort", log_interval=100),
                   lambda trainer: break_steps(trainer, monkeypatch, {5}, "gradient"))
    assert checkpoints(tmp_path / "run") == [3]


def test_amp_on_a_cpu_is_refused(make):
    with pytest.raises(InputError, match=r"--amp needs a GPU: MXNet's CPU kernels have no float16"):
        with make("abort", amp=True):
            pass


# ---- the watchdog ----


def test_a_watchdog_barks_once_nothing_is_finished(capsys):
    ended = []
    with Watchdog(1.5, "rank 3 of 4", end=ended.append) as watchdog:
        watchdog.beat("step 1")
        watchdog._closed.wait(2.5)
        assert not ended  # the first interval is nobody's measure
        watchdog.beat("step 2")
        watchdog._thread.join(timeout=30)
    assert ended == [HUNG]
    said = capsys.readouterr().err
    assert "rank 3 of 4 has finished nothing for" in said
    assert "(last: step 2)" in said


def test_a_slow_run_is_no_hung_one():
    watchdog = Watchdog(10, "the run", end=lambda code: pytest.fail("it barked"))
    for number in range(3):
        watchdog.beat(f"step {number}")
        watchdog._looks = 60  # seconds
    watchdog.beat("step 3")
    assert watchdog.limit == 300
    assert math.isclose(Watchdog(10, "").limit, 10)
