"""AutoAugment's operations on pixels: equal to Pillow's, whole or as a part of the image."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from gluon_resnest.data.augment import rotate_shear
from gluon_resnest.data.augment.autoaugment import (
    IMAGENET_POLICY,
    MAGNITUDES,
    SIGNED,
    draw_operations,
)
from gluon_resnest.data.augment.crops import Box, draw_resized_crop
from gluon_resnest.data.augment.operations import OPERATIONS, Operation, apply_operations

CHINA, FLOWER = load_sample_images().images
# An odd and an even size, noise, one colour, and a few levels only.
IMAGES = {
    "photo": np.ascontiguousarray(CHINA[:333, :500]),
    "upright": np.ascontiguousarray(FLOWER[50:400, 100:334]),
    "noise": np.random.default_rng(0).integers(0, 256, (97, 133, 3), dtype=np.uint8),
    "flat": np.full((40, 31, 3), 90, np.uint8),
    "dark": (CHINA[100:200, 100:201] // 64).astype(np.uint8),
    "tiny": np.ascontiguousarray(CHINA[:2, :3]),
}


def _shear(image: Image.Image, across: float, down: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, (1, across, 0, down, 1, 0), Image.Resampling.BICUBIC)


PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "ShearX": lambda image, shear: _shear(image, shear, 0),
    "ShearY": lambda image, shear: _shear(image, 0, shear),
    "Rotate": lambda image, degrees: image.rotate(degrees, Image.Resampling.NEAREST),
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "Posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
}


def with_pillow(image: np.ndarray, drawn: tuple[Operation, ...]) -> np.ndarray:
    picture = Image.fromarray(image)
    for name, magnitude in drawn:
        picture = PILLOW[name](picture, magnitude)
    return np.asarray(picture)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    assert first.shape == second.shape
    assert first.dtype == np.uint8
    return np.abs(first.astype(int) - second)


def assert_alike(image: np.ndarray, drawn: tuple[Operation, ...], box: Box | None = None) -> None:
    """Equal; where a shear interpolated, one level apart at one pixel in a hundred at most."""
    expected = with_pillow(image, drawn)
    error = difference(apply_operations(image, drawn, box),
                       expected if box is None else box.cut(expected))
    if any(name.startswith("Shear") for name, _ in drawn):
        assert error.max() <= 1, drawn
        assert (error > 0).mean() < 0.01, drawn
    else:
        assert error.max() == 0, drawn


def test_every_operation_is_known() -> None:
    assert set(OPERATIONS) == set(PILLOW) == set(MAGNITUDES)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_at_every_level(name: str, image: str) -> None:
    for level in range(11):
        for sign in (1, -1) if name in SIGNED else (1,):
            assert_alike(IMAGES[image], (Operation(name, sign * MAGNITUDES[name](level)),))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 360, 45, 0.3, -333])
def test_rotations_that_the_policy_lacks(degrees: float) -> None:
    assert_alike(IMAGES["upright"], (Operation("Rotate", degrees),))


@pytest.mark.parametrize("row", range(len(IMAGENET_POLICY)))
def test_a_sub_policy_on_a_part_of_the_image(row: int, rng: np.random.Generator) -> None:
    """Both operations, and each before and after the other, under 12 random crops."""
    photo = IMAGES["photo"]
    both = tuple(Operation(name, MAGNITUDES[name](level))
                 for name, _, level in IMAGENET_POLICY[row])
    for number in range(12):
        box = draw_resized_crop(rng, *photo.shape[:2])
        assert_alike(photo, both if number % 2 else both[::-1], box)


def test_drawn_operations_on_every_image(rng: np.random.Generator) -> None:
    """Three in a row too: tables, histograms and pixels in any order."""
    for image in IMAGES.values():
        for _ in range(40):
            drawn = (*draw_operations(rng), *draw_operations(rng)[:1])
            assert_alike(image, drawn, draw_resized_crop(rng, *image.shape[:2]))


def test_a_box_is_what_the_whole_image_has_there(rng: np.random.Generator) -> None:
    image = IMAGES["noise"]
    for name in OPERATIONS:
        drawn = (Operation(name, MAGNITUDES[name](7)),)
        whole = apply_operations(image, drawn)
        for _ in range(5):
            box = draw_resized_crop(rng, *image.shape[:2])
            assert np.array_equal(apply_operations(image, drawn, box), box.cut(whole)), name


def test_larger_than_the_fixed_point_has_bits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then Pillow turns and shears the image itself."""
    drawn = {"Rotate": 24, "ShearX": 0.15, "ShearY": -0.15}
    expected = {name: with_pillow(IMAGES["photo"], (Operation(name, magnitude),))
                for name, magnitude in drawn.items()}
    monkeypatch.setattr(rotate_shear, "_LARGEST_FIXED_POINT_SIDE", 100)
    for name, magnitude in drawn.items():
        ours = apply_operations(IMAGES["photo"], (Operation(name, magnitude),))
        assert np.array_equal(ours, expected[name]), name


def test_the_image_stays_as_it_is(rng: np.random.Generator) -> None:
    image = IMAGES["photo"].copy()
    for name in OPERATIONS:
        apply_operations(image, (Operation(name, MAGNITUDES[name](8)), Operation("Invert", 0)))
        assert np.array_equal(image, IMAGES["photo"]), name
