"""Batches for training and for evaluation, as NumPy arrays by name, of any kind of sample."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Generic, Protocol, TypeVar

import numpy as np

from gluon_resnest import runtime
from gluon_resnest.data.augment.random_streams import Stream, below, sample_generator
from gluon_resnest.data.loading.prefetch import (
    DEFAULT_PATIENCE,
    Arrays,
    BatchMemory,
    Field,
    Fields,
    PreparedBatches,
)
from gluon_resnest.data.loading.sampling import Leg, Sampling, evaluation_batches
from gluon_resnest.data.records.bad_records import BadRecords
from gluon_resnest.data.records.record_file import BadRecord
from gluon_resnest.errors import InputError

# Two batches hide the time between a batch's first and last sample; more only cost memory.
BATCHES_AHEAD = 2

_REPLACEMENTS = 100  # looked at before giving up
_KEPT = "kept"  # the field that says which samples an evaluation does not leave out

Batch = TypeVar("Batch")


class Samples(Protocol):
    """Where samples come from, and what they become in a batch.

    Attributes
    ----------
    path
        Of the data, for errors.
    fields
        Arrays of a batch by name: shape of one sample's part, and dtype.
    batch
        Makes a batch of the arrays: a named tuple with these names.
    """

    path: Path
    fields: Fields
    batch: Callable[..., Any]

    def __len__(self) -> int: ...

    def read(self, position: int) -> Any:
        """What is stored there.

        Raises
        ------
        BadRecord
            It is damaged; another one may take its place.
        InputError
            It cannot be used in this run.
        """

    def write(self, stored: Any, position: int, part: Arrays, rng: random.Random | None) -> None:
        """Write what was read to its part of a batch; `rng` draws its augmentation in training."""


def loader_threads() -> int:
    """This process's share of the host's usable cores, at least 1."""
    return max(1, runtime.usable_cores() // runtime.launched_local_size())


class SampleLoader(Generic[Batch]):
    """Augmented batches of a worker's part of the samples.

    A sample that cannot be used is replaced by another one, which the seed, the epoch and its
    position choose: the samples stay the same whatever the threads and the ranks.

    Parameters
    ----------
    samples
        Where they come from.
    bad_records
        Where those are noted that cannot be used.
    batch_size
        Largest number of samples in a batch; the batches of an epoch differ by one at most.
    rank, world
        The worker and the number of workers.
    seed
        With the epoch, decides the order and every sample's augmentation, whatever the threads.
    threads
        Samples prepared at a time; by default this process's share of the cores.
    prefetch
        Batches prepared ahead.
    sharding
        ``"fixed"`` or ``"global"``: see :class:`~gluon_resnest.data.loading.sampling.Sampling`.
    patience
        Seconds after which a thread that is still at the same sample counts as stuck.

    Attributes
    ----------
    sampling
        The order of the samples.

    Raises
    ------
    InputError
        There are too few samples for so many workers.
    """

    def __init__(
        self,
        samples: Samples,
        bad_records: BadRecords,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        threads: int | None = None,
        prefetch: int = BATCHES_AHEAD,
        sharding: str = "fixed",
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        self.samples, self.bad_records = samples, bad_records
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.seed = seed
        self.threads = threads or loader_threads()
        self.prefetch = prefetch
        self.patience = patience
        self.sampling = Sampling(len(samples), seed, sharding)
        self._steps = self.sampling.steps(batch_size, world)  # finds workers without samples
        self._memory = BatchMemory()

    def __len__(self) -> int:
        """Steps in an epoch, the same for every worker."""
        return self._steps

    def epoch(self, epoch: int, legs: Sequence[Leg] = ()) -> NamedBatches[Batch]:
        """Iterate over the batches of an epoch, which are being prepared from now on.

        Closing the iterator, or dropping it, ends its threads.

        Parameters
        ----------
        epoch
            Not negative.
        legs
            What of the epoch is behind: see :class:`~gluon_resnest.data.loading.position.Position`.

        Raises
        ------
        InputError
            From the iteration: a sample cannot be used in this run, more records are bad than may
            be, or a thread hangs.
        """
        batches = self.sampling.batches(epoch, self.batch_size, self.rank, self.world, legs)

        def make_sample(position: int, part: Arrays) -> None:
            source, stored = self._usable(epoch, position)
            self.samples.write(stored, source, part, sample_generator(self.seed, epoch, position))

        return NamedBatches(self.samples.batch, PreparedBatches(
            batches, make_sample, self.samples.fields, self.threads, self.prefetch, self._memory,
            self.patience))

    def _usable(self, epoch: int, position: int) -> tuple[int, Any]:
        """Position and content of a sample, or of the one that replaces it."""
        for candidate in self._candidates(epoch, position):
            if candidate in self.bad_records:
                continue
            try:
                return candidate, self.samples.read(candidate)
            except BadRecord as fault:
                self.bad_records.add(fault)
        raise InputError(f"{_REPLACEMENTS} records of {self.samples.path} in a row are bad: see "
                         "scripts/pack_records.py --verify")

    def _candidates(self, epoch: int, position: int) -> Iterator[int]:
        yield position
        rng = sample_generator(self.seed, epoch, position, Stream.REPLACEMENT)
        for _ in range(_REPLACEMENTS):
            yield below(rng, len(self.samples))


class NamedBatches(Generic[Batch]):
    """Prepared batches as named tuples."""

    def __init__(self, batch: Callable[..., Batch], prepared: PreparedBatches) -> None:
        self._batch, self._prepared = batch, prepared

    def __iter__(self) -> NamedBatches[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._batch(**next(self._prepared))

    def close(self) -> None:
        """End the threads."""
        self._prepared.close()

    def __enter__(self) -> NamedBatches[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EvaluationSampleLoader(Generic[Batch]):
    """Batches of a worker's part of the samples, in order; every one once over all workers.

    The last batch may be short, and a worker may have none. Parameters and errors as for
    :class:`SampleLoader`, and:

    Parameters
    ----------
    skip_bad_records
        Leave out what cannot be used, and count it in :attr:`bad_records`, instead of refusing
        with an :class:`InputError`.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        prefetch: int = BATCHES_AHEAD,
        skip_bad_records: bool = False,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        self.samples = samples
        self.threads = threads or loader_threads()
        self.prefetch = prefetch
        self.patience = patience
        self.skip_bad_records = skip_bad_records
        self.bad_records: dict[int, BadRecord] = {}
        self._batches = evaluation_batches(len(samples), batch_size, rank, world)
        self._memory = BatchMemory()

    def __len__(self) -> int:
        """Batches of this worker."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate once over the batches."""
        self.bad_records.clear()
        fields = {**self.samples.fields, _KEPT: Field((), np.bool_)}
        prepared = PreparedBatches(self._batches, self._make_sample, fields, self.threads,
                                   self.prefetch, self._memory, self.patience)
        with prepared:
            for arrays in prepared:
                kept = arrays.pop(_KEPT)
                if not kept.all():
                    arrays = {name: array[kept] for name, array in arrays.items()}
                yield self.samples.batch(**arrays)

    def _make_sample(self, position: int, part: Arrays) -> None:
        try:
            stored = self.samples.read(position)
        except BadRecord as fault:
            if not self.skip_bad_records:
                raise InputError(f"{fault}; or leave it out with --skip-bad-records") from None
            self.bad_records[position] = fault.to_keep()
            part[_KEPT][...] = False
            return
        part[_KEPT][...] = True
        self.samples.write(stored, position, part, None)
