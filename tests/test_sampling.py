"""Shards and batches, by their properties over a grid of sizes and against a plain dealer."""

from __future__ import annotations

import hashlib
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from gluon_resnest.data.loading import sampling
from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import SHARDINGS, Leg, Sampling
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
            batches = Sampling(length, seed=1).batches(3, batch, rank, world)
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
        assert Sampling(length).sizes(batch, world).tolist() == step_sizes.tolist()


def test_order_depends_on_seed_epoch_and_rank_alone() -> None:
    def order(**changed: int) -> list[int]:
        key = {"seed": 0, "epoch": 0, "batch_size": 16, "rank": 0, "world": 1, **changed}
        return np.concatenate(Sampling(400, key.pop("seed")).batches(**key)).tolist()

    assert order() == order()
    assert order() == order(batch_size=50)  # the batch cuts the order, it does not choose it
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert order(epoch=1) != order(seed=1)
    first = np.array(order(world=2, rank=0))
    second = np.array(order(world=2, rank=1)) - 200
    assert first.tolist() != second.tolist()


def test_every_place_in_an_epoch_is_equally_likely() -> None:
    """Chi-squared of where image 0 of 10 falls in 2,000 epochs: 9 degrees of freedom."""
    places = [
        np.concatenate(Sampling(10).batches(epoch, 5, 0, 1)).tolist().index(0)
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
            Sampling(length).batches(0, batch, rank, world)
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
    batches = Sampling(IMAGENET).batches(0, 256, 0, 1)
    assert sum(len(positions) for positions in batches) == IMAGENET


# An epoch as (workers, batch size, steps); the last leg goes on to the end.
HISTORIES = [
    ((4, 8, 7), (2, 8, 5), (1, 8, 999)),
    ((1, 8, 10), (3, 8, 999)),
    ((3, 16, 2), (3, 5, 4), (3, 16, 3), (2, 7, 999)),
    ((2, 8, 1), (5, 3, 1), (2, 8, 1), (5, 3, 1), (8, 2, 999)),
    ((8, 4, 3), (8, 4, 2), (1, 1, 30), (3, 9, 999)),
]
sharded = pytest.mark.parametrize("sharding", SHARDINGS)


def deal(settings: Sampling, epoch: int, history: tuple) -> list[list[list[list[int]]]]:
    """Positions by leg, step and rank, dealt with plain lists as the docstrings say."""
    def shuffled(numbers: list[int], *key: int) -> list[int]:
        return np.random.default_rng((settings.seed, epoch, *key, 1)).permutation(numbers).tolist()

    def evenly(numbers: list[int], parts: int) -> list[list[int]]:
        dealt = []
        for left in range(parts, 0, -1):
            size = math.ceil(len(numbers) / left)
            dealt.append(numbers[:size])
            numbers = numbers[size:]
        return dealt

    def contiguous(numbers: list[int], parts: int) -> list[list[int]]:
        return [numbers[i * len(numbers) // parts : (i + 1) * len(numbers) // parts]
                for i in range(parts)]

    legs, unseen = [], list(range(settings.length))
    if settings.sharding == "global":
        unseen = shuffled(unseen, 0)
    for number, (world, batch, steps) in enumerate(history):
        all_steps = math.ceil(len(unseen) / (world * batch))
        if settings.sharding == "global":
            leg = [contiguous(part, world) for part in evenly(unseen, all_steps)]
        else:
            key = [number] if number else []
            shards = [evenly(shuffled(shard, rank, *key), all_steps)
                      for rank, shard in enumerate(contiguous(unseen, world))]
            leg = [list(step) for step in zip(*shards)]
        legs.append(leg[:steps])
        seen = {i for step in legs[-1] for part in step for i in part}
        unseen = [i for i in unseen if i not in seen]
    return legs


def remainder(settings: Sampling, epoch: int, batch: int, world: int, legs=()) -> list:
    """Positions by step and rank that remain of an epoch."""
    ranks = [settings.batches(epoch, batch, rank, world, legs) for rank in range(world)]
    return [[part.tolist() for part in step] for step in zip(*ranks)]


@sharded
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("length", [97, 200, 1797])
def test_legs_read_what_a_plain_dealer_deals(length: int, history: tuple, sharding: str) -> None:
    settings = Sampling(length, seed=3, sharding=sharding)
    joined = [history[0]]
    for leg in history[1:]:  # legs with the same workers and batch are one
        same = leg[:2] == joined[-1][:2]
        joined[-1:] = [(*leg[:2], joined[-1][2] + leg[2])] if same else [joined[-1], leg]
    expected = deal(settings, 2, tuple(joined))
    position, read = Position(2), []
    for world, batch, steps in history:
        steps_left = remainder(settings, 2, batch, world, position.legs)
        sizes = settings.sizes(batch, world, position.legs)
        assert sizes.tolist() == [sum(map(len, step)) for step in steps_left]
        assert settings.steps(batch, world, position.legs) == len(steps_left) == len(sizes)
        assert sizes.sum() == length - sum(len(part) for step in read for part in step)
        parts = [len(part) for step in steps_left for part in step]
        assert not parts or 1 <= min(parts) <= max(parts) <= batch
        steps = min(steps, len(steps_left))
        read += steps_left[:steps]
        position = position.advance(settings, batch, world, steps)
    assert read == [step for leg in expected for step in leg]
    assert sorted(i for step in read for part in step for i in part) == list(range(length))
    assert position.steps == len(read)


@sharded
def test_every_image_once_in_even_parts(sharding: str) -> None:
    for length, batch, world in TRAINABLE:
        settings = Sampling(length, 1, sharding)
        steps = remainder(settings, 3, batch, world)
        assert len(steps) == math.ceil(length / (batch * world))
        sizes = [[len(part) for part in step] for step in steps]
        # Of one worker with fixed shards, of one step of all with a global permutation.
        for even in sizes if sharding == "global" else zip(*sizes):
            assert 1 <= min(even) <= max(even) <= min(batch, min(even) + 1)
        if sharding == "global":
            together = [sum(step) for step in sizes]
            assert max(together) - min(together) <= 1
        assert settings.sizes(batch, world).tolist() == [sum(step) for step in sizes]
        assert sorted(i for step in steps for part in step for i in part) == list(range(length))


def test_global_order_is_one_permutation_for_any_workers_and_batch() -> None:
    settings = Sampling(1000, seed=4, sharding="global")
    order = np.random.default_rng((4, 7, 0, 1)).permutation(1000).tolist()
    for batch, world in itertools.product((2, 7, 32, 250), (1, 2, 4, 5)):
        steps = remainder(settings, 7, batch, world)
        assert [i for step in steps for part in step for i in part] == order
    steps = [remainder(settings, 7, 32 // world, world) for world in (1, 2, 4, 8)]
    joined = [[[i for part in step for i in part] for step in one] for one in steps]
    assert joined[0] == joined[1] == joined[2] == joined[3]
    # Changes on the way leave the order as it is.
    rest = remainder(settings, 7, 9, 3, (Leg(4, 8, 5), Leg(2, 8, 3)))
    first = int(settings.sizes(8, 4)[:5].sum() + settings.sizes(8, 2, [Leg(4, 8, 5)])[:3].sum())
    assert [i for step in rest for part in step for i in part] == order[first:]


def test_one_worker_reads_the_same_order_with_both_shardings() -> None:
    fixed, dealt = (remainder(Sampling(300, 2, name), 5, 16, 1) for name in SHARDINGS)
    assert fixed == dealt


@sharded
@pytest.mark.parametrize(("world", "batch"), [(1, 16), (3, 8), (4, 5)])
def test_resumption_at_every_step_gives_the_same_remainder(
    world: int, batch: int, sharding: str
) -> None:
    settings = Sampling(203, 9, sharding)
    for start in (Position(1), Position(1).advance(settings, 7, 2, 4)):
        whole = remainder(settings, 1, batch, world, start.legs)
        sizes = settings.sizes(batch, world, start.legs).tolist()
        position = start
        for step in range(len(whole) + 1):
            saved = json.loads(json.dumps(position.as_dict(settings)))
            position = Position.from_dict(saved, settings)
            assert position.steps == start.steps + step
            assert remainder(settings, 1, batch, world, position.legs) == whole[step:]
            assert settings.sizes(batch, world, position.legs).tolist() == sizes[step:]
            assert settings.steps(batch, world, position.legs) == len(whole) - step
            if step < len(whole):
                position = position.advance(settings, batch, world)
        # With all seen, other workers have nothing left, however many they are.
        assert settings.steps(1, 64, position.legs) == 0
        assert settings.batches(1, 1, 63, 64, position.legs) == []
        assert settings.sizes(1, 64, position.legs).tolist() == []
        with pytest.raises(ValueError, match="beyond the end"):
            position.advance(settings, batch, world)
        assert position.next_epoch() == Position(2)


@sharded
def test_64_workers_share_imagenet(sharding: str) -> None:
    settings = Sampling(IMAGENET, sharding=sharding)
    legs = (Leg(64, 32, 300), Leg(48, 64, 100))
    for history in (), legs:
        seen = np.zeros(IMAGENET, dtype=np.int64)
        steps = set()
        for rank in range(64):
            batches = settings.batches(0, 128, rank, 64, history)
            steps.add(len(batches))
            np.add.at(seen, np.concatenate(batches), 1)
        assert steps == {settings.steps(128, 64, history)}
        assert seen.max() == 1
        assert seen.sum() == settings.sizes(128, 64, history).sum()
        if not history:
            assert seen.min() == 1
            assert steps == {157}


def digest(settings: Sampling, epoch: int, batch: int, world: int, legs=()) -> str:
    found = hashlib.sha256()
    for rank in range(world):
        for positions in settings.batches(epoch, batch, rank, world, legs):
            assert positions.dtype == np.int64
            found.update(len(positions).to_bytes(4, "little") + positions.astype("<i8").tobytes())
    return found.hexdigest()[:16]


def test_orders_are_pinned() -> None:
    """A change of NumPy or of the code that altered them would alter every run that goes on.

    The first four are what the package's first version read, with NumPy 1.23, 1.24 and 1.26.
    """
    assert remainder(Sampling(20, 7), 3, 4, 2) == [
        list(step) for step in zip(*GOLDEN_RANKS)]
    assert digest(Sampling(IMAGENET, 0), 0, 256, 1) == "f4ac83d69b102676"
    assert digest(Sampling(IMAGENET, 1), 5, 128, 8) == "afe2f7ac4a369ee0"
    assert digest(Sampling(IMAGENET, 0), 269, 32, 64) == "618e88d5f3f732f6"
    legs = (Leg(4, 8, 2), Leg(2, 8, 1))
    assert digest(Sampling(IMAGENET, 0), 0, 256, 2, legs) == "5a802b5b0025cc69"
    assert digest(Sampling(IMAGENET, 0, "global"), 0, 256, 1) == "f4ac83d69b102676"
    assert digest(Sampling(IMAGENET, 1, "global"), 5, 128, 8, legs) == "ec65a8df76da600a"


GOLDEN_RANKS = [[[4, 7, 0, 6], [2, 3, 9], [8, 1, 5]],
                [[18, 13, 10, 19], [16, 14, 17], [12, 11, 15]]]


@sharded
def test_order_is_shuffled(sharding: str) -> None:
    """Of 4 workers with 2,500 images each; thresholds at p = 0.001 or 4 deviations."""
    for legs in (), (Leg(3, 16, 20),):
        for rank in range(4):
            order = np.concatenate(Sampling(10_000, 0, sharding).batches(0, 32, rank, 4, legs))
            n = len(order)
            assert abs(stats.spearmanr(np.arange(n), order)[0]) < 4 / math.sqrt(n)
            neighbours = np.count_nonzero(np.abs(np.diff(np.argsort(np.argsort(order)))) == 1)
            assert neighbours < 2 + 4 * math.sqrt(2)  # Poisson with mean 2; the file has n - 1
            # Each quarter of the epoch draws evenly from each quarter of the worker's images.
            ranks = np.argsort(np.argsort(order))
            table = np.histogram2d(np.arange(n), ranks, bins=4)[0]
            assert stats.chi2_contingency(table)[1] > 0.001


def test_global_rank_of_an_image_is_uniform_over_epochs() -> None:
    """Which of 4 workers reads image 0, in 2,000 epochs: 3 degrees of freedom."""
    settings = Sampling(8, sharding="global")
    readers = [rank for epoch in range(2000) for rank in range(4)
               if 0 in np.concatenate(settings.batches(epoch, 1, rank, 4))]
    assert len(readers) == 2000
    assert stats.chisquare(np.bincount(readers, minlength=4))[1] > 0.001


@sharded
def test_sampling_depends_on_seed_epoch_and_legs(sharding: str) -> None:
    def order(epoch: int = 0, seed: int = 0, legs: tuple = (Leg(2, 10, 3),)) -> list[int]:
        return np.concatenate(Sampling(400, seed, sharding).batches(epoch, 5, 0, 3, legs)).tolist()

    assert order() == order()
    assert len({tuple(order()), tuple(order(epoch=1)), tuple(order(seed=1)),
                tuple(order(legs=(Leg(2, 10, 4),))), tuple(order(legs=()))}) == 5


@sharded
def test_a_new_leg_with_too_many_workers_is_refused(sharding: str) -> None:
    settings = Sampling(100, sharding=sharding)
    left = int(settings.sizes(8, 2)[6:].sum())
    for rank in range(40):
        with pytest.raises(InputError, match=f"{left} images left of the epoch are too few for 40"):
            settings.batches(0, 8, rank, 40, (Leg(2, 8, 6),))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="--sharding 'even' must be one of fixed, global"):
        Sampling(10, 0, "even")
    with pytest.raises(InputError, match="--seed -1 must not be negative"):
        Sampling(10, -1)
    with pytest.raises(ValueError, match="rank 2 is not in"):
        Sampling(10).batches(0, 5, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 101}, "of a run with length 101, but this one has 100"),
        ({"seed": 1}, "of a run with seed 1, but this one has 0"),
        ({"seed": False}, "of a run with seed False"),
        ({"sharding": "global"}, "sharding 'global', but this one has 'fixed': go on with the sam"),
        ({"epoch": -1}, "epoch -1, which must be a whole number of at least 0"),
        ({"epoch": True}, "epoch True"),
        ({"epoch": "1"}, "epoch '1'"),
        ({"legs": None}, "legs None, which must be a list"),
        ({"legs": [3]}, "the leg 3, which must be three whole numbers"),
        ({"legs": [[2, 8]]}, r"the leg \[2, 8\]"),
        ({"legs": [[2, 8, 0]]}, r"the leg \[2, 8, 0\]"),
        ({"legs": [[2, 8.0, 1]]}, r"the leg \[2, 8.0, 1\]"),
        ({"legs": [[2, 8, 8]]}, "8 steps of 2 workers with --batch-size 8 are more than the 7"),
        ({"legs": [[2, 8, 4], [2, 8, 4]]}, "8 steps of 2 workers"),
        ({"legs": [[2, 8, 5], [1, 8, 5]]}, "5 steps of 1 workers .* more than the 4 that 28"),
        ({"legs": [[101, 8, 1]]}, "100 training images are too few for 101"),
        ({"rank": 0}, "no others: see rank"),
    ],
)
def test_saved_positions_that_cannot_be_are_refused(change: dict, message: str) -> None:
    settings = Sampling(100)
    saved = {**Position(3, (Leg(2, 8, 2),)).as_dict(settings), **change}
    with pytest.raises(InputError, match=message) as caught:
        Position.from_dict(saved, settings, "state.json")
    assert str(caught.value).startswith("state.json ")
    for wrong in None, [], {"epoch": 1}:
        with pytest.raises(InputError, match=r"state\.json must"):
            Position.from_dict(wrong, settings, "state.json")
