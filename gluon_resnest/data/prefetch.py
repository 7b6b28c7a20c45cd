"""Batches made ahead by threads.

Threads, not processes: decoding and resampling release Python's lock, a batch needs no copy
between address spaces, and a thread can neither be killed unnoticed nor inherit a random state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, NamedTuple

import cv2
import numpy as np

# Makes one sample: (record position, place for its pixels) -> label.
MakeSample = Callable[[int, np.ndarray], int]


class Batch(NamedTuple):
    """Images and labels of a step.

    Attributes
    ----------
    images
        uint8 of shape (N, height, width, channels), contiguous; nobody else uses the memory.
    labels
        int64 of shape (N,).
    """

    images: np.ndarray
    labels: np.ndarray


class _PendingBatch(NamedTuple):
    images: np.ndarray
    samples: list[Future[int]]


def prepared_batches(
    batches: Sequence[np.ndarray],
    make_sample: MakeSample,
    shape: tuple[int, int, int],
    threads: int,
    ahead: int,
) -> Iterator[Batch]:
    """Yield the batches in order while threads prepare the next ones.

    An exception of `make_sample` is raised here, when its batch is due. However the iteration
    ends, the threads are gone when it has: they finish the sample they are at, at most.

    Parameters
    ----------
    batches
        Record positions of each batch.
    make_sample
        Called by the threads; writes the pixels of one sample and returns its label.
    shape
        (height, width, channels) of a sample.
    threads
        Samples made at a time.
    ahead
        Batches that are prepared beyond the one being used: the bound on the memory.
    """
    cv2.setNumThreads(0)  # OpenCV's own threads would fight ours for the cores
    remaining = iter(batches)
    pending: deque[_PendingBatch] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")

    def prepare_next() -> None:
        positions = next(remaining, None)
        if positions is not None:
            images = np.empty((len(positions), *shape), dtype=np.uint8)
            samples = [
                pool.submit(make_sample, position, place)
                for position, place in zip(positions.tolist(), images)
            ]
            pending.append(_PendingBatch(images, samples))

    try:
        for _ in range(ahead):
            prepare_next()
        for _ in batches:
            prepare_next()
            due = pending[0]
            labels = np.array([sample.result() for sample in due.samples], dtype=np.int64)
            pending.popleft()  # only now: on an error above, its other samples are cancelled too
            yield Batch(due.images, labels)
    finally:
        for batch in pending:
            for sample in batch.samples:
                sample.cancel()
        pool.shutdown(wait=True)
