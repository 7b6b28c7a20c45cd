"""The engine on a task that is no classifier: what training/ promises to any task."""

from __future__ import annotations

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from jobs import Job, checkpoints, records, run_to_end
from mxnet import gluon
from toy_task import Recipe, Regression

from gluon_resnest.planning.plan import plan_of
from gluon_resnest.planning.planned import Planned
from gluon_resnest.training.updater import Updater
from gluon_resnest.workers import Workers

EPOCHS = 3
EXACT = {"MXNET_ENGINE_TYPE": "NaiveEngine"}


def arguments(save_dir: Path) -> list:
    return ["tests/programs/train_toy.py", EPOCHS, "--save-dir", save_dir]


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, tmp_path_factory):
    """Number of ranks, and a run that was never interrupted."""
    save_dir = tmp_path_factory.mktemp("toy") / "run"
    return request.param, save_dir, run_to_end(*arguments(save_dir), ranks=request.param, **EXACT)


@pytest.mark.slow
def test_it_learns_validates_and_is_logged(whole):
    ranks, save_dir, job = whole
    steps, validations = records(save_dir, "step"), records(save_dir, "validation")
    count = EPOCHS * -(-90 // (4 * ranks))
    assert [record["step"] for record in steps] == list(range(1, count + 1))
    assert steps[-1]["loss"] < steps[0]["loss"] / 20
    # What the loss consists of, beside it: a mean of |e| is at most the root of that of e^2.
    assert all(0 < record["absolute"] <= record["loss"] ** 0.5 * 1.0001 for record in steps)
    errors = [-record["negative_error"] for record in validations]
    assert errors[-1] < errors[0] / 2
    assert len(records(save_dir, "validation_ema")) == len(validations) == EPOCHS
    assert f"epoch {EPOCHS}: validation error {-errors[-1]:.4f}" in job.output
    result = json.loads((save_dir / "result.json").read_text())
    assert result["best"] == {"negative_error": -min(errors)}
    for name in ("best.params", "best-ema.params", "last.params"):
        assert (save_dir / name).is_file()


@pytest.mark.slow
def test_killed_it_goes_on_bit_equal(whole, tmp_path):
    ranks, uninterrupted, _ = whole
    save_dir = tmp_path / "run"
    for moment in (5, 13):  # checkpoints are of steps 4, 8, 12 ...; Adam counts its steps
        with Job(*arguments(save_dir), ranks=ranks, **EXACT) as job:
            job.wait_for_step(moment)
            job.wait_until(lambda: checkpoints(save_dir), "a checkpoint")
            assert job.process.poll() is None
            job.kill()
        assert 0 < checkpoints(save_dir)[-1] < EPOCHS * 12
    job = run_to_end(*arguments(save_dir), ranks=ranks, **EXACT)
    assert "going on with" in job.output
    last = f"checkpoints/step-{checkpoints(uninterrupted)[-1]:08d}"
    names = sorted(path.name for path in (uninterrupted / last).glob("*.params"))
    assert {"weights.params", "optimizer.params", "ema.params"} <= set(names)
    for name in (*(f"{last}/{name}" for name in names), "best.params", "best-ema.params"):
        assert (save_dir / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    for event in ("step", "validation", "validation_ema"):
        timed = ("time", "images_per_second", "images_per_second_per_device", "step_seconds",
                 "data_seconds", "peak_share", "memory_mb", "allreduce_seconds")
        ours, theirs = ([{name: value for name, value in record.items() if name not in timed}
                         for record in records(run, event)] for run in (save_dir, uninterrupted))
        assert ours == theirs


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(whole):
    ranks, save_dir, _ = whole
    if ranks == 1:
        job = run_to_end(*arguments(save_dir), ranks=ranks, **EXACT)
        assert "is complete: nothing is left to do" in job.output
        assert "best -" in job.output


def test_it_is_planned():
    task = Regression(Recipe(EPOCHS), Workers())
    planned = Planned(task.recipe, task.training.sampling, lambda world: task.schedule,
                      task.network, sample=(5,), multiply_adds=5, optimizer_arrays=2)
    found = plan_of(planned, world_size=2, lr_at=(3,), prove=True)
    assert (found["steps_per_epoch"], found["parameters"], found["lr"]["3"]) == (12, 6, 0.3)
    assert found["simulation"]["each_image_once"]
    memory = found["worker_memory"]["cpu"]
    assert memory["momentum"] == 2 * memory["gradients"] == 2 * 4 * 6
    assert found["compute"]["multiply_adds_of_all"] == 3 * 5 * 90 * EPOCHS


def test_all_ranks_compute_in_as_many_parts():
    """One that has a sample more than another must not run the network once more."""
    net = gluon.nn.Dense(1, in_units=5)
    net.initialize()
    calls = []

    def losses(inputs, targets):
        calls.append(len(inputs[0]))
        return {"loss": net(inputs[0]).reshape(-1)}

    updater = Updater(net, losses, Workers().trainer(net.collect_params(), mx.optimizer.SGD()),
                      accumulate=4)
    for samples in (2, 3):  # of two ranks in one step
        found, backward = updater.forward([mx.nd.ones((samples, 5))], [], smallest_batch=2)
        backward()
        assert found["loss"].shape == (samples,)
    assert calls == [1, 1, 1, 2]


def test_the_optimizers_counts_are_kept():
    net = gluon.nn.Dense(1, in_units=5)
    net.initialize()

    def updater() -> Updater:
        return Updater(net, lambda inputs, targets: {"loss": net(inputs[0]).reshape(-1)},
                       Workers().trainer(net.collect_params(), mx.optimizer.Adam()))

    def step(of: Updater) -> np.ndarray:
        of.forward([mx.nd.ones((2, 5))], [], 2)[1]()
        of.update(0.1, 2)
        return net.weight.data().asnumpy()

    first = updater()
    assert first.updates() == 0
    for _ in range(3):
        step(first)
    assert first.updates() == 3
    second = updater()
    states, weights = first.states(), net.weight.data().copy()
    for name, array in second.states().items():
        array[:] = states[name]
    second.set_updates(first.updates())
    expected = step(first)
    net.weight.set_data(weights)
    assert np.array_equal(step(second), expected)
    assert second.updates() == 4
    second.set_updates({"weight": 9})
    assert second.updates() == {"weight": 9, "bias": 0}
