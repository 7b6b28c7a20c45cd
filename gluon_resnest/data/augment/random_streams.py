"""The random streams of a run, and the random numbers of one sample.

No generator lives from step to step: each is made anew from the seed, the place in the run (epoch,
step, rank or position) and the number of its stream, so a resumed run draws what an uninterrupted
one would have drawn.

A sample's source is Python's generator, with a few lines for what is drawn from it: to set up one
of NumPy's, and to call it for single numbers, takes longer than to crop and resize an image. Both
have the method `random`, so either will do as a source.
"""

from __future__ import annotations

import math
import random
from enum import IntEnum
from typing import Protocol

import numpy as np


class Stream(IntEnum):
    """Last part of a generator's key: draws for different purposes are independent.

    A number must never change, nor be used again: old runs could not be resumed exactly.
    """

    SHUFFLE = 1  # order of the records in an epoch
    SAMPLE = 2  # augmentation of one record in one epoch
    MIXUP = 3  # mixup's weights for one batch
    REPLACEMENT = 4  # which record takes the place of a bad one


_STREAM_BITS, _POSITION_BITS, _EPOCH_BITS = 3, 40, 21


class Source(Protocol):
    """A `random.Random` or a `numpy.random.Generator`."""

    def random(self) -> float:
        """A number from 0 on and below 1, uniform."""


def sample_generator(
    seed: int, epoch: int, position: int, stream: Stream = Stream.SAMPLE
) -> random.Random:
    """Source of the draws for one record in one epoch, whoever prepares it.

    Different arguments give different seeds: each has bits of its own.
    """
    key = ((seed << _EPOCH_BITS | epoch) << _POSITION_BITS | position) << _STREAM_BITS | stream
    return random.Random(key)


def mixup_generator(seed: int, epoch: int, step: int, rank: int) -> np.random.Generator:
    """Generator of mixup's weights for a worker's batch: number `step` of the epoch, from 0."""
    return np.random.default_rng([seed, epoch, step, rank, Stream.MIXUP])


def dropping_seed(seed: int, rank: int, step: int) -> int:
    """Seed for MXNet's generator, which dropout and DropBlock draw from, before a step of the run.

    Its key has three parts and no number of a stream: no other stream's key is so short.
    """
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0] >> 1)


def uniform(source: Source, low: float, high: float) -> float:
    """A number between `low` and `high`."""
    return low + (high - low) * source.random()


def below(source: Source, count: int) -> int:
    """A whole number from 0 to `count` - 1."""
    return min(int(source.random() * count), count - 1)


def normal(source: Source, deviation: float) -> float:
    """A number from N(0, deviation**2), by Box and Muller."""
    radius = math.sqrt(-2 * math.log(1 - source.random()))
    return deviation * radius * math.cos(2 * math.pi * source.random())
