"""Label smoothing and mixup of a batch with its reverse (paper, "Training Strategy")."""

from __future__ import annotations

import mxnet as mx
import numpy as np


def smoothed_labels(
    labels: np.ndarray, classes: int, epsilon: float, rule: str = "paper"
) -> np.ndarray:
    """Class distributions (N, classes), float32, of labels (N,).

    Parameters
    ----------
    rule
        ``"paper"``: 1 - epsilon for the label and epsilon / (K - 1) for each other class.
        ``"gluoncv"``: epsilon / K for every class, and 1 - epsilon more for the label.
    """
    if rule == "paper":
        off, on = epsilon / (classes - 1), 1 - epsilon
    elif rule == "gluoncv":
        off = epsilon / classes
        on = off + 1 - epsilon
    else:
        raise ValueError(f"label smoothing rule '{rule}' must be 'paper' or 'gluoncv'")
    targets = np.full((len(labels), classes), off, dtype=np.float32)
    targets[np.arange(len(labels)), labels] = on
    return targets


def draw_lambdas(
    images: int, alpha: float, rng: np.random.Generator, per: str = "sample"
) -> np.ndarray:
    """Mixing weights (N,), float32, from Beta(alpha, alpha).

    One for each ``"sample"``, as the paper writes it, or one for the whole ``"batch"``.
    """
    if per == "sample":
        return rng.beta(alpha, alpha, size=images).astype(np.float32)
    if per == "batch":
        return np.full(images, rng.beta(alpha, alpha), dtype=np.float32)
    raise ValueError(f"mixup lambda per '{per}' must be per 'sample' or 'batch'")


def mix_with_reverse(batch: mx.nd.NDArray, lambdas: mx.nd.NDArray) -> mx.nd.NDArray:
    """lambda_i x_i + (1 - lambda_i) x_(N-1-i), for images (N, C, H, W) or targets (N, K)."""
    weights = lambdas.reshape((-1,) + (1,) * (batch.ndim - 1))
    reverse = batch.flip(axis=0)
    return reverse + mx.nd.broadcast_mul(weights, batch - reverse)
