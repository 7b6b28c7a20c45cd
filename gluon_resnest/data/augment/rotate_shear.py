"""AutoAugment's operations that move pixels: rotation and shears, of a box of the result."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from gluon_resnest.data.augment.crops import Box

# As many rows as the processor's cache holds in float32.
_SHEARED_ROWS = 32
# Within this size a coordinate in 1/65536 of a pixel has no more than 31 bits; Pillow takes over.
_LARGEST_FIXED_POINT_SIDE = 8192


def rotate(image: np.ndarray, degrees: float, box: Box) -> np.ndarray:
    """`box` of the image turned counter-clockwise about its centre, by the nearest pixel.

    Outside of the image there is black. Coordinates are in 1/65536 of a pixel, as in Pillow.
    """
    height, width = image.shape[:2]
    if degrees % 90 == 0 or max(height, width) > _LARGEST_FIXED_POINT_SIDE:
        return box.cut(np.asarray(
            Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST)))
    angle = -math.radians(degrees % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    left = cosine * (-width / 2) + sine * (-height / 2) + 0.0 + width / 2
    top = -sine * (-width / 2) + cosine * (-height / 2) + 0.0 + height / 2
    columns = np.arange(box.left, box.left + box.width)
    rows = np.arange(box.top, box.top + box.height)[:, None]
    x, y = (
        ((_fixed(start + by_column * 0.5 + by_row * 0.5) + _fixed(by_column) * columns)
         .astype(np.int32) + (_fixed(by_row) * rows).astype(np.int32)).view(np.uint32)
        for by_column, by_row, start in ((cosine, sine, left), (-sine, cosine, top)))
    x >>= 16
    y &= 0xFFFF0000
    return _take(image, x | y, cv2.BORDER_CONSTANT)


def _take(image: np.ndarray, places: np.ndarray, border: int) -> np.ndarray:
    """Pixels at `places`, uint32 of shape (height, width): column + 2**16 * row, each 16 bits.

    Both are signed: what lies outside of the image is black or, by `border`, its edge repeated.
    """
    pairs = places.view(np.int16).reshape(*places.shape, 2)  # little-endian: the column is first
    return cv2.remap(image, pairs, None, cv2.INTER_NEAREST, borderMode=border)


def _fixed(value: float) -> int:
    return math.floor(value * 65536.0 + 0.5)


def shear_x(image: np.ndarray, shear: float, box: Box) -> np.ndarray:
    """`box` of the image whose row y moves left by shear * y, with Pillow's cubic interpolation.

    Outside of the image there is black. A row moves as a whole, so that its pixels share four
    weights.
    """
    if max(image.shape[:2]) > _LARGEST_FIXED_POINT_SIDE:
        picture = Image.fromarray(np.ascontiguousarray(image))
        return box.cut(np.asarray(picture.transform(
            picture.size, Image.Transform.AFFINE, (1, shear, 0, 0, 1, 0),
            Image.Resampling.BICUBIC)))
    result = np.empty((box.height, box.width, 3), dtype=np.uint8)
    for start in range(0, box.height, _SHEARED_ROWS):
        band = result[start : start + _SHEARED_ROWS]
        _shear_rows(image, shear, box.left, box.top + start, band)
    return result


def _shear_rows(image: np.ndarray, shear: float, left: int, top: int, result: np.ndarray) -> None:
    """Write a band of a sheared image, which begins at `left` and `top`, to `result`."""
    height, width = result.shape[:2]
    rows = np.arange(top, top + height, dtype=np.uint32)[:, None]
    offset = shear * (rows + 0.5)
    whole = np.floor(offset)
    # From one pixel left of the band to two right of it.
    columns = np.arange(left - 1, left + width + 2)
    places = (whole.astype(np.int32) + columns.astype(np.int32)).view(np.uint32)
    places &= 0xFFFF
    places |= rows << 16
    pixels = _take(image, places, cv2.BORDER_REPLICATE).astype(np.float32)
    before, at, behind, last = (pixels[:, i : i + width] for i in range(4))
    d = (offset - whole).astype(np.float32)[..., None]
    # Horner's way, as Pillow has it: where neighbours are equal, their level comes out exactly,
    # which counts because the result is cut to a whole level, not rounded.
    cubic = d * (at - before + last - behind)
    for term in (2 * (before - at) + behind - last, behind - before):
        cubic += term
        cubic *= d
    cubic += at
    position = columns[1:-2] + 0.5 + offset
    cubic[(position < 0) | (position >= image.shape[1])] = 0
    np.clip(cubic, 0, 255, out=cubic)
    result[:] = cubic.astype(np.uint8)


def shear_y(image: np.ndarray, shear: float, box: Box) -> np.ndarray:
    """`box` of the image whose column x moves up by shear * x: as :func:`shear_x`, transposed."""
    turned = Box(box.top, box.left, box.height, box.width)
    result = shear_x(image.transpose(1, 0, 2), shear, turned)
    return np.ascontiguousarray(result.transpose(1, 0, 2))
