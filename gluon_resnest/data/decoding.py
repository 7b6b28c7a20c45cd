"""Bytes of an image file -> RGB pixels."""

from __future__ import annotations

import cv2
import numpy as np

from gluon_resnest.errors import InputError

cv2.setLogLevel(0)  # what it would print of a damaged image, we say with the image's name


def decode(content: bytes) -> np.ndarray:
    """Decode an image of any kind that OpenCV reads: JPEG, PNG, BMP, WebP, ...

    Grey images get three equal channels, transparency is left out, CMYK is converted, and a photo
    is turned as its EXIF orientation says, as MXNet's own decoders do.

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
        The bytes are no image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None  # an empty buffer, or a size beyond OpenCV's limit
    if image is None:
        raise InputError(f"its {len(content)} bytes are not an image that can be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
