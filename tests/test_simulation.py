"""64 logical ranks step through an epoch: real `Sampling` objects, counted with NumPy sets."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from gluon_resnest import progress_bar
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import SHARDINGS, Leg, Sampling
from gluon_resnest.errors import InputError
from gluon_resnest.planning import simulation
from gluon_resnest.planning.simulation import SimulatedEpoch, simulate_epoch, simulate_epochs
from gluon_resnest.tasks.classification.planning import plan
from gluon_resnest.tasks.classification.recipe import IMAGENET_TRAIN_IMAGES, recipe_of

IMAGENET = IMAGENET_TRAIN_IMAGES

# Images, batch of a rank, ranks: ImageNet as published; primes; one image more or less than whole
# batches; a file that leaves one rank one image short; and fewer images than one global batch.
LENGTHS = [
    (IMAGENET, 128, 64), (100_003, 31, 64), (64 * 128 * 5 + 1, 128, 64),
    (64 * 128 * 5 - 1, 128, 64), (64 * 157, 10, 64), (4_099, 7, 63), (199, 8, 64),
]
sharded = pytest.mark.parametrize("sharding", SHARDINGS)


class Cluster:
    """Ranks that each have their own `Sampling` and walk through an epoch together, step by step.

    What they read is kept as it comes; nothing is taken from the code under test but each rank's
    own list of batches.
    """

    def __init__(self, length: int, seed: int, sharding: str, epoch: int) -> None:
        self.length, self.epoch, self.seed, self.sharding = length, epoch, seed, sharding
        self.read: list[np.ndarray] = []  # positions of a step, all ranks together
        self.sizes: list[list[int]] = []  # images of each rank in a step
        self.weights: list[float] = []  # sum over a step's images of the gradient's weights
        self.saved = json.dumps(Position(epoch).as_dict(Sampling(length, seed, sharding)))

    def run(self, ranks: int, batch: int, steps: int | None = None) -> None:
        """Start `ranks` processes from the saved position; stop after `steps` and save."""
        samplings = [Sampling(self.length, self.seed, self.sharding) for _ in range(ranks)]
        positions = [Position.from_dict(json.loads(self.saved), sampling)
                     for sampling in samplings]
        dealt = [sampling.batches(self.epoch, batch, rank, ranks, positions[0].legs)
                 for rank, sampling in enumerate(samplings)]
        totals = [samplings[rank].sizes(batch, ranks, positions[rank].legs)
                  for rank in (0, ranks - 1)]
        assert np.array_equal(*totals)
        lengths = {len(batches) for batches in dealt}
        assert lengths == {len(totals[0])}  # equal steps for all
        steps = min(lengths) if steps is None else min(steps, *lengths)
        for step in range(steps):
            parts = [batches[step] for batches in dealt]
            self.read.append(np.concatenate(parts))
            self.sizes.append([len(part) for part in parts])
            # Each rank's gradient is a sum over its images; Horovod adds the ranks up and divides
            # by their number, the trainer by images / ranks.
            weight = 1 / ranks / (totals[0][step] / ranks)
            self.weights.append(weight * sum(self.sizes[-1]))
        moved = positions[0].advance(samplings[0], batch, ranks, steps)
        self.saved = json.dumps(moved.as_dict(samplings[0]))

    def seen(self) -> np.ndarray:
        return np.concatenate(self.read)


def assert_each_once(cluster: Cluster) -> None:
    seen = np.sort(cluster.seen())
    assert seen.size == cluster.length
    assert np.array_equal(seen, np.arange(cluster.length))
    assert np.allclose(cluster.weights, 1, rtol=1e-12, atol=0)


def assert_even(sizes: list[list[int]], batch: int) -> None:
    """Of one leg: the sizes of all its batches, of all ranks, differ by at most one."""
    table = np.array(sizes)
    assert 1 <= table.min() <= table.max() <= batch
    assert np.ptp(table) <= 1


@sharded
@pytest.mark.parametrize(("length", "batch", "ranks"), LENGTHS)
def test_an_epoch_of_64_ranks(length: int, batch: int, ranks: int, sharding: str, rng) -> None:
    for epoch in rng.integers(270, size=1 if length == IMAGENET else 2).tolist():
        cluster = Cluster(length, int(rng.integers(1000)), sharding, epoch)
        cluster.run(ranks, batch)
        assert_each_once(cluster)
        assert_even(cluster.sizes, batch)
        assert len(cluster.sizes) == math.ceil(math.ceil(length / ranks) / batch)


# (Each rank of a global deal shuffles the whole file: a quarter of ImageNet is enough for that.)
@pytest.mark.parametrize(("length", "batch", "history", "sharding"), [
    (IMAGENET, 128, (64, 48, 64), "fixed"), (IMAGENET // 4, 128, (64, 48, 64), "global"),
    *((*row, sharding) for sharding in SHARDINGS for row in [
        (100_003, 31, (64, 48, 64, 64, 7, 48)), (64 * 128 * 5 + 1, 128, (64, 48, 64, 1, 64)),
        (64 * 157, 10, (64, 48, 64, 63, 64))])])
def test_interruptions_with_other_numbers_of_ranks(
    length: int, batch: int, history: tuple[int, ...], sharding: str, rng
) -> None:
    """64 -> 48 -> 64 ranks, and further, at random steps; the last go on to the end."""
    cluster = Cluster(length, int(rng.integers(1000)), sharding, int(rng.integers(270)))
    for ranks in history[:-1]:
        left = length - sum(map(len, cluster.read))
        before = len(cluster.sizes)
        steps = int(rng.integers(1, max(2, math.ceil(left / (ranks * batch)) // 2)))
        print(f"{ranks} ranks take {steps} steps with {left} images left")
        cluster.run(ranks, batch, steps)
        assert_even(cluster.sizes[before:], batch)
    done = len(cluster.read)
    remaining = np.setdiff1d(np.arange(length), np.concatenate(cluster.read))
    cluster.run(history[-1], batch)
    assert_even(cluster.sizes[done:], batch)
    assert np.array_equal(np.sort(np.concatenate(cluster.read[done:])), remaining)
    assert_each_once(cluster)


@sharded
def test_an_interruption_at_each_of_the_first_steps(sharding: str) -> None:
    """The same ranks go on as if nothing had been: bit for bit."""
    whole = Cluster(20_011, 5, sharding, 3)
    whole.run(64, 32)
    for stop in range(len(whole.read) + 1):
        cluster = Cluster(20_011, 5, sharding, 3)
        cluster.run(64, 32, stop)
        cluster.run(64, 32)
        assert len(cluster.read) == len(whole.read)
        assert all(map(np.array_equal, cluster.read, whole.read))


@pytest.mark.parametrize(("model", "ranks"), [
    ("resnest14", 8), ("resnest50", 64), ("resnest101", 64), ("resnest269", 64),
    ("resnest50", 48), ("resnest50", 1024)])
def test_learning_rate_of_every_step_is_the_papers(model: str, ranks: int) -> None:
    """eta = B / 256 * 0.1, 5 epochs linearly from 0, then half a cosine; 270 epochs in all."""
    recipe = recipe_of(model)
    steps = math.ceil(math.ceil(IMAGENET / ranks) / recipe.batch_size)
    peak = recipe.batch_size * ranks / 256 * 0.1
    schedule = recipe.schedule(IMAGENET, ranks)
    step = np.arange(0, 270 * steps + 1)
    warm, total = 5 * steps, 270 * steps
    cosine = peak / 2 * (1 + np.cos(np.pi * (step - warm) / (total - warm)))
    expected = np.where(step < warm, peak * step / warm, cosine)
    found = np.array([schedule(int(number)) for number in step])
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert found.argmax() == warm


# ---- the simulation that a plan runs, against the same counts ----

@sharded
@pytest.mark.parametrize(("length", "batch", "ranks"), [
    (100_003, 31, 64), (64 * 128 * 5 - 1, 128, 64), (199, 8, 64), (1000, 3, 1)])
def test_simulation_counts_what_the_ranks_read(length, batch, ranks, sharding) -> None:
    cluster = Cluster(length, 7, sharding, 1)
    cluster.run(ranks, batch)
    table = np.array(cluster.sizes)
    assert simulate_epoch(Sampling(length, 7, sharding), 1, batch, ranks) == SimulatedEpoch(
        epoch=1, ranks=ranks, steps=len(table), equal_steps=True, each_image_once=True,
        weights_sum_to_one=True, smallest_batch=table.min(), largest_batch=table.max(),
        smallest_rank=table.sum(axis=0).min(), largest_rank=table.sum(axis=0).max())


@sharded
def test_a_thousand_ranks_take_seconds(sharding: str) -> None:
    started = time.process_time()
    first, *more = simulate_epochs(Sampling(IMAGENET, 0, sharding), 128, 1024, 270)
    assert time.process_time() - started < 6
    assert first.is_right
    assert first.steps == 10
    assert [epoch.epoch for epoch in more] == ([] if sharding == "fixed" else [1])


class Broken(Sampling):
    """Deals as `fault` says."""

    fault = ""

    def batches(self, epoch, batch_size, rank, world, legs=()):
        batches = super().batches(epoch, batch_size, rank, world, legs)
        if rank == world - 1:
            if self.fault == "twice":
                batches[0] = batches[0].copy()
                batches[0][0] = batches[1][0]
            elif self.fault == "drop":
                batches[-1] = batches[-1][:-1]
            elif self.fault == "step":
                batches[-2:] = [np.concatenate(batches[-2:])]
            elif self.fault == "outside":
                batches[0] = np.append(batches[0][1:], self.length)
            elif self.fault == "move":
                batches[:2] = [batches[0][:-1], np.append(batches[1], batches[0][-1])]
        return batches


@pytest.mark.parametrize(("fault", "shows"), [
    ("twice", "each_image_once=False"), ("drop", "each_image_once=False"),
    ("outside", "each_image_once=False"), ("step", "equal_steps=False"),
    ("move", "weights_sum_to_one=False")])
def test_a_wrong_deal_is_an_error(fault: str, shows: str, monkeypatch) -> None:
    monkeypatch.setattr(Broken, "fault", fault)
    with pytest.raises(RuntimeError, match=shows):
        simulate_epochs(Broken(1000, 0), 10, 8, 5)
    monkeypatch.setattr(Broken, "fault", "")
    assert simulate_epochs(Broken(1000, 0), 10, 8, 5)[0].is_right


def test_too_many_ranks_are_bad_input() -> None:
    with pytest.raises(InputError, match="100 training images are too few for 1024 workers"):
        simulate_epochs(Sampling(100), 128, 1024, 1)


def test_progress_is_on_standard_error_and_late(capsys, monkeypatch) -> None:
    simulate_epochs(Sampling(5000), 8, 64, 1, progress=True)
    assert capsys.readouterr() == ("", "")  # it was done before a line was due
    monkeypatch.setattr(progress_bar, "EVERY", 0)
    simulate_epochs(Sampling(5000), 8, 64, 1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "dealing epoch 0 to 64 ranks: rank 64/64, " in err


def test_shared_permutation_is_the_one_that_each_rank_makes() -> None:
    for sharding in SHARDINGS:
        plain = Sampling(997, 3, sharding)
        shared = simulation._sharing(plain)
        for epoch, rank, legs in ((0, 0, ()), (2, 3, ()), (2, 1, (Leg(6, 8, 2),))):
            for expected, found in zip(plain.batches(epoch, 16, rank, 4, legs),
                                       shared.batches(epoch, 16, rank, 4, legs)):
                assert np.array_equal(expected, found)


# ---- the plan ----

def test_a_proven_plan_of_the_published_run() -> None:
    recipe = recipe_of("resnest50")
    found = plan(recipe, IMAGENET, 64, (0, 785), prove=True, record_bytes=64 * 10**9)
    usual = plan(recipe, IMAGENET, 64, (0, 785))
    assert {name: found[name] for name in usual} == usual
    added = ["all_reduce", "compute", "data", "schedule", "simulation", "worker_memory"]
    assert sorted(set(found) - set(usual)) == added
    assert json.loads(json.dumps(found)) == found
    assert found["simulation"] == {
        "simulated_epochs": [0], "ranks": 64, "each_image_once": True, "equal_steps": True,
        "gradient_weights_sum_to_one": True, "steps": 157, "smallest_batch": 127,
        "largest_batch": 128, "smallest_rank_images": 20_018, "largest_rank_images": 20_019}
    assert {name: tuple(point.values()) for name, point in found["schedule"].items()} == {
        "before_the_first": (0, 0.0), "first": (1, pytest.approx(3.2 / 785)),
        "end_of_warmup": (785, pytest.approx(3.2)), "half": (21_195, pytest.approx(1.64741, 1e-5)),
        "last_but_one": (42_389, pytest.approx(0, abs=1e-8)), "last": (42_390, 0.0)}
    for dtype, width in (("float32", 4), ("float16", 2)):
        bytes_ = found["all_reduce"][dtype]
        given = width * 27_483_240
        assert bytes_["given_per_step"] == given
        assert bytes_["given_in_all"] == given * 157 * 270
        assert bytes_["sent_per_epoch"] == pytest.approx(given * 2 * 63 / 64 * 157, rel=1e-8)
    assert found["all_reduce"]["dtype"] == "float32"
    # Multiply-adds of a forward pass as counted on GluonCV's network (test_cost.py).
    assert found["compute"]["multiply_adds_of_all"] == pytest.approx(
        3 * 5.371e9 * IMAGENET * 270, rel=1e-3)
    assert found["data"]["read_per_worker_and_epoch"] == pytest.approx(10**9, rel=1e-4)


def test_a_plan_for_one_worker_exchanges_nothing() -> None:
    recipe = recipe_of("resnest14", sharding="global", fp16_allreduce=True)
    found = plan(recipe, 5000, 1, prove=True, record_bytes=1000)
    assert found["all_reduce"]["dtype"] == "float16"
    assert found["all_reduce"]["float16"]["sent_in_all"] == 0
    assert found["simulation"]["simulated_epochs"] == [0, 1]
    assert found["data"]["read_per_worker_at_all"] == 1000


def test_a_plan_that_would_be_wrong_is_an_error(monkeypatch) -> None:
    batches = Sampling.batches
    monkeypatch.setattr(Sampling, "batches", lambda *arguments: batches(*arguments)[1:])
    with pytest.raises(RuntimeError, match="not dealt as they must be"):
        plan(recipe_of("resnest14"), 5000, 4, prove=True)
