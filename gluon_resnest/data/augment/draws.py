"""Random numbers of one sample: a source of its own, which its seed, epoch and position decide.

Python's generator, and a few lines for what is drawn from it: to set up one of NumPy's, and to
call it for single numbers, takes longer than to crop and resize an image. Both have the method
`random`, so either will do as a source.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

# Keeps a sample's random stream apart from the stream that shuffles the records; MIXUP_STREAM is 3.
SAMPLE_STREAM = 2
REPLACEMENT_STREAM = 4

_STREAM_BITS, _POSITION_BITS, _EPOCH_BITS = 3, 40, 21


class Source(Protocol):
    """A `random.Random` or a `numpy.random.Generator`."""

    def random(self) -> float:
        """A number from 0 on and below 1, uniform."""


def sample_generator(
    seed: int, epoch: int, position: int, stream: int = SAMPLE_STREAM
) -> random.Random:
    """Source of the draws for one record in one epoch, whoever prepares it.

    Different arguments give different seeds: each has bits of its own.
    """
    key = ((seed << _EPOCH_BITS | epoch) << _POSITION_BITS | position) << _STREAM_BITS | stream
    return random.Random(key)


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
