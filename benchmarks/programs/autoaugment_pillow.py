"""AutoAugment's ImageNet policy on Pillow, on the whole decoded image, as upstream's scripts do it.

Written anew for the peers, which run without gluon_resnest.
"""

from __future__ import annotations

import random
from typing import Callable

from PIL import Image, ImageEnhance, ImageOps

# Operation, probability and level, twice a line; one line is drawn for an image.
_TABLE = """
    Posterize .4 8     Rotate .6 9
    Solarize .6 5      AutoContrast .6 5
    Equalize .8 8      Equalize .6 3
    Posterize .6 7     Posterize .6 6
    Equalize .4 7      Solarize .2 4
    Equalize .4 4      Rotate .8 8
    Solarize .6 3      Equalize .6 7
    Posterize .8 5     Equalize 1 2
    Rotate .2 3        Solarize .6 8
    Equalize .6 8      Posterize .4 6
    Rotate .8 8        Color .4 0
    Rotate .4 9        Equalize .6 2
    Equalize 0 7       Equalize .8 8
    Invert .6 4        Equalize 1 8
    Color .6 4         Contrast 1 8
    Rotate .8 8        Color 1 2
    Color .8 8         Solarize .8 7
    Sharpness .4 7     Invert .6 8
    ShearX .6 5        Equalize 1 9
    Color .4 0         Equalize .6 3
    Equalize .4 7      Solarize .2 4
    Solarize .6 5      AutoContrast .6 5
    Invert .6 4        Equalize 1 8
    Color .6 4         Contrast 1 8
    Equalize .8 8      Equalize .6 3
"""


def _policy() -> list[list[tuple[str, float, int]]]:
    lines = [line.split() for line in _TABLE.strip().splitlines()]
    return [[(line[at], float(line[at + 1]), int(line[at + 2])) for at in (0, 3)]
            for line in lines]


POLICY = _policy()


def _blended(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]):
    return lambda image, level: enhancer(image).enhance(1.8 * level / 10 + 0.1)


def _either_way(magnitude: float) -> float:
    return magnitude if random.random() < 0.5 else -magnitude


_OPERATIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "ShearX": lambda image, level: image.transform(
        image.size, Image.Transform.AFFINE, (1, _either_way(0.3 * level / 10), 0, 0, 1, 0),
        Image.Resampling.BICUBIC),
    "Rotate": lambda image, level: image.rotate(_either_way(3 * level)),
    "Solarize": lambda image, level: ImageOps.solarize(image, 256 - int(25.6 * level)),
    "Posterize": lambda image, level: ImageOps.posterize(image, max(1, 4 - int(0.4 * level))),
    "Contrast": _blended(ImageEnhance.Contrast),
    "Color": _blended(ImageEnhance.Color),
    "Sharpness": _blended(ImageEnhance.Sharpness),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
}


def augmented(image: Image.Image) -> Image.Image:
    """`image` after one drawn sub-policy, each of its operations with its probability."""
    for name, probability, level in random.choice(POLICY):
        if random.random() < probability:
            image = _OPERATIONS[name](image, level)
    return image
