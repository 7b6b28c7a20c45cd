"""ROC curves and the area under them: how well a score ranks one class above the others."""

from __future__ import annotations

import numpy as np


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve (Fawcett, 2006, section 7).

    It is the probability that a random positive image has a higher score than a random negative
    one; a tie counts one half.

    Parameters
    ----------
    scores
        Of each image, (N,).
    positive
        Whether the image belongs to the class, bool of shape (N,).

    Returns
    -------
    float
        Between 0 and 1. NaN where it is undefined: without positive or without negative images,
        or if a score is NaN.
    """
    if positive.all() or not positive.any() or np.isnan(scores).any():
        return float("nan")
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, each of shape (M,), from (0, 0) to (1, 1).

    There is one point for each threshold at which the curve moves: images with the same score
    pass it together. The area under the straight lines between the points is :func:`roc_auc`.

    Parameters
    ----------
    scores
        Of each image, (N,), without NaN.
    positive
        Whether the image belongs to the class, bool of shape (N,); both kinds must occur.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    rates = [np.append(0, np.cumsum(kind[order])[last_of_ties]) / kind.sum()
             for kind in (~positive, positive)]
    return rates[0], rates[1]
