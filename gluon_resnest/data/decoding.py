"""Bytes of an image file -> RGB pixels, or an error where the bytes are not a whole image.

JPEGs are decoded by simplejpeg (libjpeg-turbo), which alone says when their data ends early;
everything else, and the JPEGs it does not take, by OpenCV. Both give the same pixels.
"""

from __future__ import annotations

import io
import re
from typing import Union

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from gluon_resnest.errors import InputError

cv2.setLogLevel(0)  # what it would print of a damaged image, we say with the image's name

Content = Union[bytes, memoryview]

_JPEG = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_EXIF_WITHIN = 65536  # bytes from the beginning: it stands among the first segments
_ORIENTATION = 0x0112
# A damaged header may ask for any size; this is 0.8 GB.
_MOST_PIXELS = 1 << 28
# A few bytes too many between segments come from cameras and editors; many, from lost data.
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes")
_MOST_EXTRANEOUS = 32
# What libjpeg-turbo warns of although all pixels may be there.
_HARMLESS = ("invalid sos parameters", "adobe color transform", "inconsistent progression",
             "jfif revision", "icc marker")

# EXIF orientation: (transposed first, then flipped: 0 top to bottom, 1 left to right, -1 both).
_TURNS = {2: (False, 1), 3: (False, -1), 4: (False, 0), 5: (True, None), 6: (True, 1),
          7: (True, -1), 8: (True, 0)}


def decode(content: Content) -> np.ndarray:
    """Decode an image of any kind that OpenCV reads: JPEG, PNG, BMP, WebP, ...

    Grey images get three equal channels, transparency is left out, CMYK is converted, and a photo
    is turned as its EXIF orientation says, as MXNet's own decoders do. Unlike them, it refuses a
    JPEG whose data was cut or damaged instead of filling up with grey.

    Parameters
    ----------
    content
        The file's bytes.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (H, W, 3), channels R, G, B.

    Raises
    ------
    InputError
        The bytes are no image, or not all of one.
    """
    if bytes(content[:3]) == _JPEG:
        return _decode_jpeg(content)
    return _decode_with_opencv(content)


def _decode_jpeg(content: Content) -> np.ndarray:
    height = width = 0
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content, strict=False)
        if height * width <= _MOST_PIXELS:
            image = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        image = _decode_despite(str(error), content)
    except KeyError:  # simplejpeg looks up what an incomplete header does not say
        raise InputError(f"its {len(content)} bytes are a damaged JPEG: no whole header") from None
    if height * width > _MOST_PIXELS:
        raise InputError(f"its {width} x {height} pixels are more than can be decoded")
    if _EXIF in bytes(content[:_EXIF_WITHIN]):
        image = _turned(image, content)
    return image


def _decode_despite(problem: str, content: Content) -> np.ndarray:
    """Pixels of a JPEG where libjpeg-turbo complains first of what need not cost any.

    It stops at the first complaint. So Pillow and OpenCV, which are indifferent to these, but not
    to data that ends early, have to agree.
    """
    extraneous = _EXTRANEOUS.search(problem)
    few = extraneous is not None and int(extraneous.group(1)) <= _MOST_EXTRANEOUS
    unconverted = "color conversion" in problem.lower()  # CMYK, in older releases
    if not (few or unconverted or any(text in problem.lower() for text in _HARMLESS)):
        raise InputError(f"its {len(content)} bytes are a damaged JPEG: {problem}")
    try:
        Image.open(io.BytesIO(content)).load()
        # Some library in this process may have told Pillow to accept what was cut; recent OpenCV
        # does not either.
        return _decode_with_opencv(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except Exception as error:  # of many kinds
        raise InputError(f"its {len(content)} bytes are a damaged JPEG: {error}") from None


def _turned(image: np.ndarray, content: Content) -> np.ndarray:
    """Turn and mirror an image as its EXIF orientation says."""
    try:
        orientation = Image.open(io.BytesIO(content)).getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises many kinds on damaged EXIF, which costs no pixels
        return image
    if orientation not in _TURNS:
        return image
    transposed, flip = _TURNS[orientation]
    if transposed:
        image = cv2.transpose(image)
    return image if flip is None else cv2.flip(image, flip)


def _decode_with_opencv(content: Content, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        image = None  # an empty buffer, or a size beyond OpenCV's limit
    if image is None:
        raise InputError(f"its {len(content)} bytes are not an image that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
