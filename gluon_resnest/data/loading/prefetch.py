"""Batches made ahead by threads, in memory that is used again.

Threads, not processes: decoding and resampling release Python's lock, a batch needs no copy
between address spaces, and a thread can neither be killed unnoticed nor inherit a random state.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np

from gluon_resnest.errors import InputError


class Field(NamedTuple):
    """An array of a batch: shape of one sample's part, and dtype."""

    shape: tuple[int, ...]
    dtype: Any = np.uint8


Fields = Mapping[str, Field]
Arrays = Mapping[str, np.ndarray]

# Makes one sample: (position, its part of each array of the batch), which it writes to.
MakeSample = Callable[[int, Arrays], None]

# How long a sample may take before its thread counts as stuck, seconds.
DEFAULT_PATIENCE = 120.0

_LOOK_EVERY = 1.0  # seconds between looks at the threads while a batch is waited for
_ENDING = 5.0  # seconds that threads have to finish the sample they are at


class WorkerError(InputError):
    """A thread that makes samples died, or has been at one of them for too long."""

    def __init__(self, thread: threading.Thread, position: int | None, what: str) -> None:
        at = "" if position is None else f" at position {position} of the record file"
        super().__init__(f"{thread.name}, which prepares images, {what}{at}", only_here=True)


class BatchMemory:
    """Memory of batches, which comes back when nobody refers to a batch any more.

    A fresh batch of 128 images costs 5,000 page faults; used memory costs none.
    """

    def __init__(self) -> None:
        self._free: dict[str, list[bytearray]] = defaultdict(list)

    def array(self, shape: tuple[int, ...], dtype: Any = np.uint8, name: str = "") -> np.ndarray:
        """An uninitialised array; its memory goes back to the arrays of the same `name`."""
        size, of_name = int(np.prod(shape)) * np.dtype(dtype).itemsize, self._free[name]
        fits = next((i for i, free in enumerate(of_name) if len(free) >= size), None)
        if fits is None:
            of_name.clear()  # what is too small now would be kept for nothing
        memory = bytearray(size) if fits is None else of_name.pop(fits)
        # Parts of this array refer to it, not to the memory below: NumPy shortens chains of
        # views only as far as arrays go. So its end is the end of them all.
        owner = np.frombuffer(memory, dtype=np.uint8, count=size)
        weakref.finalize(owner, of_name.append, memory).atexit = False
        return owner.view(dtype).reshape(shape)


class _PendingBatch:
    """A batch in the making."""

    def __init__(self, positions: list[int], arrays: Arrays) -> None:
        self.positions = positions
        self.arrays = arrays
        self.faults: dict[int, BaseException] = {}
        self.done = threading.Event()
        self.unwanted = False
        self._remaining = len(positions)
        self._lock = threading.Lock()
        if not positions:
            self.done.set()

    def part(self, place: int) -> Arrays:
        """Views of one sample; of a single number one has shape ()."""
        return {name: array[place, ...] for name, array in self.arrays.items()}

    def finish_one(self) -> None:
        with self._lock:
            self._remaining -= 1
            if self._remaining == 0:
                self.done.set()


class _Worker:
    """A thread that makes samples, and what it is at."""

    def __init__(self, number: int, tasks: queue.SimpleQueue, make_sample: MakeSample) -> None:
        self.busy: tuple[int] | None = None  # position of the record, anew for each sample
        self.seen, self.looks = self.busy, 0  # at how many looks it was at the same sample
        # As a daemon, it cannot keep a process alive that gave up on it.
        self.thread = threading.Thread(target=self._run, args=(tasks, make_sample),
                                       name=f"batch-{number}", daemon=True)
        self.thread.start()

    def _run(self, tasks: queue.SimpleQueue, make_sample: MakeSample) -> None:
        while True:
            task = tasks.get()
            if task is None:
                return
            batch, place = task
            if not batch.unwanted:
                position = batch.positions[place]
                self.busy = (position,)
                try:
                    make_sample(position, batch.part(place))
                except BaseException as fault:  # whatever it is, it is raised with its batch
                    batch.faults[place] = fault
                self.busy = None
                batch.finish_one()
            del batch, task  # or its memory would be held until the next task


class PreparedBatches(Iterator):
    """Iterator over batches, in order, that threads began to prepare when it was made.

    An exception of `make_sample` is raised when its batch is due. However the iteration ends, or
    when :meth:`close` is called, the threads finish the sample they are at and are gone.

    Parameters
    ----------
    batches
        Record positions of each batch.
    make_sample
        Called by the threads; writes one sample to its part of each array.
    fields
        Arrays of a batch, by name.
    threads
        Samples made at a time.
    ahead
        Batches that are prepared beyond the one being used: the bound on the memory.
    memory
        Where the arrays are; by default memory of its own.
    patience
        Seconds of waiting for a batch after which a thread that is still at the same sample counts
        as stuck.

    Raises
    ------
    WorkerError
        From the iteration, at most a second after a thread died, or two after the patience with
        one has ended, if its batch is waited for.
    """

    def __init__(
        self,
        batches: Sequence[np.ndarray],
        make_sample: MakeSample,
        fields: Fields,
        threads: int,
        ahead: int,
        memory: BatchMemory | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        cv2.setNumThreads(0)  # OpenCV's own threads would fight ours for the cores
        self._remaining = iter(batches)
        self._fields = fields
        self._memory = memory or BatchMemory()
        self._patience = patience
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._pending: deque[_PendingBatch] = deque()
        self._closed = False
        # The threads must not refer to this object: dropping it ends them.
        self._workers: list[_Worker] = []
        for number in range(threads):
            self._workers.append(_Worker(number, self._tasks, make_sample))
        for _ in range(ahead):
            self._prepare_next()

    def _prepare_next(self) -> None:
        positions = next(self._remaining, None)
        if positions is None:
            return
        arrays = {name: self._memory.array((len(positions), *field.shape), field.dtype, name)
                  for name, field in self._fields.items()}
        batch = _PendingBatch(positions.tolist(), arrays)
        self._pending.append(batch)
        for place in range(len(batch.positions)):
            self._tasks.put((batch, place))

    def __next__(self) -> dict[str, np.ndarray]:
        """Arrays by name, contiguous; nobody else uses their memory while they are in use."""
        if self._closed:
            raise StopIteration
        self._prepare_next()
        if not self._pending:
            self.close()
            raise StopIteration
        batch = self._pending[0]
        try:
            while not batch.done.wait(_LOOK_EVERY):
                self._look_at_workers()
            if batch.faults:
                raise batch.faults[min(batch.faults)]
        except BaseException:
            self.close()
            raise
        self._pending.popleft()
        return dict(batch.arrays)

    def _look_at_workers(self) -> None:
        """Raise a WorkerError where waiting would be in vain."""
        for worker in self._workers:
            busy = worker.busy
            position = busy[0] if busy else None
            if not worker.thread.is_alive():
                raise WorkerError(worker.thread, position, "died")
            # Looks, not a clock: a process that was suspended for a night has not hung.
            worker.looks = worker.looks + 1 if busy is worker.seen else 0
            worker.seen = busy
            if busy and worker.looks * _LOOK_EVERY >= self._patience:
                raise WorkerError(worker.thread, position, f"has hung for {self._patience:g} s")

    def close(self) -> None:
        """End the threads; a stuck one is left to itself after some seconds."""
        if self._closed:
            return
        self._closed = True
        for batch in self._pending:
            batch.unwanted = True
        self._pending.clear()
        for _ in self._workers:
            self._tasks.put(None)
        deadline = time.monotonic() + _ENDING
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> PreparedBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
