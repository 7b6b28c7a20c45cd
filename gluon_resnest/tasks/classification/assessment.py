"""Where a network errs and how far its probabilities can be trusted, beside its accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import printable
from gluon_resnest.tasks.classification.evaluation import label_ranks

BINS = 15

_MOST_NUMBERED = 20  # classes up to which each cell of the picture has its number
_MOST_CELLS = 1000  # on a side of the picture: of more classes, neighbours are put together
_LONGEST_NAME = 28  # characters, in the picture
_LISTED = 20  # pairs beside the picture


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
    """

    names: tuple[str, ...]
    images: np.ndarray
    hits: np.ndarray
    pairs: np.ndarray
    bin_images: np.ndarray
    bin_hits: np.ndarray
    bin_confidence: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """Share of each class's images that are recognised, % of shape (K,); NaN without images."""
        with np.errstate(invalid="ignore"):
            return 100 * self.hits / self.images

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
        """Everything as JSON has it; None where there are no images."""
        bins = [{"from": number / BINS, "to": (number + 1) / BINS, "images": int(images),
                 "accuracy": 100 * float(hits) / images if images else None,
                 "confidence": 100 * float(confidence) / images if images else None}
                for number, (images, hits, confidence) in enumerate(zip(
                    self.bin_images.tolist(), self.bin_hits, self.bin_confidence))]
        return {
            "expected_calibration_error": self.calibration_error,
            "mean_confidence": self.confidence,
            "calibration": bins,
            "per_class": [
                {"label": label, "class": name, "images": images, "hits": hits,
                 "accuracy": 100 * hits / images if images else None}
                for label, (name, images, hits) in enumerate(zip(
                    self.names, self.images.tolist(), self.hits.tolist()))],
            "confusions": [{"label": label, "predicted": predicted, "images": images}
                           for label, predicted, images in self.pairs.tolist()],
        }

    def as_text(self, count: int = 3) -> list[str]:
        """Lines about calibration and, of more than 2 classes, the worst ones and their errors."""
        top1 = 100 * self.hits.sum() / self.images.sum()
        verdict = "over" if self.confidence > top1 else "under"
        lines = [f"calibration: expected error {self.calibration_error:.2f} % ({BINS} bins), mean "
                 f"confidence {self.confidence:.2f} %, {verdict}confident by "
                 f"{abs(self.confidence - top1):.2f} points"]
        if len(self.names) > 2:
            lines.append("worst classes: " + "; ".join(
                f"{self.names[label]} {self.accuracy[label]:.1f} % of {self.images[label]}"
                for label in self.worst(count)))
            if len(self.pairs):
                lines.append("most confused: " + "; ".join(
                    self._pair_in_words(pair) for pair in self.pairs[:count].tolist()))
        return lines

    def _pair_in_words(self, pair: Sequence[int], longest: int = 1000) -> str:
        label, predicted, images = pair
        true, other = (_short(self.names[number], longest) for number in (label, predicted))
        if len(self.names) > _MOST_NUMBERED:  # short names may be alike, and labels find the cell
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
        self._bins = np.zeros((3, BINS))

    def observe(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Take in logits (n, K) and labels (n,)."""
        labels = np.asarray(labels, dtype=np.int64)
        hits = label_ranks(logits, labels) < 1
        logits = logits.astype(np.float64)
        confidences = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
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

    def assessment(self) -> Assessment:
        """Of all that was observed until now, at least one image."""
        labels, predicted = np.concatenate(self._labels), np.concatenate(self._predicted)
        count = len(self._names)
        wrong = labels != predicted
        # Pairs, not a matrix: that of ImageNet-21k would take 4 GB.
        codes, images = np.unique(labels[wrong] * count + predicted[wrong], return_counts=True)
        order = np.argsort(-images, kind="stable")
        pairs = np.stack([codes // count, codes % count, images], axis=1)[order]
        return Assessment(self._names, np.bincount(labels, minlength=count),
                          np.bincount(labels[~wrong], minlength=count), pairs,
                          self._bins[0].astype(np.int64), *self._bins[1:])


# ---- pictures ----


def check_picture(flag: str, path: Path) -> None:
    """See early that a picture can be written, so that nothing is evaluated in vain.

    Raises
    ------
    InputError
        `path` does not end in .png, is a folder, or its folder cannot be made.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise InputError(f"{flag} {path} must be a file that ends in .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}") from None


def draw_confusion(assessment: Assessment, picture: Path, title: str) -> None:
    """Draw the confusion matrix as a PNG: numbers for few classes, colours alone for many.

    Colours are shares of a row, so a rare class is seen as well as a frequent one; the most
    confused pairs are listed beside.
    """
    count = len(assessment.names)
    numbered = count <= _MOST_NUMBERED
    names = [_plain(_short(name, _LONGEST_NAME)) for name in assessment.names]
    side = 3.2 + 0.36 * count if numbered else 8.5
    figure = _new_figure(side + 5.2, max(side, 4.2))
    axes, beside = figure.subplots(1, 2, gridspec_kw={"width_ratios": (side, 4.2)})
    matrix = _pooled(assessment.matrix() / np.maximum(assessment.images, 1)[:, None])
    # The square root: an error of 1 % must be seen, also in one cell of a thousand.
    image = axes.imshow(np.sqrt(matrix), cmap="Blues" if numbered else "magma_r", vmin=0, vmax=1,
                        interpolation="nearest", extent=(-0.5, count - 0.5, count - 0.5, -0.5))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02,
                          ticks=np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("share of the true class's images", fontsize=9)
    if numbered:
        axes.set_xticks(range(count), names, rotation=90 if count > 3 else 0, fontsize=9)
        axes.set_yticks(range(count), names, fontsize=9)
        for (row, column), number in np.ndenumerate(assessment.matrix()):
            axes.text(column, row, str(number) if number else "", ha="center", va="center",
                      fontsize=9, color="white" if matrix[row, column] > 0.35 else "black")
    axes.set_xlabel("predicted class" if numbered else "predicted class, by label")
    axes.set_ylabel("true class" if numbered else "true class, by label")
    top1 = 100 * assessment.hits.sum() / assessment.images.sum()
    axes.set_title(f"top-1 {top1:.2f} % of {assessment.images.sum():,} images", fontsize=10)
    figure.suptitle(_plain(title))
    beside.axis("off")
    lines = [assessment._pair_in_words(pair, 24) for pair in assessment.pairs[:_LISTED].tolist()]
    beside.set_title("most confused (true for predicted)" if lines else "no errors", fontsize=10,
                     loc="left")
    for place, line in enumerate(lines):
        beside.text(0, 0.98 - place * 0.27 / max(side, 4.2), _plain(line), fontsize=8.5, va="top",
                    transform=beside.transAxes)
    _save(figure, picture, 100 if numbered else 200)


def draw_calibration(assessment: Assessment, picture: Path, title: str) -> None:
    """Draw a reliability diagram as a PNG: accuracy by confidence, and the images in each bin."""
    figure = _new_figure(5.6, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    there = assessment.bin_images > 0
    middles = (np.arange(BINS) + 0.5) / BINS
    accuracy, confidence = (sums[there] / assessment.bin_images[there] for sums in
                            (assessment.bin_hits, assessment.bin_confidence))
    upper.bar(middles[there], accuracy, 0.92 / BINS, color="#0072B2", label="accuracy of the bin")
    upper.plot(confidence, confidence, "_", color="#D55E00", markersize=16, markeredgewidth=2,
               label="its mean confidence")
    upper.plot([0, 1], [0, 1], ":", color="#666666", linewidth=1, label="calibrated")
    upper.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share of hits")
    upper.set_title(f"expected calibration error {assessment.calibration_error:.2f} % "
                    f"({BINS} bins)", fontsize=10)
    upper.legend(fontsize=8.5, loc="upper left")
    lower.bar(middles, assessment.bin_images, 0.92 / BINS, color="#999999")
    lower.set(xlabel="confidence: probability of the top-1 class", ylabel="images")
    if assessment.bin_images.max() > 0:
        lower.set_yscale("log")
        lower.set_ylim(bottom=0.7)
    figure.suptitle(_plain(title))
    _save(figure, picture, 100)


def _pooled(matrix: np.ndarray) -> np.ndarray:
    """The largest of each block of cells, where there are more than a picture has room for."""
    count = -(-len(matrix) // _MOST_CELLS)
    edges = np.arange(0, len(matrix), count)
    return np.maximum.reduceat(np.maximum.reduceat(matrix, edges, axis=0), edges, axis=1)


def _new_figure(width: float, height: float) -> Any:
    # matplotlib's object interface needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, picture: Path, dpi: int) -> None:
    with replacing(picture) as temporary, warnings.catch_warnings():
        # A name may have letters that the font lacks: a box will do.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, dpi=dpi, format="png", bbox_inches="tight", pad_inches=0.15)


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[:longest - 1].rstrip()}…"


def _plain(text: str) -> str:
    return printable(text).replace("$", r"\$")  # else what is between two of them is mathematics
