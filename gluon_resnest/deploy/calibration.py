"""Calibration: which range of each tensor 8 bits cover, by what it holds on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar

_BINS = 2048  # of a histogram: 8 for each of 256 steps
_SAMPLE = 1 << 18  # values of a tensor that are counted in a batch
_SHARES = np.linspace(0.2, 1.0, 41)  # of the whole range, that are tried

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass
class Observed:
    """How the values of one tensor lie.

    Attributes
    ----------
    low, high
        Smallest and largest value; 0 is always between them.
    counts
        Values in each of `_BINS` equal parts of the range, (_BINS,).
    """

    low: float = 0.0
    high: float = 0.0
    counts: np.ndarray | None = None


def check_batches(batches: Sequence[np.ndarray]) -> None:
    """Refuse calibration batches that are not normalised images (N, C, H, W), float32."""
    if not len(batches):
        raise InputError("there are no calibration images: give at least one batch of real ones")
    for batch in batches:
        if batch.ndim != 4 or not batch.size or batch.dtype != np.float32:
            raise InputError(f"a calibration batch is {batch.dtype} of shape {batch.shape}: give "
                             "normalised images (N, C, H, W), float32")
        if not np.isfinite(batch).all():
            raise InputError("a calibration batch holds values that are not finite: normalise "
                             "images, (pixel / 255 - mean) / std")


def observe(run: Run, batches: Sequence[np.ndarray]) -> dict[str, Observed]:
    """Run a network over the calibration images twice: for the ranges, then for histograms.

    Parameters
    ----------
    run
        From images (N, C, H, W) to the values of each tensor by name.
    batches
        Normalised images, float32.
    """
    found: dict[str, Observed] = {}
    for batch in progress_bar(batches, desc="ranges", unit="batch"):
        for name, values in run(batch).items():
            low, high = float(values.min()), float(values.max())
            if not np.isfinite((low, high)).all():
                raise InputError(f"the values of {name} are not finite on the calibration images: "
                                 "the weights are damaged or not trained")
            seen = found.setdefault(name, Observed())
            seen.low, seen.high = min(seen.low, low), max(seen.high, high)
    for batch in progress_bar(batches, desc="histograms", unit="batch"):
        for name, values in run(batch).items():
            seen, values = found[name], values.reshape(-1)
            # An odd stride, for else some columns of a map would never be looked at.
            values = values[::(values.size // _SAMPLE) | 1]
            counts, _ = np.histogram(values, _BINS, _ends(seen.low, seen.high))
            seen.counts = counts if seen.counts is None else seen.counts + counts
    return found


def best_range(seen: Observed, symmetric: bool) -> tuple[float, float]:
    """The range whose 8-bit steps lose least of a tensor, in squares of the error.

    A smaller one clips a few large values and rounds all others less. Each of `_SHARES` of the
    whole range is tried.

    Parameters
    ----------
    symmetric
        Negative and positive values share the largest magnitude and 254 steps, as int8 of oneDNN
        does it; else 255 steps cover the range from end to end.

    Returns
    -------
    low, high
        With `low` 0 for a tensor without negative values, and never equal.
    """
    low, high = _ends(seen.low, seen.high)
    edges = np.linspace(low, high, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    steps = 255
    if symmetric and low < 0:
        steps, high = 254, max(-low, high)
        low = -high
    losses = []
    for share in _SHARES:
        step = (high - low) * share / steps
        # Whole steps on both sides of 0, which is a value of the grid.
        lowest = np.round(low * share / step)
        rounded = step * np.clip(np.round(centres / step), lowest, lowest + steps)
        losses.append(np.sum(seen.counts * np.square(rounded - centres)))
    share = float(_SHARES[int(np.argmin(losses))])
    return low * share, high * share


def _ends(low: float, high: float) -> tuple[float, float]:
    """A range that is never empty: a tensor that is always 0 needs some scale, too."""
    return (low, high) if high > low else (0.0, 1.0)
