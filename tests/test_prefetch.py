"""Threads that make batches: memory that comes back, and threads that hang or die."""

from __future__ import annotations

import ctypes
import gc
import threading
import time

import numpy as np
import pytest

from gluon_resnest.data.loading import prefetch
from gluon_resnest.data.loading.prefetch import BatchMemory, Field, PreparedBatches, WorkerError

SHAPE = (4, 5, 3)
FIELDS = {"images": Field(SHAPE), "labels": Field((), np.int64),
          "boxes": Field((2, 4), np.float32)}


def batches_of(sizes: list[int]) -> list[np.ndarray]:
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def fill(position: int, part: dict[str, np.ndarray]) -> None:
    part["images"][:] = position
    part["labels"][...] = 10 * position
    part["boxes"][:] = -position, 0.5, 0, position


def wait_until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batches_in_order(threads: int) -> None:
    with PreparedBatches(batches_of([3, 1, 2]), fill, FIELDS, threads, ahead=2) as batches:
        found = list(batches)
    assert [batch["labels"].tolist() for batch in found] == [[0, 10, 20], [30], [40, 50]]
    for batch in found:
        images = batch["images"]
        expected = np.broadcast_to((batch["labels"] // 10)[:, None, None, None], images.shape)
        assert np.array_equal(images, expected)
        number = batch["labels"] / 10
        assert batch["boxes"].dtype == np.float32
        assert np.array_equal(batch["boxes"][:, 1], np.stack(
            [-number, np.full_like(number, 0.5), 0 * number, number], axis=1))


class TestBatchMemory:
    def test_is_used_again_when_nobody_needs_it(self) -> None:
        memory = BatchMemory()
        address = memory.array((2, *SHAPE)).ctypes.data
        assert memory.array((2, *SHAPE)).ctypes.data == address
        assert memory.array((1, *SHAPE)).ctypes.data == address

    def test_is_kept_while_a_part_is_in_use(self) -> None:
        memory = BatchMemory()
        array = memory.array((2, *SHAPE))
        part, address = array[1, 2:3], array.ctypes.data
        del array
        assert memory.array((2, *SHAPE)).ctypes.data != address
        del part
        gc.collect()
        assert address in {memory.array((2, *SHAPE)).ctypes.data for _ in range(2)} | {
            array.ctypes.data for array in [memory.array((2, *SHAPE)) for _ in range(2)]}

    def test_grows(self) -> None:
        memory = BatchMemory()
        memory.array((1, *SHAPE))
        large = memory.array((5, *SHAPE))
        large[:] = 7
        assert large.shape == (5, *SHAPE)

    def test_a_kept_batch_is_never_written_to(self) -> None:
        """Also by later epochs of the same memory."""
        memory = BatchMemory()
        kept = [batch for _ in range(3) for batch in PreparedBatches(
            batches_of([2, 2, 2]), fill, FIELDS, 2, 2, memory)]
        for batch in kept:
            assert (batch["images"][:, 0, 0, 0] == batch["labels"] // 10).all()

    def test_an_epoch_takes_what_the_one_before_had(self) -> None:
        memory, addresses = BatchMemory(), set()
        for _ in range(20):
            for batch in PreparedBatches(batches_of([4] * 6), fill, FIELDS, 2, 2, memory):
                addresses.add(batch["images"].ctypes.data)
        assert len(addresses) <= 5  # in use, two ahead, and two on their way back


class TestFaults:
    def test_are_raised_with_their_batch(self) -> None:
        def broken(position: int, part: dict[str, np.ndarray]) -> None:
            if position >= 4:
                raise SystemExit(f"at {position}")  # not even that may end a thread unseen
            fill(position, part)

        batches = PreparedBatches(batches_of([2, 2, 2]), broken, FIELDS, 3, 2)
        assert next(batches)["labels"].tolist() == [0, 10]
        assert next(batches)["labels"].tolist() == [20, 30]
        with pytest.raises(SystemExit, match="at 4"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)

    def test_a_thread_that_hangs(self) -> None:
        """As on a disk that gives no answer: noticed after the patience, and left to itself."""
        answer = threading.Event()

        def hangs(position: int, part: dict[str, np.ndarray]) -> None:
            if position == 3:
                answer.wait(60)
            fill(position, part)

        batches = PreparedBatches(batches_of([2, 2]), hangs, FIELDS, 2, 2, patience=0.3)
        next(batches)
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"batch-\d, which prepares images, has hung for "
                                              r"0\.3 s at position 3"):
            next(batches)
        # A look each second, then some seconds of grace for the thread.
        assert time.monotonic() - started < 3 + prefetch._ENDING + 5
        answer.set()
        wait_until(lambda: not any(t.name.startswith("batch-") for t in threading.enumerate()))

    def test_a_thread_that_died(self) -> None:
        batches = PreparedBatches(batches_of([1, 1]), fill, FIELDS, 1, 0)
        (worker,) = batches._workers
        batches._tasks.put(None)  # nothing but this ends one, short of a bug in the interpreter
        worker.thread.join(10)
        started = time.monotonic()
        with pytest.raises(WorkerError, match="batch-0, which prepares images, died"):
            next(batches)
        assert time.monotonic() - started < 10

    def test_an_asynchronous_exception_is_not_lost(self) -> None:
        def spins(position: int, part: dict[str, np.ndarray]) -> None:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                time.sleep(0.001)
            fill(position, part)

        batches = PreparedBatches(batches_of([1]), spins, FIELDS, 1, 1)
        (worker,) = batches._workers
        wait_until(lambda: worker.busy is not None)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(worker.thread.ident), ctypes.py_object(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(batches)


def test_dropping_the_iterator_ends_the_threads() -> None:
    batches = PreparedBatches(batches_of([2] * 50), fill, FIELDS, 4, 2)
    workers = [worker.thread for worker in batches._workers]
    next(batches)
    del batches
    gc.collect()
    assert not any(thread.is_alive() for thread in workers)
