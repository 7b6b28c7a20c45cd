"""Accuracy of a network on a set of images, each counted exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Callable

import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.workers import Workers

Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Result:
    """Sums over evaluated images, and the figures that follow from them.

    `skipped` images are in none of the others.
    """

    images: int
    top1_hits: int
    top5_hits: int
    loss_sum: float
    skipped: int = 0

    @property
    def top1(self) -> float:
        """Share of images whose label is the highest logit, %."""
        return 100 * self.top1_hits / self.images

    @property
    def top5(self) -> float:
        """Share of images whose label is among the five highest logits, %."""
        return 100 * self.top5_hits / self.images

    @property
    def loss(self) -> float:
        """Mean cross entropy, nats."""
        return self.loss_sum / self.images

    def as_dict(self) -> dict[str, float]:
        return {"images": self.images, "skipped": self.skipped,
                "top1": self.top1, "top5": self.top5, "loss": self.loss}


def evaluate(
    forward: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    expected_images: int,
    reduce: Reduce = lambda sums: sums,
    batch_size: int | None = None,
    skipped: Sized = (),
    observe: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> Result:
    """Count hits over batches of (images (n, H, W, 3) uint8, labels (n,)).

    Parameters
    ----------
    forward
        From pixels (n, H, W, 3) uint8 to logits (n, classes).
    batches
        This worker's share of the images.
    expected_images
        Number of images over all workers; another count is an error, never a silent bias.
    reduce
        Sum over the workers of a float64 vector.
    batch_size
        Short batches are filled up to it, and the filling not counted, so that a static graph
        meets one shape only.
    skipped
        What this worker's batches leave out, complete when they have ended.
    observe
        Is given the logits (n, classes) and labels (n,) of each batch.
    """
    evaluator = ClassificationEvaluator(forward, expected_images, batch_size, skipped, observe)
    for batch in batches:
        evaluator.add(batch)
    return evaluator.total(reduce)


class ClassificationEvaluator:
    """Counts hits batch by batch. Parameters as for :func:`evaluate`."""

    def __init__(
        self,
        forward: Callable[[np.ndarray], np.ndarray],
        expected_images: int,
        batch_size: int | None = None,
        skipped: Sized = (),
        observe: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> None:
        self._forward, self._observe = forward, observe
        self._expected, self._batch_size, self._skipped = expected_images, batch_size, skipped
        self._sums = np.zeros(4)

    def add(self, batch: tuple[np.ndarray, np.ndarray]) -> None:
        """Take in images (n, H, W, 3) uint8 and labels (n,)."""
        images, labels = batch
        if len(labels) == 0:
            return  # all of it was left out
        logits = self._forward(_filled(images, self._batch_size))[: len(labels)]
        self._sums += _sums(logits, labels)
        if self._observe is not None:
            self._observe(logits, labels)

    def total(self, reduce: Reduce) -> Result:
        """The result over all workers; every worker must call it."""
        total, top1, top5, loss, left_out = reduce(np.append(self._sums, len(self._skipped)))
        if round(total + left_out) != self._expected:
            raise RuntimeError(f"evaluated {round(total)} images of {self._expected}")
        if total == 0:
            raise InputError(f"none of the {self._expected} images can be used")
        return Result(round(total), round(top1), round(top5), float(loss), round(left_out))

    def result(self, workers: Workers) -> dict[str, float]:
        """Figures by name: :meth:`Result.as_dict` of all workers' images."""
        return self.total(workers.sum).as_dict()


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of classes (N,) whose logit is not below the label's; 0 is a top-1 hit.

    Ties and NaN count against the network: a constant or broken one must not score.
    """
    of_label = logits[np.arange(len(labels)), labels][:, None]
    return (~(logits < of_label)).sum(axis=1) - 1


@np.errstate(invalid="ignore")  # infinite logits give NaN, which the sums show
def _sums(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images, top-1 hits, top-5 hits and summed cross entropy of logits (N, K), labels (N,)."""
    ranks = label_ranks(logits, labels)
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return np.array([len(labels), (ranks < 1).sum(), (ranks < 5).sum(), loss.sum()])


def _filled(images: np.ndarray, batch_size: int | None) -> np.ndarray:
    missing = (batch_size or 0) - len(images)
    if missing <= 0:
        return images
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
