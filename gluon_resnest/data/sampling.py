"""Which records a worker reads in each step: fixed shards, sampled without replacement.

The paper partitions the data evenly across the workers and draws each mini-batch from the
worker's own shard without replacement (section "Image Classification Results"). Nothing is
dropped: every image is seen exactly once an epoch, whatever the number of workers and the batch
size, and all workers take the same number of steps, which the gradient exchange needs.
"""

from __future__ import annotations

import numpy as np

from gluon_resnest.errors import InputError

# Keeps the shuffle's random stream apart from the streams that augment the samples.
_SHUFFLE_STREAM = 1


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

    ImageNet's 1,281,167 images on 8 workers with batches of 128 make 1,252 steps.
    """
    if length < 1 or batch < 1 or world < 1:
        raise ValueError(f"length {length}, batch {batch} and world {world} must be positive")
    largest_shard = -(-length // world)
    return -(-largest_shard // batch)


def _check_shards(length: int, batch: int, world: int) -> int:
    """Steps of an epoch; an error where the smallest shard cannot give each of them an image."""
    steps = steps_per_epoch(length, batch, world)
    smallest_shard = length // world
    if smallest_shard < steps:
        raise InputError(
            f"{length} training images are too few for {world} workers with --batch-size {batch}: "
            f"a worker would have {smallest_shard} images for {steps} steps; use fewer workers "
            "or a larger batch"
        )
    return steps


def epoch_batches(
    length: int, batch: int, rank: int, world: int, epoch: int, seed: int
) -> list[np.ndarray]:
    """Record positions of each of a worker's training steps in one epoch.

    The shard is shuffled by a generator of (seed, epoch, rank) and dealt into
    :func:`steps_per_epoch` batches whose sizes differ by at most one, the larger ones first. A
    short last batch would spoil the statistics of batch normalisation; even ones do not.

    Parameters
    ----------
    length
        Records in the file.
    batch
        Largest number of images in a step.
    rank, world
        The worker and the number of workers.
    epoch, seed
        Not negative; they choose the order.

    Returns
    -------
    list of numpy.ndarray
        One int64 array of positions a step.

    Raises
    ------
    InputError
        The file has too few images for so many workers. Every rank raises it alike.
    """
    steps = _check_shards(length, batch, world)
    start, stop = shard_range(length, rank, world)
    generator = np.random.default_rng((seed, epoch, rank, _SHUFFLE_STREAM))
    order = generator.permutation(np.arange(start, stop, dtype=np.int64))
    return np.array_split(order, steps)


def global_batch_sizes(length: int, batch: int, world: int) -> np.ndarray:
    """Images that all workers together see in each step of an epoch.

    Returns
    -------
    numpy.ndarray
        int64 of shape (steps,); its sum is `length`.
    """
    steps = _check_shards(length, batch, world)
    sizes = np.zeros(steps, dtype=np.int64)
    for rank in range(world):
        start, stop = shard_range(length, rank, world)
        each, larger = divmod(stop - start, steps)
        sizes += each
        sizes[:larger] += 1
    return sizes


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
