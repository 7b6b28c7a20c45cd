"""The pieces that pictures of runs are made of: lines, their colours, axes and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gluon_resnest.drawing.figure import LINE_COLOURS, literal, one_line
from gluon_resnest.plain_text import printable

FEW_POINTS = 30  # up to here each has a marker
_MOST_POINTS = 1500  # a line of more is a smear
_LONGEST_LABEL = 110

MetricsEvent = dict  # a line of metrics.jsonl


def line_of(events: Sequence[MetricsEvent],
            value: str | Callable[[MetricsEvent], float | None]) -> Any:
    """Arrays (N,) of the epochs and values of events, NaN where there is no value."""
    take = value if callable(value) else lambda event: event.get(value)
    return (np.array([event["epoch"] for event in events], float),
            np.array([np.nan if number is None else number for number in map(take, events)],
                     float))


def draw_line(axes: Any, line: Any, colour: Any, smooth: bool = False, markers: bool = True,
              linewidth: float = 1.6, **style: Any) -> None:
    """Draw what :func:`line_of` made, unless it has no values."""
    x, y = _thinned(*line)
    if not np.isfinite(y).any():
        return
    dot = "." if markers and len(x) <= FEW_POINTS else None
    if smooth and len(x) >= 5:
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
        y, dot = _moving_mean(y), None
    axes.plot(x, y, color=colour, linewidth=linewidth, marker=dot, **style)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that no more than so many points are left."""
    count = -(-len(x) // _MOST_POINTS)
    if count <= 1:
        return x, y
    edges, there = np.arange(0, len(x), count), np.isfinite(y)
    sizes = np.diff(np.append(edges, len(x)))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a block without values
        return (np.add.reduceat(x, edges) / sizes,
                np.add.reduceat(np.where(there, y, 0), edges) / np.add.reduceat(there, edges,
                                                                                dtype=int))


def _moving_mean(y: np.ndarray) -> np.ndarray:
    """Means over a twentieth of the curve, over less towards its ends: they stay centred."""
    place = np.arange(len(y))
    reach = np.minimum(max(1, len(y) // 40), np.minimum(place, place[::-1]))
    there = np.isfinite(y)
    sums = np.append(0, np.cumsum(np.where(there, y, 0)))
    counts = np.append(0, np.cumsum(there))
    low, high = place - reach, place + reach + 1
    with np.errstate(invalid="ignore"):
        return np.where(there, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


def means_by_epoch(line: Any) -> Any:
    """Means over each epoch, drawn at its end, or at the last value of one that is not whole."""
    x, y = (array[np.isfinite(line[1])] for array in line)
    epochs = np.ceil(x)
    ends = np.unique(epochs)
    return np.minimum(ends, x.max(initial=0)), np.array([y[epochs == end].mean() for end in ends])


# ---- colours, axes and labels ----


def colours_of(count: int) -> list[Any]:
    """So many colours that differ."""
    if count <= len(LINE_COLOURS):
        return list(LINE_COLOURS[:count])
    import matplotlib

    return [matplotlib.colormaps["viridis"](0.93 * number / (count - 1))
            for number in range(count)]


def label_whole_epochs(axes: Any) -> None:
    """No ticks within an epoch, unless there are few epochs."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10],
                                              integer=high - low > 3))


def readable(text: str) -> str:
    """`text` so that matplotlib shows it as it is, and no longer than the page is wide."""
    text = printable(one_line(text))
    if len(text) > _LONGEST_LABEL:
        half = (_LONGEST_LABEL - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return literal(text)
