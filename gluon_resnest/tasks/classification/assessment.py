"""Where a network errs and how far its probabilities can be trusted, beside its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gluon_resnest.tasks.classification.evaluation import label_ranks
from gluon_resnest.tasks.classification.roc import roc_auc

BINS = 15

_MOST_SCORES = 10**8  # images x classes that the ROC AUC is computed of: 400 MB

_MOST_BY_NAME_ALONE = 20  # classes; of more, labels say which class a name is of


@dataclass(frozen=True)
class Assessment:
    """What an :class:`Assessor` has seen.

    Attributes
    ----------
    names
        Of the classes, (K,).
    images, hits
        Of each class: its images, and those whose top-1 class it is; int64 of shape (K,).
    pairs
        Errors as (label, predicted class, images), int64 of shape (pairs, 3), the most frequent
        first.
    bin_images, bin_hits, bin_confidence
        Of each of the bins of confidence: images, top-1 hits, sum of the confidences; (BINS,).
    aucs
        Of each class: area under the ROC curve of its probability, this class against all others,
        0 to 1, float64 of shape (K,); NaN where it is undefined (:func:`~.roc.roc_auc`), and for
        all classes where images times classes exceed 100 million.
    """

    names: tuple[str, ...]
    images: np.ndarray
    hits: np.ndarray
    pairs: np.ndarray
    bin_images: np.ndarray
    bin_hits: np.ndarray
    bin_confidence: np.ndarray
    aucs: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """Share of each class's images that are recognised, % of shape (K,); NaN without images."""
        with np.errstate(invalid="ignore"):
            return 100 * self.hits / self.images

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' accuracies, %, over the classes that have images.

        It doesn't rise by naming the most frequent class: that scores 100 % / K.
        """
        return float(self.accuracy[self.images > 0].mean())

    @property
    def roc_auc(self) -> float:
        """Area under the ROC curve, 0 to 1; NaN where it is undefined.

        With two classes it is that of the second one's probability. With more it is the mean over
        the classes that have images, each against all others.
        """
        there = self.images > 0
        return float(self.aucs[1] if len(self.names) == 2 else self.aucs[there].mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, % (Naeini et al., 2015; Guo et al., 2017, equation 3).

        The confidence of an image is the probability of its top-1 class. Over 15 bins of equal
        width, bin b holding confidences in ((b - 1) / 15, b / 15], it is the mean of
        \\|accuracy - mean confidence\\| of a bin, weighted by the images in it. NaN if the network
        gave one.
        """
        gaps = np.abs(self.bin_hits - self.bin_confidence)  # times the bin's images
        return float(100 * gaps.sum() / self.bin_images.sum())

    @property
    def confidence(self) -> float:
        """Mean confidence, %."""
        return float(100 * self.bin_confidence.sum() / self.bin_images.sum())

    def worst(self, count: int) -> list[int]:
        """Labels of the classes with the lowest accuracy of those with images, lowest first."""
        there = np.flatnonzero(self.images)
        return there[np.argsort(self.accuracy[there], kind="stable")][:count].tolist()

    def matrix(self) -> np.ndarray:
        """Confusion matrix, int64 of shape (K, K): images of class [row] taken for [column]."""
        matrix = np.diag(self.hits)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.pairs[:, 2]
        return matrix

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it; None for a figure that is undefined, as without images."""
        bins = [{"from": number / BINS, "to": (number + 1) / BINS, "images": int(images),
                 "accuracy": 100 * float(hits) / images if images else None,
                 "confidence": _number(100 * float(confidence) / images) if images else None}
                for number, (images, hits, confidence) in enumerate(zip(
                    self.bin_images.tolist(), self.bin_hits, self.bin_confidence))]
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "roc_auc": _number(self.roc_auc),
            "expected_calibration_error": _number(self.calibration_error),
            "mean_confidence": _number(self.confidence),
            "calibration": bins,
            "per_class": [
                {"label": label, "class": name, "images": images, "hits": hits,
                 "accuracy": 100 * hits / images if images else None, "roc_auc": _number(auc)}
                for label, (name, images, hits, auc) in enumerate(zip(
                    self.names, self.images.tolist(), self.hits.tolist(), self.aucs.tolist()))],
            "confusions": [{"label": label, "predicted": predicted, "images": images}
                           for label, predicted, images in self.pairs.tolist()],
        }

    def as_text(self, count: int = 3) -> list[str]:
        """Lines about all classes, calibration and, of more than 2, the worst ones and errors."""
        top1 = 100 * self.hits.sum() / self.images.sum()
        verdict = "over" if self.confidence > top1 else "under"
        lines = [f"balanced accuracy {self.balanced_accuracy:.2f} %, {self._auc_in_words()}",
                 f"calibration: expected error {self.calibration_error:.2f} % ({BINS} bins), mean "
                 f"confidence {self.confidence:.2f} %, {verdict}confident by "
                 f"{abs(self.confidence - top1):.2f} points"]
        if len(self.names) > 2:
            lines.append("worst classes: " + "; ".join(
                f"{self.names[label]} {self.accuracy[label]:.1f} % of {self.images[label]}"
                for label in self.worst(count)))
            if len(self.pairs):
                lines.append("most confused: " + "; ".join(
                    self.pair_in_words(pair) for pair in self.pairs[:count].tolist()))
        return lines

    def _auc_in_words(self) -> str:
        there = self.images > 0
        if not np.isnan(self.roc_auc):
            if len(self.names) == 2:
                return f"ROC AUC {self.roc_auc:.4f}"
            missing = "" if there.all() else f" ({there.sum()} of {len(there)} classes have images)"
            return f"ROC AUC {self.roc_auc:.4f}, mean of each class against the rest{missing}"
        if there.sum() < 2:
            return "ROC AUC undefined: all images are of one class"
        if self.images.sum() * len(self.names) > _MOST_SCORES:
            return f"ROC AUC not computed: more than {_MOST_SCORES:,} images x classes"
        return "ROC AUC undefined: the network gives NaN"

    def pair_in_words(self, pair: Sequence[int], longest: int = 1000) -> str:
        """A row of `pairs` as a person says it; `longest` is for each of the names."""
        label, predicted, images = pair
        true, other = (abbreviated(self.names[number], longest) for number in (label, predicted))
        if len(self.names) > _MOST_BY_NAME_ALONE:  # shortened names may be alike
            true, other = f"{true} ({label})", f"{other} ({predicted})"
        return f"{true} for {other} {images}×"


class Assessor:
    """Collects what :func:`~.evaluation.evaluate` lets it observe.

    Parameters
    ----------
    names
        Of all classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._labels: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []  # log of the probabilities, (n, K) of each batch
        self._bins = np.zeros((3, BINS))

    @np.errstate(invalid="ignore")  # infinite logits give NaN, which the figures show
    def observe(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Take in logits (n, K) and labels (n,)."""
        labels = np.asarray(labels, dtype=np.int64)
        hits = label_ranks(logits, labels) < 1
        logits = logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        sums = np.exp(shifted).sum(axis=1)
        confidences = 1 / sums
        # A tie with the label is no hit (see label_ranks): it was taken for the other class.
        others = logits.copy()
        others[np.flatnonzero(~hits), labels[~hits]] = -np.inf
        self._labels.append(labels)
        self._predicted.append(np.where(hits, labels, others.argmax(axis=1)))
        # NaN goes to the last bin, and from there to the calibration error.
        bins = np.nan_to_num(np.ceil(confidences * BINS) - 1, nan=BINS - 1)
        bins = bins.clip(0, BINS - 1).astype(int)
        self._bins += [np.bincount(bins, weights, BINS)
                       for weights in (None, hits.astype(float), confidences)]
        if self._bins[0].sum() * len(self._names) > _MOST_SCORES:
            self._scores.clear()
        else:  # as logarithms: in float32 all probabilities near 1 would be ties
            self._scores.append((shifted - np.log(sums)[:, None]).astype(np.float32))

    def assessment(self) -> Assessment:
        """Of all that was observed until now, at least one image."""
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._predicted)
        count = len(self._names)
        # Class by class: all scores in one more array would double the memory.
        aucs = [roc_auc(np.concatenate([scores[:, label] for scores in self._scores]),
                        labels == label) if self._scores else np.nan for label in range(count)]
        wrong = labels != predicted
        # Pairs, not a matrix: that of ImageNet-21k would take 4 GB.
        codes, images = np.unique(labels[wrong] * count + predicted[wrong], return_counts=True)
        order = np.argsort(-images, kind="stable")
        pairs = np.stack([codes // count, codes % count, images], axis=1)[order]
        return Assessment(self._names, np.bincount(labels, minlength=count),
                          np.bincount(labels[~wrong], minlength=count), pairs,
                          self._bins[0].astype(np.int64), *self._bins[1:],
                          np.array(aucs))


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if np.isnan(value) else value


def abbreviated(name: str, longest: int) -> str:
    """`name` in at most `longest` characters."""
    return name if len(name) <= longest else f"{name[:longest - 1].rstrip()}…"
