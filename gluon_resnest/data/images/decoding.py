"""Bytes of an image file -> RGB pixels, or an error where the bytes are not a whole image.

This is the one decoder of packing, verification, training and prediction. What a file holds is
decided by its bytes, not by its name. JPEGs are decoded by simplejpeg (libjpeg-turbo), which alone
says when their data ends early; PNGs by OpenCV (:mod:`.png`); everything else, and the JPEGs that
simplejpeg does not take, by Pillow (:mod:`.pillow_formats`). Where two of them read a format they
give the same pixels.
"""

from __future__ import annotations

import re
from typing import Union

import cv2
import numpy as np
import simplejpeg

from gluon_resnest.data.images.image_limits import (
    JPEG,
    MOST_PIXELS,
    PNG,
    check_bytes,
    check_pixels,
    damaged,
)
from gluon_resnest.data.images.pillow_formats import (
    check_with_pillow,
    decode_with_pillow,
    read_orientation,
    turned,
)
from gluon_resnest.data.images.png import check_png, decode_png

cv2.setLogLevel(0)  # what it would print of a damaged image, we say with the image's name

Content = Union[bytes, memoryview]

_APP1, _START_OF_SCAN = 0xE1, 0xDA  # EXIF data lies in the one, pixels begin at the other
_FOUR_CHANNELS = ("CMYK", "YCCK")
# A few bytes too many between segments come from cameras and editors; many, from lost data.
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes")
_MOST_EXTRANEOUS = 32
# What libjpeg-turbo warns of although all pixels may be there.
_HARMLESS = ("invalid sos parameters", "adobe color transform", "inconsistent progression",
             "jfif revision", "icc marker")


def decode(content: Content, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode a JPEG, PNG, GIF, WebP, TIFF, BMP, PPM or JPEG 2000.

    Grey images get three equal channels, transparency is left out (the colours below it count),
    CMYK is converted, 16 bits a channel are scaled (:func:`.sixteen_bits.to_eight_bits`), and the
    image is turned as its EXIF orientation says. A JPEG whose data was cut or damaged is refused,
    where MXNet's decoders fill up with grey.

    Parameters
    ----------
    content
        The file's bytes.
    most_pixels
        A header that asks for more is refused before memory is taken.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (H, W, 3), channels R, G, B.

    Raises
    ------
    InputError
        The bytes are no image, not all of one, or of too many pixels.
    """
    if bytes(content[:3]) == JPEG:
        return _decode_jpeg(content, most_pixels)
    check_bytes(len(content))
    if bytes(content[:8]) == PNG:
        return decode_png(content, most_pixels)
    return decode_with_pillow(content, most_pixels)


def check_header(content: Content, most_pixels: int = MOST_PIXELS) -> None:
    """Raise InputError where the header alone shows that :func:`decode` would refuse an image."""
    check_bytes(len(content))
    if bytes(content[:8]) == PNG:
        check_png(content, most_pixels)
    elif bytes(content[:3]) != JPEG:
        check_with_pillow(content, most_pixels)
    else:
        header = _jpeg_header(content)
        if header is None:
            check_with_pillow(content, most_pixels)
        else:
            check_pixels(*header[:2], most_pixels)


def _jpeg_header(content: Content) -> tuple[int, int, str] | None:
    """Width, height and colour space; None where simplejpeg complains of what is harmless."""
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    except ValueError as error:
        _refuse_damage(str(error), content)
        return None
    except KeyError:  # simplejpeg looks up what an incomplete header does not say
        raise damaged(content, "no whole header") from None
    return width, height, color


def _decode_jpeg(content: Content, most_pixels: int) -> np.ndarray:
    header = _jpeg_header(content)
    if header is None:
        return decode_with_pillow(content, most_pixels)
    width, height, color = header
    check_pixels(width, height, most_pixels)
    is_rgb = color not in _FOUR_CHANNELS
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB" if is_rgb else "CMYK")
    except ValueError as error:
        _refuse_damage(str(error), content)
        return decode_with_pillow(content, most_pixels)
    if not is_rgb:  # it is whole; but releases of simplejpeg convert it in different ways
        return decode_with_pillow(content, most_pixels)
    return turned(pixels, read_orientation(content)) if _has_exif(content) else pixels


def _refuse_damage(problem: str, content: Content) -> None:
    """Raise InputError unless libjpeg-turbo complains of what need not cost any pixels.

    It stops at the first complaint. So Pillow, which is indifferent to these, but not to data that
    ends early, decodes such a JPEG.
    """
    extraneous = _EXTRANEOUS.search(problem)
    few = extraneous is not None and int(extraneous.group(1)) <= _MOST_EXTRANEOUS
    unconverted = "color conversion" in problem.lower()  # CMYK
    if not (few or unconverted or any(text in problem.lower() for text in _HARMLESS)):
        raise damaged(content, problem)


def _has_exif(content: Content) -> bool:
    """Whether a segment before the pixels can hold EXIF data."""
    at, last = 2, len(content) - 4
    while at <= last and content[at] == 0xFF and content[at + 1] != _START_OF_SCAN:
        if content[at + 1] == _APP1:
            return True
        at += 2 + (content[at + 2] << 8 | content[at + 3])
    return False
