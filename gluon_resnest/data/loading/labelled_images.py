"""Batches of images with one label each, from a record file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.class_names import check_classes, check_evaluated_classes
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.loading.loader import EvaluationSampleLoader, SampleLoader
from gluon_resnest.data.loading.prefetch import Arrays, Field
from gluon_resnest.data.records.bad_records import DEFAULT_SHARE, BadRecords
from gluon_resnest.data.records.index import named_gaps
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.data.records.recordio import is_class
from gluon_resnest.errors import InputError


class Batch(NamedTuple):
    """Images and labels of a step.

    Attributes
    ----------
    images
        uint8 of shape (N, height, width, channels), contiguous. Nobody else uses the memory as
        long as this array or a part of it is in use.
    labels
        int64 of shape (N,).
    """

    images: np.ndarray
    labels: np.ndarray


class LabelledImages:
    """Records as samples: pixels (size, size, 3) of a transform, and a class number.

    Parameters
    ----------
    records
        Where the images are.
    transform
        Makes the pixels of a sample from a decoded image and, in training, a generator.
    classes
        Number of classes: labels are 0 to `classes - 1`.
    """

    batch = Batch

    def __init__(self, records: RecordFile, transform: TrainTransform | EvaluationTransform,
                 classes: int) -> None:
        self.records, self.transform, self.classes = records, transform, classes
        self.path = records.path
        self.fields = {"images": Field((transform.size, transform.size, 3)),
                       "labels": Field((), np.int64)}

    def __len__(self) -> int:
        return len(self.records)

    def read(self, position: int) -> tuple[np.ndarray, int]:
        """Decoded image and class; errors as for :class:`~.loader.Samples`."""
        return _image_and_label(self.records, position, self.classes)

    def write(self, stored: tuple[np.ndarray, int], position: int, part: Arrays,
              rng: random.Random | None) -> None:
        image, label = stored
        with _named(self.records, position, image):
            part["images"][:] = (self.transform(image) if rng is None
                                 else self.transform(image, rng))
        part["labels"][...] = label


class TrainLoader(SampleLoader[Batch]):
    """Augmented batches of a worker's part of a record file.

    Parameters as for :class:`~.loader.SampleLoader`, and:

    Parameters
    ----------
    records, transform, classes
        As for :class:`LabelledImages`.
    max_bad_records
        Share of the records that may be bad before :class:`InputError` is raised.

    Raises
    ------
    InputError
        The class list beside the records has another number of classes, the file has too few
        images for so many workers, or too much of it was cut off.
    """

    def __init__(self, records: RecordFile, transform: TrainTransform, batch_size: int,
                 rank: int = 0, world: int = 1, seed: int = 0, classes: int = 1000,
                 max_bad_records: float = DEFAULT_SHARE, **options) -> None:
        check_classes(records, classes)
        self.records, self.transform = records, transform
        super().__init__(LabelledImages(records, transform, classes),
                         BadRecords(records, max_bad_records), batch_size, rank, world, seed,
                         **options)


class EvaluationLoader(EvaluationSampleLoader[Batch]):
    """Batches of a worker's part of a record file, in order; every image once over all workers.

    Parameters and errors as for :class:`TrainLoader` and
    :class:`~.loader.EvaluationSampleLoader`.
    """

    def __init__(self, records: RecordFile, transform: EvaluationTransform, batch_size: int,
                 rank: int = 0, world: int = 1, classes: int = 1000,
                 skip_bad_records: bool = False, **options) -> None:
        check_evaluated_classes(records, classes)
        if records.gaps and not skip_bad_records:
            raise InputError(
                f"{named_gaps(records.gaps)} of {records.path}, which has no index, may hold "
                "records that are lost; copy the file and its .idx again, or do without "
                "them with --skip-bad-records")
        self.records, self.transform = records, transform
        super().__init__(LabelledImages(records, transform, classes), batch_size, rank, world,
                         skip_bad_records=skip_bad_records, **options)


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
