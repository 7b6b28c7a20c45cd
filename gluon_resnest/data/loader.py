"""Batches of a record file for training and for evaluation, as uint8 NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

import numpy as np

from gluon_resnest import runtime
from gluon_resnest.data import sampling
from gluon_resnest.data.decoding import decode
from gluon_resnest.data.prefetch import Batch, prepared_batches
from gluon_resnest.data.records import Record, RecordFile
from gluon_resnest.data.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.errors import InputError

# Two batches hide the time between a batch's first and last sample; more only cost memory.
BATCHES_AHEAD = 2

# Keeps a sample's random stream apart from the stream that shuffles the records.
_SAMPLE_STREAM = 2


def default_threads() -> int:
    """This process's share of the host's usable cores, at least 1."""
    return max(1, runtime.usable_cores() // runtime.launched_local_size())


def check_classes(records: RecordFile, classes: int) -> None:
    """Compare the number of classes with the class list beside the record file, if there is one.

    Raises
    ------
    InputError
        The list has another number of names.
    """
    names = records.class_names
    if names is not None and len(names) != classes:
        raise InputError(
            f"{records.path} has {len(names)} classes by its class list "
            f"{records.path.with_suffix('.classes.txt').name}, but the network has {classes}; "
            f"give --classes {len(names)}"
        )


def check_class_names(records: RecordFile, expected: Sequence[str] | None) -> None:
    """Compare the class list beside the record file, if there is one, with the names expected.

    Raises
    ------
    InputError
        They differ: labels would mean other classes. The message names the first difference.
    """
    names = records.class_names
    if names is None or expected is None or names == list(expected):
        return
    check_classes(records, len(expected))
    label = next(i for i, (name, other) in enumerate(zip(names, expected)) if name != other)
    raise InputError(f"label {label} of {records.path} is '{names[label]}' by its class list, but "
                     f"'{expected[label]}' is expected: pack it from the same class folders as "
                     "the training images")


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Source of the draws that augment one record in one epoch, whoever prepares it."""
    return np.random.default_rng((seed, epoch, position, _SAMPLE_STREAM))


class TrainLoader:
    """Augmented batches of a worker's shard.

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

    Raises
    ------
    InputError
        The class list beside the records has another number of classes, or the file has too few
        images for so many workers.
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
    ) -> None:
        check_classes(records, classes)
        self.records = records
        self.transform = transform
        self.batch_size = batch_size
        self.rank, self.world = rank, world
        self.seed = seed
        self.classes = classes
        self.threads = threads or default_threads()
        self.prefetch = prefetch
        self._steps = len(
            sampling.global_batch_sizes(len(records), batch_size, world)  # checks the shards
        )

    def __len__(self) -> int:
        """Steps in an epoch, the same for every worker."""
        return self._steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Iterate over one epoch's batches.

        Closing the iterator, or dropping it, ends its threads.

        Yields
        ------
        images : numpy.ndarray
            uint8 of shape (N, size, size, 3).
        labels : numpy.ndarray
            int64 of shape (N,).

        Raises
        ------
        InputError
            A record is damaged, is no image, or has a label outside [0, classes).
        """
        batches = sampling.epoch_batches(
            len(self.records), self.batch_size, self.rank, self.world, epoch, self.seed
        )

        def view(position: int, image: np.ndarray) -> np.ndarray:
            return self.transform(image, sample_generator(self.seed, epoch, position))

        make_sample = partial(_make_sample, self.records, self.classes, view)
        shape = (self.transform.size, self.transform.size, 3)
        return prepared_batches(batches, make_sample, shape, self.threads, self.prefetch)


class EvaluationLoader:
    """Batches of a worker's part of a record file, in order; every image once over all workers.

    The last batch may be short, and a worker may have none. Parameters and errors as for
    :class:`TrainLoader`.
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
    ) -> None:
        check_classes(records, classes)
        self.records = records
        self.transform = transform
        self.classes = classes
        self.threads = threads or default_threads()
        self.prefetch = prefetch
        self._batches = sampling.evaluation_batches(len(records), batch_size, rank, world)

    def __len__(self) -> int:
        """Batches of this worker."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate once over (images, labels), shaped as :meth:`TrainLoader.epoch` gives them."""

        def view(_: int, image: np.ndarray) -> np.ndarray:
            return self.transform(image)

        make_sample = partial(_make_sample, self.records, self.classes, view)
        shape = (self.transform.size, self.transform.size, 3)
        return prepared_batches(self._batches, make_sample, shape, self.threads, self.prefetch)


def _make_sample(
    records: RecordFile,
    classes: int,
    view: Callable[[int, np.ndarray], np.ndarray],
    position: int,
    place: np.ndarray,
) -> int:
    """Write the pixels of one record's view to `place`; its label."""
    record = records.read(position)
    label = _class_of(record, records, classes)
    try:
        image = decode(record.payload)
    except InputError as error:
        raise InputError(
            f"record {record.key} of {records.path} is no image: {error}; replace the image and "
            "pack the file again"
        ) from None
    try:
        place[:] = view(position, image)
    except Exception as error:
        # A bug, not an input: say which image shows it, and keep the traceback below.
        raise RuntimeError(
            f"record {record.key} of {records.path}, an image of shape {image.shape}, "
            "could not be transformed"
        ) from error
    return label


def _class_of(record: Record, records: RecordFile, classes: int) -> int:
    label = record.label
    if not (0 <= label < classes and label == int(label)):
        raise InputError(
            f"record {record.key} of {records.path} has label {label:g}, which is no class of 0 to "
            f"{classes - 1}; give the number of classes with --classes, or pack the right labels"
        )
    return int(label)
