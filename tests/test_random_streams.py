"""The random numbers of a run are those of the first version: old runs resume exactly."""

from __future__ import annotations

import numpy as np
import pytest

from gluon_resnest.data.augment.random_streams import (
    Stream,
    dropping_seed,
    mixup_generator,
    sample_generator,
)
from gluon_resnest.data.loading.sampling import Leg, Sampling


def test_the_numbers_of_streams_stay():
    assert {stream.name: int(stream) for stream in Stream} == {
        "SHUFFLE": 1, "SAMPLE": 2, "MIXUP": 3, "REPLACEMENT": 4}


@pytest.mark.parametrize(("stream", "draws"), [
    (Stream.SAMPLE, [0.07695446463752331, 0.16151572184054774, 0.9556317516535482]),
    (Stream.REPLACEMENT, [0.7752137781406857, 0.5185943656576796, 0.47508003852185887])])
def test_draws_for_a_sample(stream, draws):
    rng = sample_generator(7, 3, 11, stream)
    assert [rng.random() for _ in range(3)] == draws
    if stream is Stream.SAMPLE:
        assert sample_generator(7, 3, 11).random() == draws[0]


def test_draws_for_mixup():
    assert mixup_generator(7, 3, 5, 1).random(3).tolist() == [
        0.9427912923257482, 0.7238074429054556, 0.39209652326332545]


def test_draws_for_dropout_and_dropblock():
    assert dropping_seed(7, 1, 42) == 1530522208


def test_order_of_the_records():
    assert np.concatenate(Sampling(10, 7).batches(3, 2, 1, 2)).tolist() == [9, 5, 8, 7, 6]
    resumed = Sampling(20, 7).batches(3, 2, 1, 2, [Leg(1, 4, 2)])
    assert [batch.tolist() for batch in resumed] == [[8, 18], [17, 11], [15, 10]]
