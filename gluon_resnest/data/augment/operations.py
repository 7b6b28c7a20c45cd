"""AutoAugment's operations on pixels, as Pillow has them, at a fraction of its time.

What saves the time: an operation that maps levels to levels (Equalize, Solarize, ...) is a table;
tables of successive operations become one, and a table's histogram is pushed through the table
before it instead of being counted again. And of the result only the crop that the network will see
is made, wherever an operation does not need the rest.

Every operation gives Pillow's pixels; the shears, which interpolate, differ by one level at most.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, NamedTuple

import cv2
import numpy as np
from PIL import Image

from gluon_resnest.data.augment.crops import Box, centred_box
from gluon_resnest.data.augment.rotate_shear import rotate, shear_x, shear_y
from gluon_resnest.errors import InputError

_LEVELS = np.arange(256)
_CHANNELS = np.arange(3)
# Pillow's kernel SMOOTH. Its sums are never halfway between two levels, so any rounding is right.
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
# A little less than half a level, so that rounding errors do not count as a level.
_HALF = -0.5 + 1e-3


class Operation(NamedTuple):
    """An operation with its magnitude in the operation's own unit (see `MAGNITUDES`)."""

    name: str
    magnitude: float


# ---- operations that map levels to levels: tables (256,) or, by channel, (256, 3) ----


def solarize_table(threshold: float) -> np.ndarray:
    """Levels from `threshold` on are inverted."""
    return _uint8(np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def posterize_table(bits: float) -> np.ndarray:
    """The upper `bits` of a level are kept."""
    return _uint8(_LEVELS & ~(2 ** (8 - int(bits)) - 1))


def invert_table(_: float = 0) -> np.ndarray:
    """255 - x."""
    return _uint8(255 - _LEVELS)


def blend_table(level: int, factor: float) -> np.ndarray:
    """factor * x + (1 - factor) * level: brightness with level 0, contrast with the mean."""
    return _blend(_uint8(_LEVELS)[None], np.full((1, 256), level, np.uint8), factor)[0]


def equalize_table(histogram: np.ndarray) -> np.ndarray:
    """The level of equal rank, of counts (256, 3)."""
    below = np.cumsum(histogram, axis=0)
    _, high = _extremes(histogram)
    step = (below[-1] - histogram[high, _CHANNELS]) // 255
    below -= histogram
    equalized = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _uint8(np.where(step == 0, _LEVELS[:, None], equalized))


def autocontrast_table(histogram: np.ndarray) -> np.ndarray:
    """The levels that occur stretched to 0 to 255, of counts (256, 3)."""
    low, high = _extremes(histogram)
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = np.clip((_LEVELS[:, None] * scale + -low * scale).astype(np.int64), 0, 255)
    return _uint8(np.where(low == high, _LEVELS[:, None], stretched))


def _extremes(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest level that occurs, each (3,)."""
    occurs = histogram > 0
    return occurs.argmax(axis=0), 255 - occurs[::-1].argmax(axis=0)


def histogram_of(image: np.ndarray) -> np.ndarray:
    """Counts of the levels, int64 of shape (256, 3), of an image (H, W, 3)."""
    counts = [cv2.calcHist([image], [channel], None, [256], [0, 256]) for channel in range(3)]
    return np.concatenate(counts, axis=1).astype(np.int64)


def _histogram_after(histogram: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Counts (256, 3) once every level has gone through `table`."""
    columns = [np.bincount(levels, counts, minlength=256)
               for levels, counts in zip(_by_channel(table).T, histogram.T)]
    return np.stack(columns, axis=1).astype(np.int64)


def _after(table: np.ndarray, first: np.ndarray | None) -> np.ndarray:
    """The one table that does what `first` and then `table` do."""
    if first is None:
        return table
    return np.take_along_axis(_by_channel(table), _by_channel(first).astype(np.int64), axis=0)


def _by_channel(table: np.ndarray) -> np.ndarray:
    return table if table.ndim == 2 else np.repeat(table[:, None], 3, axis=1)


def _through(image: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    return image if table is None else cv2.LUT(image, table[None])


# ---- operations that need pixels ----


def luminance(image: np.ndarray) -> np.ndarray:
    """Pillow's mode L, uint8 of shape (H, W): ITU-R BT.601 in 16 bits of fraction."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))


def mean_luminance(image: np.ndarray) -> int:
    """The level that contrast blends with."""
    return int(cv2.mean(luminance(image))[0] + 0.5)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey image: factor * x + (1 - factor) * luminance(x)."""
    return _blend(image, cv2.cvtColor(luminance(image), cv2.COLOR_GRAY2RGB), factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image smoothed over 3 x 3 pixels, whose outermost pixels stay."""
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return _blend(image, smooth, factor)


def _blend(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """other + factor * (image - other), cut to a whole level, as Pillow computes it in float32."""
    if _in_one_pass(factor):
        # Cut to a whole level is rounded half a level lower.
        return cv2.addWeighted(image, factor, other, 1 - factor, _HALF)
    return _blend_exactly(image, other, factor)


def _blend_exactly(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    blend = cv2.subtract(image, other, dtype=cv2.CV_32F)
    blend *= np.float32(factor)
    blend += other
    return _uint8(np.clip(blend, 0, 255, out=blend))


@lru_cache(maxsize=64)
def _in_one_pass(factor: float) -> bool:
    """Whether OpenCV's weighted sum gives Pillow's level for every pair of levels."""
    image, other = np.mgrid[:256, :256].astype(np.uint8)
    fast = cv2.addWeighted(image, factor, other, 1 - factor, _HALF)
    return np.array_equal(fast, _blend_exactly(image, other, factor))


# ---- all of them on one image ----

# Tables that the magnitude alone gives; that a histogram gives as well; and what needs pixels.
_TABLES: dict[str, Callable[[float], np.ndarray]] = {
    "Solarize": solarize_table, "Posterize": posterize_table, "Invert": invert_table,
    "Brightness": lambda factor: blend_table(0, factor),
}
_HISTOGRAM_TABLES = {"Equalize": equalize_table, "AutoContrast": autocontrast_table}
_MOVES = {"Rotate": rotate, "ShearX": shear_x, "ShearY": shear_y}
_OTHERS = ("Color", "Contrast", "Sharpness")
OPERATIONS = tuple(sorted([*_TABLES, *_HISTOGRAM_TABLES, *_MOVES, *_OTHERS]))
# Of these the result at a pixel depends on no other pixel.
_BY_PIXEL = frozenset({*_TABLES, "Color"})


def apply_operations(
    image: np.ndarray, operations: tuple[Operation, ...], box: Box | None = None
) -> np.ndarray:
    """Apply operations to the whole image, one after the other, and cut the result.

    Parameters
    ----------
    image
        uint8 of shape (H, W, 3).
    operations
        Drawn by :func:`~gluon_resnest.data.augment.autoaugment.draw_operations`, or chosen by hand.
    box
        The part of the result that is wanted; by default all of it.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (height, width, 3) of the box.

    Raises
    ------
    InputError
        An operation's name is unknown.
    """
    box = box or centred_box(*image.shape[:2], *image.shape[:2])
    canvas = _Canvas(image, box)
    for number, operation in enumerate(operations):
        if operation.name not in OPERATIONS:
            raise InputError(f"unknown AutoAugment operation {operation.name!r}; choose one of "
                             f"{', '.join(OPERATIONS)}")
        rest_by_pixel = all(later.name in _BY_PIXEL for later in operations[number + 1 :])
        canvas.apply(operation, rest_by_pixel)
    return canvas.result()


class _Canvas:
    """An image with a table that has not been applied yet, and the box that is wanted of it."""

    def __init__(self, image: np.ndarray, box: Box) -> None:
        self._image = image
        self._box: Box | None = box  # None once it is cut
        self._table: np.ndarray | None = None

    def apply(self, operation: Operation, rest_by_pixel: bool) -> None:
        """Apply one operation; `rest_by_pixel` where no later one looks beyond the box."""
        name, magnitude = operation
        if name in _TABLES:
            self._table = _after(_TABLES[name](magnitude), self._table)
        elif name in _HISTOGRAM_TABLES:
            histogram = histogram_of(self._image)
            if self._table is not None:
                histogram = _histogram_after(histogram, self._table)
            self._table = _after(_HISTOGRAM_TABLES[name](histogram), self._table)
        elif name == "Contrast":
            image = self._pixels()
            self._table = blend_table(mean_luminance(image), magnitude)
        elif name == "Color":
            if rest_by_pixel:
                self._cut()
            self._image = color(self._pixels(), magnitude)
        elif name == "Sharpness":
            self._image = sharpness(self._pixels(), magnitude)
        else:
            image = self._pixels()
            box = self._box if rest_by_pixel else centred_box(*image.shape[:2], *image.shape[:2])
            self._image = _MOVES[name](image, magnitude, box)
            self._box = None if rest_by_pixel else self._box

    def _pixels(self) -> np.ndarray:
        """The image with its table applied."""
        self._image, self._table = _through(self._image, self._table), None
        return self._image

    def _cut(self) -> None:
        if self._box is not None:
            self._image, self._box = self._box.cut(self._image), None

    def result(self) -> np.ndarray:
        self._cut()
        return self._pixels()


def _uint8(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.uint8)
