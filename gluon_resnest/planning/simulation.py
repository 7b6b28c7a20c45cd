"""Every rank's share of an epoch, dealt and counted: what a large run reads, without its workers.

No figure here follows from a formula. The batches are those that
:meth:`~gluon_resnest.data.loading.sampling.Sampling.batches` gives the ranks of a real run, and
each image of them is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Iterable

import numpy as np

from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.progress_bar import progress_bar

# Before a progress line appears, seconds; 64 ranks on ImageNet take less.
_PATIENCE = 3.0


@dataclass(frozen=True)
class SimulatedEpoch:
    """What the ranks read in an epoch.

    Attributes
    ----------
    epoch, ranks, steps
        Epoch, counted from 0; number of ranks; steps of rank 0.
    equal_steps
        Whether all ranks take as many.
    each_image_once
        Whether every image of the file is read exactly once, over all ranks and steps.
    weights_sum_to_one
        Whether, at each step, the weights that the ranks' gradients get add up to 1: the images
        that the trainer divides by are those that the ranks have.
    smallest_batch, largest_batch
        Images of a rank in a step.
    smallest_rank, largest_rank
        Images of a rank in the epoch.
    """

    epoch: int
    ranks: int
    steps: int
    equal_steps: bool
    each_image_once: bool
    weights_sum_to_one: bool
    smallest_batch: int
    largest_batch: int
    smallest_rank: int
    largest_rank: int

    @property
    def is_right(self) -> bool:
        return self.equal_steps and self.each_image_once and self.weights_sum_to_one


def simulate_epoch(
    sampling: Sampling, epoch: int, batch_size: int, world: int, progress: bool = False
) -> SimulatedEpoch:
    """Deal an epoch to `world` ranks, one after the other, and count.

    Parameters
    ----------
    sampling
        Of the run.
    epoch
        Counted from 0.
    batch_size, world
        Images a rank and step; number of ranks.
    progress
        Show a progress line on standard error if it takes some seconds.

    Raises
    ------
    InputError
        For more ranks than the images are enough for.
    """
    dealer = _sharing(sampling)
    sizes = sampling.sizes(batch_size, world)
    read, rank_images, rank_steps, batch_sizes = [], [], [], []
    step_images = np.zeros(len(sizes), dtype=np.int64)
    for rank in progress_bar(range(world), desc=f"dealing epoch {epoch} to {world} ranks",
                             unit="rank", delay=_PATIENCE, enabled=progress):
        batches = dealer.batches(epoch, batch_size, rank, world)
        read.append(np.concatenate(batches))
        images = np.array([len(positions) for positions in batches])
        batch_sizes += [images.min(), images.max()]
        rank_images.append(int(images.sum()))
        rank_steps.append(len(batches))
        if len(images) == len(sizes):
            step_images += images
    return SimulatedEpoch(
        epoch=epoch, ranks=world, steps=rank_steps[0],
        equal_steps=set(rank_steps) == {len(sizes)},
        each_image_once=_is_once(np.concatenate(read), sampling.length),
        weights_sum_to_one=bool(np.array_equal(step_images, sizes)),
        smallest_batch=int(min(batch_sizes)), largest_batch=int(max(batch_sizes)),
        smallest_rank=min(rank_images), largest_rank=max(rank_images))


def simulate_epochs(
    sampling: Sampling, batch_size: int, world: int, epochs: int, progress: bool = False
) -> list[SimulatedEpoch]:
    """The epochs of a run of `epochs` that stand for all of them.

    Fixed shards are the same in every epoch, and only their order differs: one is enough. A
    global permutation deals each epoch anew: two.

    Raises
    ------
    RuntimeError
        The images are not dealt as they must be, which is a bug.
    InputError
        For more ranks than the images are enough for.
    """
    simulated = range(min(epochs, 1 if sampling.sharding == "fixed" else 2))
    found = [simulate_epoch(sampling, epoch, batch_size, world, progress) for epoch in simulated]
    wrong = next((result for result in found if not result.is_right), None)
    if wrong is not None:
        raise RuntimeError(f"the images of {sampling} are not dealt as they must be: {wrong}; "
                           "this is a bug of gluon_resnest/data/loading/sampling.py")
    return found


def simulation_summary(epochs: Iterable[SimulatedEpoch]) -> dict[str, Any]:
    """Simulated epochs as a dictionary for JSON: what holds for all, and the extremes."""
    epochs = list(epochs)
    return {
        "simulated_epochs": [result.epoch for result in epochs],
        "ranks": epochs[0].ranks,
        "each_image_once": all(result.each_image_once for result in epochs),
        "equal_steps": all(result.equal_steps for result in epochs),
        "gradient_weights_sum_to_one": all(result.weights_sum_to_one for result in epochs),
        "steps": epochs[0].steps,
        "smallest_batch": min(result.smallest_batch for result in epochs),
        "largest_batch": max(result.largest_batch for result in epochs),
        "smallest_rank_images": min(result.smallest_rank for result in epochs),
        "largest_rank_images": max(result.largest_rank for result in epochs),
    }


def _is_once(positions: np.ndarray, length: int) -> bool:
    """Whether `positions` are 0 to `length - 1` in any order."""
    if len(positions) != length or positions.min() < 0 or positions.max() >= length:
        return False
    return bool((np.bincount(positions, minlength=length) == 1).all())


class _Sharing(Sampling):
    """A sampling whose ranks, in one process here, share the permutation that each would make.

    With global sharding all ranks shuffle the same numbers with the same key. That takes most of
    the time, and once is enough.
    """

    def _shuffled(self, *key: Any) -> np.ndarray:
        return _shuffled_once(self, *key)


@lru_cache(maxsize=1)
def _shuffled_once(sampling: _Sharing, *key: Any) -> np.ndarray:
    return super(_Sharing, sampling)._shuffled(*key)


def _sharing(sampling: Sampling) -> Sampling:
    if type(sampling) is not Sampling:  # one that differs must be dealt as it is
        return sampling
    return _Sharing(sampling.length, sampling.seed, sampling.sharding)
