"""Batches of a record file for training and for evaluation, as uint8 NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from gluon_resnest import runtime
from gluon_resnest.data.augment.random_streams import Stream, below, sample_generator
from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.class_names import check_classes, check_evaluated_classes
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.loading.prefetch import (
    DEFAULT_PATIENCE,
    Batch,
    BatchMemory,
    PreparedBatches,
)
from gluon_resnest.data.loading.sampling import Leg, Sampling, evaluation_batches
from gluon_resnest.data.records.bad_records import DEFAULT_SHARE, BadRecords
from gluon_resnest.data.records.index import named_gaps
from gluon_resnest.data.records.record_file import BadRecord, RecordFile
from gluon_resnest.data.records.recordio import is_class
from gluon_resnest.errors import InputError

# Two batches hide the time between a batch's first and last sample; more only cost memory.
BATCHES_AHEAD = 2

_REPLACEMENTS = 100  # looked at before giving up

_LEFT_OUT = -1  # label of an image that evaluation skips


def loader_threads() -> int:
    """This process's share of the host's usable cores, at least 1."""
    return max(1, runtime.usable_cores() // runtime.launched_local_size())


class TrainLoader:
    """Augmented batches of a worker's part of a record file.

    A record that cannot be used is replaced by another one of the file, which the seed, the epoch
    and its position choose: the samples stay the same whatever the threads and the ranks.

    Parameters
    ----------
    records
        Where the images are.
    transform
        Makes the pixels of a sample from a decoded image and a generator.
    batch_size
        Largest number of images in a batch; the batches of an epoch differ by one at most.
    rank, world
        The worker and the number of workers.
    seed
        With the epoch, decides the order and every sample's augmentation, whatever the threads.
    classes
        Number of classes: labels are 0 to `classes - 1`.
    threads
        Samples prepared at a time; by default this process's share of the cores.
    prefetch
        Batches prepared ahead.
    sharding
        ``"fixed"`` or ``"global"``: see :class:`~gluon_resnest.data.loading.sampling.Sampling`.
    max_bad_records
        Share of the records that may be bad before :class:`InputError` is raised.
    patience
        Seconds after which a thread that is still at the same sample counts as stuck.

    Attributes
    ----------
    sampling
        The order of the records.
    bad_records
        Those that were replaced until now.

    Raises
    ------
    InputError
        The class list beside the records has another number of classes, the file has too few
        images for so many workers, or too much of it was cut off.
    """

    def __init__(
        self,
        records: RecordFile,
        transform: TrainTransform,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        classes: int = 1000,
        threads: int | None = None,
        prefetch: int = BATCHES_AHEAD,
        sharding: str = "fixed",
        max_bad_records: float = DEFAULT_SHARE,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        check_classes(records, classes)
        self.records = records
        self.transform = transform
        self.batch_size = batch_size
        self.rank, self.world = rank, world
        self.seed = seed
        self.classes = classes
        self.threads = threads or loader_threads()
        self.prefetch = prefetch
        self.patience = patience
        self.sampling = Sampling(len(records), seed, sharding)
        self._steps = self.sampling.steps(batch_size, world)  # finds workers without images
        self.bad_records = BadRecords(records, max_bad_records)
        self._memory = BatchMemory()

    def __len__(self) -> int:
        """Steps in an epoch, the same for every worker."""
        return self._steps

    def epoch(self, epoch: int, legs: Sequence[Leg] = ()) -> PreparedBatches:
        """Iterate over the batches of an epoch, which are being prepared from now on.

        Closing the iterator, or dropping it, ends its threads.

        Parameters
        ----------
        epoch
            Not negative.
        legs
            What of the epoch is behind: see :class:`~gluon_resnest.data.loading.position.Position`.

        Yields
        ------
        images : numpy.ndarray
            uint8 of shape (N, size, size, 3).
        labels : numpy.ndarray
            int64 of shape (N,).

        Raises
        ------
        InputError
            From the iteration: a label is outside [0, classes), more records are bad than may
            be, or a thread hangs.
        """
        batches = self.sampling.batches(epoch, self.batch_size, self.rank, self.world, legs)

        def make_sample(position: int, place: np.ndarray) -> int:
            source, image, label = self._usable(epoch, position)
            rng = sample_generator(self.seed, epoch, position)
            with _named(self.records, source, image):
                place[:] = self.transform(image, rng)
            return label

        return PreparedBatches(batches, make_sample, _shape(self.transform.size), self.threads,
                               self.prefetch, self._memory, self.patience)

    def _usable(self, epoch: int, position: int) -> tuple[int, np.ndarray, int]:
        """Position, image and label of a record, or of the one that replaces it."""
        for candidate in self._candidates(epoch, position):
            if candidate in self.bad_records:
                continue
            try:
                return candidate, *_image_and_label(self.records, candidate, self.classes)
            except BadRecord as fault:
                self.bad_records.add(fault)
        raise InputError(f"{_REPLACEMENTS} records of {self.records.path} in a row are bad: see "
                         "scripts/pack_records.py --verify")

    def _candidates(self, epoch: int, position: int) -> Iterator[int]:
        yield position
        rng = sample_generator(self.seed, epoch, position, Stream.REPLACEMENT)
        for _ in range(_REPLACEMENTS):
            yield below(rng, len(self.records))


class EvaluationLoader:
    """Batches of a worker's part of a record file, in order; every image once over all workers.

    The last batch may be short, and a worker may have none. Parameters and errors as for
    :class:`TrainLoader`, and:

    Parameters
    ----------
    skip_bad_records
        Leave out what cannot be used, and count it in :attr:`bad_records`, instead of refusing
        with an :class:`InputError`.
    """

    def __init__(
        self,
        records: RecordFile,
        transform: EvaluationTransform,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        classes: int = 1000,
        threads: int | None = None,
        prefetch: int = BATCHES_AHEAD,
        skip_bad_records: bool = False,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        check_evaluated_classes(records, classes)
        if records.gaps and not skip_bad_records:
            raise InputError(
                f"{named_gaps(records.gaps)} of {records.path}, which has no index, may hold "
                "records that are lost; copy the file and its .idx again, or do without "
                "them with --skip-bad-records")
        self.records = records
        self.transform = transform
        self.classes = classes
        self.threads = threads or loader_threads()
        self.prefetch = prefetch
        self.patience = patience
        self.skip_bad_records = skip_bad_records
        self.bad_records: dict[int, BadRecord] = {}
        self._batches = evaluation_batches(len(records), batch_size, rank, world)
        self._memory = BatchMemory()

    def __len__(self) -> int:
        """Batches of this worker."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate once over (images, labels), shaped as :meth:`TrainLoader.epoch` gives them."""
        self.bad_records.clear()
        batches = PreparedBatches(
            self._batches, self._make_sample, _shape(self.transform.size), self.threads,
            self.prefetch, self._memory, self.patience)
        with batches:
            for batch in batches:
                kept = batch.labels != _LEFT_OUT
                yield batch if kept.all() else Batch(batch.images[kept], batch.labels[kept])

    def _make_sample(self, position: int, place: np.ndarray) -> int:
        try:
            image, label = _image_and_label(self.records, position, self.classes)
        except BadRecord as fault:
            if not self.skip_bad_records:
                raise InputError(f"{fault}; or leave it out with --skip-bad-records") from None
            self.bad_records[position] = fault.to_keep()
            return _LEFT_OUT
        with _named(self.records, position, image):
            place[:] = self.transform(image)
        return label


def _shape(size: int) -> tuple[int, int, int]:
    return size, size, 3


def _image_and_label(
    records: RecordFile, position: int, classes: int
) -> tuple[np.ndarray, int]:
    """Decoded image and class of a record.

    Raises
    ------
    BadRecord
        It is damaged, or its content is.
    InputError
        Its label is one of another number of classes.
    """
    record = records.read(position)
    label = record.label
    if not (is_class(label) and label < classes):
        if is_class(label):  # of another number of classes; what else is no class, is damage
            raise InputError(
                f"record {record.key} of {records.path} has label {label:g}, which is no class of "
                f"0 to {classes - 1}; pack the right labels, or give the number of classes with "
                "--classes if there is no class list")
        raise records.bad(position, f"has label {label:g}, which is no class")
    try:
        return decode(record.payload), int(label)
    except InputError as error:
        raise records.bad(position, f"is no image: {error}") from None


@contextmanager
def _named(records: RecordFile, position: int, image: np.ndarray) -> Iterator[None]:
    """Say which image shows a bug, and keep the traceback below."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"record {records.key(position)} of {records.path}, an image of shape {image.shape}, "
            "could not be transformed"
        ) from error
