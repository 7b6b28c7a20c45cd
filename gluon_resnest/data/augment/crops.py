"""Which part of an image is taken, and how it is resampled to the network's size."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from gluon_resnest.data.augment.random_streams import Source, below, uniform

# The paper, Table 2: "Bicubic upsampling strategy is employed for input-size greater than 256."
LARGEST_BILINEAR_SIZE = 256

CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of an image (H, W, C), without a copy."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def resample(image: np.ndarray, width: int, height: int, *, bicubic: bool) -> np.ndarray:
    """Resize an image.

    Bilinear is OpenCV's, as Gluon's transforms have it, which interpolates between four pixels
    even where many fall together; from a reduction by 2 on, the mean over each new pixel's area
    takes its place, since skipped pixels would show as noise. Bicubic is Pillow's, which widens
    its filter as the image shrinks, as the earlier code's path for large sizes has it.

    Parameters
    ----------
    image
        uint8 of shape (H, W, 3).
    width, height
        Size of the result in pixels.
    bicubic
        Bicubic instead of bilinear.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (height, width, 3).
    """
    if image.shape[:2] == (height, width):
        return image
    if bicubic:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    across, down = image.shape[1] / width, image.shape[0] / height
    shrinks = min(across, down) >= 1 and max(across, down) >= 2
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


def draw_resized_crop(
    rng: Source,
    height: int,
    width: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the box of a random resized crop.

    The share of the image's area is uniform and the ratio of width to height log-uniform. After
    ten boxes that do not fit, it is the largest centred box whose ratio is allowed.

    Parameters
    ----------
    rng
        Source of the draws.
    height, width
        Size of the image in pixels.
    area
        Smallest and largest share of the image's area.
    ratio
        Smallest and largest width / height.
    """
    for _ in range(CROP_ATTEMPTS):
        target = uniform(rng, *area) * height * width
        aspect = math.exp(uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(target * aspect))
        box_height = round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return _place(rng, height, width, box_height, box_width)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    return centred_box(
        height, width,
        max(1, min(height, round(width / aspect))), max(1, min(width, round(height * aspect))),
    )


def draw_covering_crop(
    rng: Source,
    height: int,
    width: int,
    size: int,
    area: tuple[float, float] = (0.1, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the box of EfficientNet's random crop, which the recipe uses from 320 pixels on.

    Unlike :func:`draw_resized_crop` it draws the ratio of width to height uniformly, then the
    height uniformly between those of the smallest area and of the largest that fits: boxes of a
    middle size are more frequent. After ten that do not fit, or for the whole image, it is
    :func:`padded_centre_box`.

    Parameters
    ----------
    rng
        Source of the draws.
    height, width
        Size of the image in pixels.
    size
        Side of the network's input in pixels.
    area
        Smallest and largest share of the image's area.
    ratio
        Smallest and largest width / height.
    """
    smallest, largest = area[0] * height * width, area[1] * height * width
    for _ in range(CROP_ATTEMPTS):
        aspect = uniform(rng, *ratio)
        tallest = min(height, round(math.sqrt(largest / aspect)), math.floor(width / aspect))
        shortest = min(tallest, round(math.sqrt(smallest / aspect)))
        box_height = round(uniform(rng, shortest, tallest))
        box_width = round(box_height * aspect)
        fits = 0 < box_width <= width and 0 < box_height <= height
        if fits and smallest <= box_width * box_height <= largest:
            if (box_height, box_width) == (height, width):
                break
            return _place(rng, height, width, box_height, box_width)
    return padded_centre_box(height, width, size)


def _place(
    rng: Source, height: int, width: int, box_height: int, box_width: int
) -> Box:
    left = below(rng, width - box_width + 1)
    top = below(rng, height - box_height + 1)
    return Box(left, top, box_width, box_height)


def centred_box(height: int, width: int, box_height: int, box_width: int) -> Box:
    """Box in the middle of an image that is at least as large."""
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def padded_centre_box(height: int, width: int, size: int) -> Box:
    """EfficientNet's centre square: `size / (size + 32)` of the shorter side."""
    side = max(1, round(min(height, width) * size / (size + 32)))
    return centred_box(height, width, side, side)
