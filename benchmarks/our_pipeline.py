"""This package's input pipeline as the benchmark runs it: whole, and step by step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median
from typing import Any, Callable

import cv2
import numpy as np

from benchmarks.pipeline_peers import PipelineCase
from gluon_resnest.data.augment.random_streams import sample_generator
from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.loading.labelled_images import EvaluationLoader, TrainLoader
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.progress_bar import progress_bar

_ADDED = {"AutoAugment": ("crop + AutoAugment", "crop, resize, flip"),
          "jitter, lighting": ("whole view", "crop + AutoAugment")}


def transform_of(augmentation: str, size: int) -> TrainTransform | EvaluationTransform:
    """The transform of one of the benchmark's augmentations; the recipe's has its defaults."""
    if augmentation == "evaluation":
        return EvaluationTransform(size)
    if augmentation == "crop":
        return TrainTransform(size, auto_augment=False, color_jitter=0, lighting=0)
    return TrainTransform(size)


def epoch_starter(
    records: RecordFile,
    transform: TrainTransform | EvaluationTransform,
    batch_size: int,
    classes: int,
    threads: int,
) -> Callable[[], Iterator[Any]]:
    """A function that starts the next epoch and gives its batches; nothing is prepared before."""
    settings: dict[str, Any] = {"classes": classes, "threads": threads}
    if isinstance(transform, EvaluationTransform):
        evaluation = EvaluationLoader(records, transform, batch_size, **settings)
        return lambda: iter(evaluation)
    training = TrainLoader(records, transform, batch_size, seed=0, **settings)
    epochs = count()
    return lambda: training.epoch(next(epochs))


@dataclass(frozen=True)
class Stages:
    """Milliseconds an image in one thread.

    Attributes
    ----------
    steps
        By name, each step called by itself. AutoAugment, and jitter with lighting, are what they
        add to the view without them.
    loader
        The loader with one thread: its own work besides, less what it saves by doing several
        steps in one or for a part of the image.
    """

    steps: dict[str, float]
    loader: float

    @property
    def sum(self) -> float:
        """Of all steps."""
        return sum(self.steps.values())


@dataclass
class _Clock:
    """`clock(name, function, *arguments)` calls the function and adds its time to that name's."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def stages(case: PipelineCase, rounds: int) -> Stages:
    """Time each step over `rounds` epochs, and the loader in turns with them.

    Results are medians of the epochs' means. The case's threads are not used.
    """
    cv2.setNumThreads(0)
    found = []
    with RecordFile(case.records) as records:
        transform = transform_of(case.augmentation, case.input_size)
        start_epoch = epoch_starter(records, transform, case.batch_size, case.classes, threads=1)
        bar = progress_bar(total=2 * rounds * len(records), desc="stages", unit="image")
        with bar:
            for number in range(rounds):
                clock = _Clock()
                for position in range(len(records)):
                    _time_sample(clock, records, transform, (number, position))
                    bar.update()
                clock("loader", lambda: [bar.update(len(batch.labels))
                                         for batch in start_epoch()])
                found.append({name: seconds / len(records) * 1e3
                              for name, seconds in clock.seconds.items()})
    means = {name: median(mean[name] for mean in found) for name in found[0]}
    loader = means.pop("loader")
    return Stages(_apart(means), loader)


def _time_sample(
    clock: _Clock,
    records: RecordFile,
    transform: TrainTransform | EvaluationTransform,
    key: tuple[int, int],
) -> None:
    """The steps of one sample: of a round, and a position in the records."""
    payload = clock("read", records.read, key[1]).payload
    image = clock("decode", decode, payload)
    if isinstance(transform, EvaluationTransform):
        pixels = clock("resize, crop", transform, image)
    else:
        view = clock("draw", _drawn, transform, key, image)
        augmented = replace(view, jitters=(), lighting=None)
        plain = replace(augmented, operations=())
        pixels = clock("crop, resize, flip", transform.apply, image, plain)
        if transform.auto_augment:
            clock("crop + AutoAugment", transform.apply, image, augmented)
            pixels = clock("whole view", transform.apply, image, view)
    clock("copy", np.copyto, np.empty(pixels.shape, np.uint8), pixels)


def _drawn(transform: TrainTransform, key: tuple[int, int], image: np.ndarray) -> Any:
    return transform.draw(sample_generator(0, *key), *image.shape[:2])


def _apart(means: dict[str, float]) -> dict[str, float]:
    """Steps that were timed together with an earlier one, without that one; the copy last."""
    added = {name: max(0.0, means[above] - means[below])
             for name, (above, below) in _ADDED.items() if above in means}
    alone = {name: mean for name, mean in means.items()
             if name not in ("copy", "crop + AutoAugment", "whole view")}
    return {**alone, **added, "copy": means["copy"]}
