"""The pieces that pictures of runs are made of: lines, colours, the figure and its file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.atomic import replacing
from gluon_resnest.plain_text import printable

# Okabe and Ito's palette, which the colour-blind can tell apart, the darker ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"
FEW_POINTS = 30  # up to here each has a marker
_MOST_POINTS = 1500  # a line of more is a smear
_LONGEST_LABEL = 110

Record = dict  # of metrics.jsonl


def line_of(records: Sequence[Record], value: str | Callable[[Record], float | None]) -> Any:
    """Arrays (N,) of the epochs and values of records, NaN where there is no value."""
    take = value if callable(value) else lambda record: record.get(value)
    return (np.array([record["epoch"] for record in records], float),
            np.array([np.nan if number is None else number for number in map(take, records)],
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


# ---- the figure ----


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    # matplotlib's object interface needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, picture: Path) -> None:
    """Write a picture, whole or not at all, of the kind that its suffix names; else a PNG.

    Raises
    ------
    InputError
        It cannot be written.
    """
    kind = picture.suffix.lower().lstrip(".") or "png"
    with replacing(picture) as temporary, warnings.catch_warnings():
        # The name of a folder may have letters that the font lacks: a box will do.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, dpi=110, format=kind, bbox_inches="tight", pad_inches=0.1)


def colours_of(count: int) -> list[Any]:
    """So many colours that differ."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
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
    text = printable(" ".join(text.split()))
    if len(text) > _LONGEST_LABEL:
        half = (_LONGEST_LABEL - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text.replace("$", r"\$")  # else what is between two of them is mathematics
