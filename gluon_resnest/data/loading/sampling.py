"""Which records a worker reads in each step: without replacement, each exactly once an epoch.

Two shardings. ``"fixed"`` is the paper's: the data is partitioned evenly across the workers, and
each draws its mini-batches from its own shard without replacement (section "Image Classification
Results"). ``"global"`` deals one permutation of everything to the workers, so that the order of
the images is the same for any number of them.

Nothing is dropped: every image is seen exactly once an epoch, whatever the number of workers and
the batch size, and all workers take the same number of steps, which the gradient exchange needs.
That holds also where an epoch is interrupted and goes on with other workers: the part of an epoch
that one number of workers and one batch size have read is a leg of it, and what the legs have left
is dealt anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gluon_resnest.data.augment.random_streams import Stream
from gluon_resnest.errors import InputError

SHARDINGS = ("fixed", "global")


def shard_range(length: int, rank: int, world: int) -> tuple[int, int]:
    """Positions `[start, stop)` of a worker's shard; the shards differ by one image at most.

    Parameters
    ----------
    length
        Records in the file.
    rank, world
        The worker and the number of workers.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not in [0, {world})")
    return rank * length // world, (rank + 1) * length // world


def steps_per_epoch(length: int, batch: int, world: int) -> int:
    """Steps that every worker takes in an epoch: ceil(ceil(length / world) / batch).

    That is ceil(length / (batch * world)), so both shardings have as many. ImageNet's 1,281,167
    images on 8 workers with batches of 128 make 1,252 steps.
    """
    if length < 1 or batch < 1 or world < 1:
        raise ValueError(f"length {length}, batch {batch} and world {world} must be positive")
    largest_shard = -(-length // world)
    return -(-largest_shard // batch)


class Leg(NamedTuple):
    """Steps of one epoch that the same workers took with the same batch size."""

    world: int
    batch_size: int
    steps: int


class _Leg(NamedTuple):
    """A leg with what follows from the legs before it."""

    leg: Leg
    images: int  # not yet seen when it began
    steps: int  # that it would take to see them all


@dataclass(frozen=True)
class Sampling:
    """What decides the order of the images, but for the workers, the batch size and the epoch.

    The methods take the legs of the epoch that are behind it and tell of what remains. Where the
    last leg has the same number of workers and batch size, it goes on as if there had been no
    interruption; otherwise a new leg begins.

    Attributes
    ----------
    length
        Records in the file.
    seed
        Not negative.
    sharding
        ``"fixed"``: each worker shuffles its contiguous shard, of the images not yet seen, by a
        generator of (seed, epoch, rank), and from the second leg on of the leg's number too.
        ``"global"``: one permutation by a generator of (seed, epoch), cut into the steps' global
        batches, and each of these into the workers' parts. It is the order in which a single
        worker with a fixed shard would read.
    """

    length: int
    seed: int = 0
    sharding: str = "fixed"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length {self.length} must be positive")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} must not be negative")
        if self.sharding not in SHARDINGS:
            raise InputError(f"--sharding '{self.sharding}' must be one of {', '.join(SHARDINGS)}")

    def steps(self, batch_size: int, world: int, legs: Sequence[Leg] = ()) -> int:
        """Steps that remain in the epoch, the same for every worker; 0 when all is seen.

        Parameters
        ----------
        batch_size
            Largest number of images of a worker in a step.
        world
            Number of workers.
        legs
            Of this epoch until now.

        Raises
        ------
        InputError
            There are too few images for so many workers, or a leg has more steps than there were.
            Every rank raises it alike.
        """
        current = self._follow(legs, batch_size, world)[-1]
        return current.steps - current.leg.steps

    def sizes(self, batch_size: int, world: int, legs: Sequence[Leg] = ()) -> np.ndarray:
        """Images that all workers together see in each remaining step.

        Parameters and errors as for :meth:`steps`.

        Returns
        -------
        numpy.ndarray
            int64 of shape (steps,); its sum is the number of images not yet seen.
        """
        current = self._follow(legs, batch_size, world)[-1]
        if current.steps == 0:
            return np.zeros(0, dtype=np.int64)
        taken = np.arange(current.leg.steps, current.steps + 1, dtype=np.int64)
        return np.diff(self._seen(current, taken))

    def batches(
        self, epoch: int, batch_size: int, rank: int, world: int, legs: Sequence[Leg] = ()
    ) -> list[np.ndarray]:
        """Record positions of each of a worker's remaining steps.

        The sizes of a leg's batches differ by at most one, the larger ones first with ``"fixed"``.
        A short last batch would spoil the statistics of batch normalisation; even ones do not.

        Parameters
        ----------
        epoch
            Not negative; with the seed, it chooses the order.
        batch_size, world, legs
            As for :meth:`steps`, with its errors.
        rank
            The worker.

        Returns
        -------
        list of numpy.ndarray
            One int64 array of positions a step, never empty.
        """
        shard_range(0, rank, world)  # a wrong rank is found also where nothing is left
        *finished, current = self._follow(legs, batch_size, world)
        if current.steps == 0:
            return []
        if self.sharding == "fixed":
            unseen = self._unseen(epoch, finished)
            shard = shard_range(len(unseen), rank, world)
            places = self._shuffled(shard, epoch, rank, len(finished))
            return np.array_split(unseen[places], current.steps)[current.leg.steps :]
        order = self._shuffled((0, self.length), epoch)[self.length - current.images :]
        taken = np.arange(current.leg.steps, current.steps + 1)
        bounds = self._seen(current, taken).tolist()
        parts = [shard_range(stop - start, rank, world) for start, stop in zip(bounds, bounds[1:])]
        return [order[start + first : start + last]
                for start, (first, last) in zip(bounds, parts)]

    def _follow(self, legs: Sequence[Leg], batch_size: int, world: int) -> list[_Leg]:
        """Every leg with its images and steps; the last is the one that goes on."""
        left, followed = self.length, []
        for leg in joined([*legs, Leg(world, batch_size, 0)]):
            if followed:
                left -= int(self._seen(followed[-1], followed[-1].leg.steps))
            followed.append(_Leg(leg, left, self._steps_of(left, leg)))
            if leg.steps > followed[-1].steps:
                raise InputError(
                    f"{leg.steps} steps of {leg.world} workers with --batch-size {leg.batch_size} "
                    f"are more than the {followed[-1].steps} that {left} images take"
                )
        return followed

    def _steps_of(self, left: int, leg: Leg) -> int:
        """Steps for `left` images; an error where a worker would have none in one of them."""
        if left == 0:
            return 0
        steps = steps_per_epoch(left, leg.batch_size, leg.world)
        if left < steps * leg.world:
            images = "training images" if left == self.length else "images left of the epoch"
            raise InputError(
                f"{left} {images} are too few for {leg.world} workers with --batch-size "
                f"{leg.batch_size}: a worker would have {left // leg.world} images for {steps} "
                "steps; use fewer workers or a larger batch"
            )
        return steps

    def _seen(self, leg: _Leg, taken: Any) -> Any:
        """Images that all workers have seen of a leg after its first `taken` steps (or array)."""
        if self.sharding == "global":
            return _in_first(taken, leg.images, leg.steps)
        small, larger_shards = divmod(leg.images, leg.leg.world)
        return ((leg.leg.world - larger_shards) * _in_first(taken, small, leg.steps)
                + larger_shards * _in_first(taken, small + 1, leg.steps))

    def _shuffled(
        self, shard: tuple[int, int], epoch: int, rank: int = 0, number: int = 0
    ) -> np.ndarray:
        """The numbers `[start, stop)` in the order of a worker in leg `number` of an epoch."""
        key = (self.seed, epoch, rank, *([number] if number else []), Stream.SHUFFLE)
        return np.random.default_rng(key).permutation(np.arange(*shard, dtype=np.int64))

    def _unseen(self, epoch: int, finished: Sequence[_Leg]) -> np.ndarray:
        """Positions that fixed shards have left after the finished legs, in ascending order."""
        unseen = np.arange(self.length, dtype=np.int64)
        for number, leg in enumerate(finished):
            remains = np.ones(len(unseen), dtype=bool)
            for rank in range(leg.leg.world):
                shard = shard_range(len(unseen), rank, leg.leg.world)
                places = self._shuffled(shard, epoch, rank, number)
                remains[places[: _in_first(leg.leg.steps, len(places), leg.steps)]] = False
            unseen = unseen[remains]
        return unseen


def _in_first(taken: Any, images: int, parts: int) -> Any:
    """Images in the first `taken` of `parts` even parts, of which the larger ones come first."""
    each, larger = divmod(images, parts)
    return taken * each + np.minimum(taken, larger)


def joined(legs: Sequence[Leg]) -> list[Leg]:
    """Legs that follow each other with the same workers and batch size, as one."""
    whole: list[Leg] = []
    for leg in legs:
        if whole and whole[-1][:2] == leg[:2]:
            whole[-1] = leg._replace(steps=whole[-1].steps + leg.steps)
        else:
            whole.append(leg)
    return whole


def evaluation_batches(length: int, batch: int, rank: int, world: int) -> list[np.ndarray]:
    """Record positions of a worker's evaluation batches, in the order of the file.

    Every image is in exactly one batch of one worker. The last batch may be short, and a worker
    may have none where there are more workers than images.
    """
    if batch < 1:
        raise ValueError(f"batch {batch} must be positive")
    start, stop = shard_range(length, rank, world)
    return [
        np.arange(first, min(first + batch, stop), dtype=np.int64)
        for first in range(start, stop, batch)
    ]
