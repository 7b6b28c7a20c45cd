"""Shards and batches, by their properties over a grid of sizes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gluon_resnest.data import sampling
from gluon_resnest.errors import InputError

IMAGENET = 1281167
GRID = [
    (length, batch, world)
    for length, batch, world in itertools.product(
        (1, 2, 7, 16, 97, 1000, 1797), (1, 2, 3, 8, 32, 100), (1, 2, 3, 5, 8)
    )
]
TRAINABLE = [
    (length, batch, world)
    for length, batch, world in GRID
    if length // world >= math.ceil(math.ceil(length / world) / batch)
]


@pytest.mark.parametrize(
    ("workers", "batch", "steps"), [(8, 128, 1252), (64, 128, 157), (64, 64, 313), (64, 32, 626)]
)
def test_steps_of_the_published_runs(workers: int, batch: int, steps: int) -> None:
    assert sampling.steps_per_epoch(IMAGENET, batch, workers) == steps


def test_shards_are_contiguous_even_and_complete() -> None:
    for length, _, world in GRID:
        shards = [sampling.shard_range(length, rank, world) for rank in range(world)]
        assert [i for start, stop in shards for i in range(start, stop)] == list(range(length))
        sizes = [stop - start for start, stop in shards]
        assert max(sizes) - min(sizes) <= 1


def test_an_epoch_has_every_image_once_in_even_batches() -> None:
    assert len(TRAINABLE) > 100
    for length, batch, world in TRAINABLE:
        steps = math.ceil(math.ceil(length / world) / batch)
        seen = []
        step_sizes = np.zeros(steps, dtype=int)
        for rank in range(world):
            batches = sampling.epoch_batches(length, batch, rank, world, epoch=3, seed=1)
            sizes = [len(positions) for positions in batches]
            assert len(batches) == steps
            assert 1 <= min(sizes) <= max(sizes) <= batch
            assert max(sizes) - min(sizes) <= 1
            assert sizes == sorted(sizes, reverse=True)
            step_sizes += sizes
            start, stop = rank * length // world, (rank + 1) * length // world
            assert all(start <= i < stop for positions in batches for i in positions)
            seen += np.concatenate(batches).tolist()
        assert sorted(seen) == list(range(length))
        assert sampling.global_batch_sizes(length, batch, world).tolist() == step_sizes.tolist()


def test_order_depends_on_seed_epoch_and_rank_alone() -> None:
    def order(**changed: int) -> list[int]:
        arguments = {"length": 400, "batch": 16, "rank": 0, "world": 1, "epoch": 0, "seed": 0}
        return np.concatenate(sampling.epoch_batches(**{**arguments, **changed})).tolist()

    assert order() == order()
    assert order() == order(batch=50)  # the batch cuts the order, it does not choose it
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert order(epoch=1) != order(seed=1)
    first = np.array(order(world=2, rank=0))
    second = np.array(order(world=2, rank=1)) - 200
    assert first.tolist() != second.tolist()


def test_every_place_in_an_epoch_is_equally_likely() -> None:
    """Chi-squared of where image 0 of 10 falls in 2,000 epochs: 9 degrees of freedom."""
    places = [
        np.concatenate(sampling.epoch_batches(10, 5, 0, 1, epoch, seed=0)).tolist().index(0)
        for epoch in range(2000)
    ]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200.0) ** 2 / 200).sum() < 27.9  # p = 0.001


@pytest.mark.parametrize(
    ("length", "batch", "world"), [(3, 4, 5), (7, 1, 2), (0, 4, 1)]
)
def test_too_few_images_are_refused_by_every_rank(length: int, batch: int, world: int) -> None:
    for rank in range(world):
        with pytest.raises((InputError, ValueError)) as caught:
            sampling.epoch_batches(length, batch, rank, world, epoch=0, seed=0)
        if length:
            assert isinstance(caught.value, InputError)
            assert f"{length} training images" in str(caught.value)
            assert f"--batch-size {batch}" in str(caught.value)


def test_evaluation_has_every_image_once_in_order() -> None:
    for length, batch, world in GRID:
        seen = []
        for rank in range(world):
            batches = sampling.evaluation_batches(length, batch, rank, world)
            assert all(1 <= len(positions) <= batch for positions in batches)
            assert all(len(positions) == batch for positions in batches[:-1])
            seen += [int(i) for positions in batches for i in positions]
        assert seen == list(range(length))


def test_one_worker_deals_all_of_imagenet() -> None:
    batches = sampling.epoch_batches(IMAGENET, 256, 0, 1, epoch=0, seed=0)
    assert sum(len(positions) for positions in batches) == IMAGENET
