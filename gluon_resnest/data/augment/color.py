"""Colour jitter and lighting, on uint8 pixels (H, W, 3) in the order R, G, B.

Each result is rounded and clipped to 0-255, once an operation as in Gluon's transforms (which cut
the fraction off instead: at most one level darker).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import cv2
import numpy as np

from gluon_resnest.data.augment.random_streams import Source, below, normal, uniform

# ITU-R BT.601, as MXNet and Pillow weigh the channels.
LUMINANCE = np.array([0.299, 0.587, 0.114])

# Principal components of ImageNet's colours: AlexNet's, in levels of 0-255.
PCA_EIGENVALUES = np.array([55.46, 4.794, 1.148])
PCA_EIGENVECTORS = np.array([
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
])

class Jitter(NamedTuple):
    """One of the three jitters and its factor; 1 changes nothing."""

    kind: str
    factor: float


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale all levels: factor * x."""
    return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean luminance m of the whole image: factor * x + (1 - factor) * m."""
    mean = float(np.dot(cv2.mean(image)[:3], LUMINANCE))
    # With weight 0 the second image does not count: this way there is one pass, by vectors.
    return cv2.addWeighted(image, factor, image, 0.0, (1 - factor) * mean)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend each pixel with its own luminance: factor * x + (1 - factor) * luminance(x).

    MXNet's operator takes 0.114 * blue for the luminance, by an assignment where a sum is meant.
    """
    matrix = factor * np.eye(3) + (1 - factor) * LUMINANCE
    return cv2.transform(image, matrix)


_ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
}


_ORDERS = tuple(itertools.permutations(_ADJUSTMENTS))


def draw_jitter(rng: Source, strength: float) -> tuple[Jitter, ...]:
    """Draw the three jitters in random order, each factor from 1 - strength to 1 + strength."""
    order = _ORDERS[below(rng, len(_ORDERS))]
    return tuple(
        Jitter(kind, uniform(rng, max(0.0, 1 - strength), 1 + strength)) for kind in order)


def apply_jitter(image: np.ndarray, jitters: tuple[Jitter, ...]) -> np.ndarray:
    """Apply jitters one after the other."""
    for jitter in jitters:
        image = _ADJUSTMENTS[jitter.kind](image, jitter.factor)
    return image


def draw_lighting(rng: Source, deviation: float) -> tuple[float, float, float]:
    """Draw the weights of the three principal components, each from N(0, deviation**2)."""
    return normal(rng, deviation), normal(rng, deviation), normal(rng, deviation)


def apply_lighting(image: np.ndarray, weights: tuple[float, float, float]) -> np.ndarray:
    """Add the weighted principal components of ImageNet's colours to every pixel (AlexNet)."""
    shift = np.rint(PCA_EIGENVECTORS @ (PCA_EIGENVALUES * weights))
    return cv2.add(image, (*shift.tolist(), 0.0))
