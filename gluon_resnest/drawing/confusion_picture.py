"""The confusion matrix of an assessed network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gluon_resnest.drawing.figure import literal, new_figure, save
from gluon_resnest.tasks.classification.assessment import Assessment, abbreviated

_MOST_NUMBERED = 20  # classes up to which each cell has its number
_MOST_CELLS = 1000  # on a side: of more classes, neighbours are put together
_LONGEST_NAME = 28  # characters
_LISTED = 20  # pairs beside the matrix


def draw_confusion(assessment: Assessment, picture: Path, title: str) -> None:
    """Draw the confusion matrix as a PNG: numbers for few classes, colours alone for many.

    Colours are shares of a row, so a rare class is seen as well as a frequent one; the most
    confused pairs are listed beside.
    """
    count = len(assessment.names)
    numbered = count <= _MOST_NUMBERED
    names = [literal(abbreviated(name, _LONGEST_NAME)) for name in assessment.names]
    side = 3.2 + 0.36 * count if numbered else 8.5
    figure = new_figure(side + 5.2, max(side, 4.2))
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
    figure.suptitle(literal(title))
    beside.axis("off")
    lines = [assessment.pair_in_words(pair, 24) for pair in assessment.pairs[:_LISTED].tolist()]
    beside.set_title("most confused (true for predicted)" if lines else "no errors", fontsize=10,
                     loc="left")
    for place, line in enumerate(lines):
        beside.text(0, 0.98 - place * 0.27 / max(side, 4.2), literal(line), fontsize=8.5, va="top",
                    transform=beside.transAxes)
    save(figure, picture, 100 if numbered else 200, margin=0.15)


def _pooled(matrix: np.ndarray) -> np.ndarray:
    """The largest of each block of cells, where there are more than a picture has room for."""
    count = -(-len(matrix) // _MOST_CELLS)
    edges = np.arange(0, len(matrix), count)
    return np.maximum.reduceat(np.maximum.reduceat(matrix, edges, axis=0), edges, axis=1)
