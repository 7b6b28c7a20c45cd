"""16 bits a channel -> 8, whatever part of the 16 the data use."""

from __future__ import annotations

import numpy as np


def to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale unsigned integers of up to 16 bits to 0 .. 255.

    Cameras and microscopes store 12 bits in files of 16; divided by 256 these would be black. The
    data count as 8, 12 or 16 bits, the fewest that hold the image's largest value, and the upper 8
    of these bits are kept. So no image loses more than two of the 8 bits, and all images of one
    camera are scaled alike unless some are nearly black.

    Parameters
    ----------
    values
        Integers from 0 to 65535, of any shape, without an alpha channel.

    Returns
    -------
    numpy.ndarray
        uint8 of the same shape.
    """
    return (values >> unused_bits(values)).astype(np.uint8)


def unused_bits(values: np.ndarray) -> int:
    """By how many bits to shift: 8 for data of 16 bits, 4 for 12, 0 for 8."""
    largest = int(values.max(initial=0))
    return 0 if largest < 1 << 8 else 4 if largest < 1 << 12 else 8
