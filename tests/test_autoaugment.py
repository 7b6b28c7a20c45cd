"""The policy's table, its draws, and each operation against its formula in NumPy."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from gluon_resnest.data.augment.autoaugment import (
    IMAGENET_POLICY,
    MAGNITUDES,
    SIGNED,
    draw_operations,
)
from gluon_resnest.data.augment.operations import Operation, apply_operations
from gluon_resnest.errors import InputError

PHOTO = np.ascontiguousarray(load_sample_images().images[0][100:300, 200:500])  # 200 x 300
LEVELS = np.arange(256)


def apply(name: str, magnitude: float = 0) -> np.ndarray:
    return apply_operations(PHOTO, (Operation(name, magnitude),))


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    assert first.shape == second.shape
    return np.abs(first.astype(int) - np.clip(second, 0, 255).astype(int))


class TestPolicy:
    def test_is_the_published_table(self) -> None:
        """25 rows, of which 20 differ; counts of the operations as in the paper's table."""
        assert len(IMAGENET_POLICY) == 25
        assert len(set(IMAGENET_POLICY)) == 20
        names = Counter(step.name for row in IMAGENET_POLICY for step in row)
        assert names == {
            "Equalize": 17, "Solarize": 7, "Color": 6, "Rotate": 6, "Posterize": 5, "Invert": 3,
            "AutoContrast": 2, "Contrast": 2, "Sharpness": 1, "ShearX": 1}
        assert IMAGENET_POLICY[15] == (("Rotate", 0.8, 8), ("Color", 1.0, 2))

    @pytest.mark.parametrize(
        ("name", "level", "magnitude"),
        [("ShearX", 5, 0.15), ("Rotate", 9, 27), ("Rotate", 8, 24), ("Rotate", 3, 9),
         ("Solarize", 5, 128), ("Solarize", 4, 154), ("Solarize", 3, 180), ("Solarize", 8, 52),
         ("Solarize", 7, 77), ("Posterize", 8, 1), ("Posterize", 7, 2), ("Posterize", 6, 2),
         ("Posterize", 5, 2), ("Color", 0, 0.1), ("Color", 2, 0.46), ("Color", 4, 0.82),
         ("Color", 8, 1.54), ("Contrast", 8, 1.54), ("Sharpness", 7, 1.36),
         ("Brightness", 5, 1.0)])
    def test_levels(self, name: str, level: int, magnitude: float) -> None:
        assert MAGNITUDES[name](level) == pytest.approx(magnitude)

    def test_draws_follow_the_probabilities(self, seed: int) -> None:
        """How often each operation is applied, within four deviations over 20,000 images."""
        rng = np.random.default_rng(seed)
        draws = 20_000
        counts = Counter()
        for _ in range(draws):
            for name, magnitude in draw_operations(rng):
                counts[name, round(magnitude, 6)] += 1
        expected = Counter()
        for row in IMAGENET_POLICY:
            for name, probability, level in row:
                magnitude = MAGNITUDES[name](level)
                for sign in (1, -1) if name in SIGNED else (1,):
                    share = probability / 25 / (2 if name in SIGNED else 1)
                    expected[name, round(sign * magnitude, 6)] += share
        expected = {key: share for key, share in expected.items() if share}
        assert set(counts) == set(expected)
        for key, share in expected.items():
            # An image may get an operation twice, so this is above the binomial deviation.
            deviation = np.sqrt(2 * draws * share)
            assert abs(counts[key] - draws * share) < 4 * deviation, key

    def test_a_draw_is_reproducible_and_apart_from_the_pixels(self) -> None:
        operations = [draw_operations(np.random.default_rng(5)) for _ in range(2)]
        assert operations[0] == operations[1]
        assert np.array_equal(*(apply_operations(PHOTO, drawn) for drawn in operations))

    def test_nothing_drawn_leaves_the_image(self) -> None:
        result = apply_operations(PHOTO, ())
        assert np.array_equal(result, PHOTO)
        assert np.shares_memory(result, PHOTO)

    def test_unknown_operation(self) -> None:
        with pytest.raises(InputError, match=r"'Blur'; choose one of .*Sharpness"):
            apply("Blur")


class TestOperations:
    """Magnitudes of the policy; what the formula leaves open is what Pillow does."""

    def test_invert(self) -> None:
        assert np.array_equal(apply("Invert"), 255 - PHOTO)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_posterize(self, bits: int) -> None:
        assert np.array_equal(apply("Posterize", bits), PHOTO >> (8 - bits) << (8 - bits))

    @pytest.mark.parametrize("threshold", [52, 77, 128, 154, 180, 256])
    def test_solarize(self, threshold: int) -> None:
        assert np.array_equal(apply("Solarize", threshold),
                              np.where(threshold <= PHOTO, 255 - PHOTO, PHOTO))

    def test_autocontrast(self) -> None:
        dim = (PHOTO // 2 + 40).astype(np.uint8)
        result = apply_operations(dim, (Operation("AutoContrast", 0),))
        low, high = dim.min((0, 1)).astype(float), dim.max((0, 1)).astype(float)
        assert difference(result, (dim - low) * 255 / (high - low)).max() <= 1
        assert result.min() == 0
        assert result.max() == 255

    def test_equalize(self) -> None:
        """The level of equal rank: cumulative counts, by channel."""
        result = apply("Equalize")
        for channel in range(3):
            counts = np.bincount(PHOTO[..., channel].ravel(), minlength=256)
            step = (counts.sum() - counts[np.nonzero(counts)[0][-1]]) // 255
            below = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table = np.minimum((below + step // 2) // step, 255)
            assert np.array_equal(result[..., channel], table[PHOTO[..., channel]])

    @pytest.mark.parametrize("factor", [0.1, 0.46, 1.0, 1.54, 1.9])
    def test_blends(self, factor: float) -> None:
        """factor * x + (1 - factor) * (luminance, mean luminance or black)."""
        pixels = PHOTO.astype(float)
        grey = np.rint(pixels @ [0.299, 0.587, 0.114])[..., None]
        for name, other in (("Color", grey), ("Contrast", np.rint(grey.mean())),
                            ("Brightness", 0.0)):
            error = difference(apply(name, factor), factor * pixels + (1 - factor) * other)
            assert error.max() <= 2, name
            assert error.mean() < 1, name

    @pytest.mark.parametrize("factor", [0.1, 1.36, 1.9])
    def test_sharpness(self, factor: float) -> None:
        """Blend with a smoothed image, weights 1 and 5 in the middle; borders stay."""
        pixels = PHOTO.astype(float)
        smooth = pixels.copy()
        rows, columns = PHOTO.shape[:2]
        total = 4 * pixels[1:-1, 1:-1]
        for i in range(3):
            for j in range(3):
                total = total + pixels[i : rows - 2 + i, j : columns - 2 + j]
        smooth[1:-1, 1:-1] = np.floor(total / 13 + 0.5)
        error = difference(apply("Sharpness", factor), factor * pixels + (1 - factor) * smooth)
        assert error.max() <= 2

    @pytest.mark.parametrize("shear", [0.15, -0.15])
    def test_shear_moves_rows_and_fills_with_black(self, shear: float) -> None:
        """Output (x, y) shows input (x + shear * y, y), taken at the pixels' centres; the cubic
        is Pillow's, whose slope at a pixel is the difference of its neighbours."""
        result = apply("ShearX", shear)
        width = PHOTO.shape[1]
        for row in (0, 70, 150, 199):
            source = np.arange(width) + shear * (row + 0.5)
            outside = (source < -0.5) | (source > width - 0.5)
            assert np.all(result[row, outside] == 0)
            inside = (source >= 1) & (source < width - 3)
            pixel = np.floor(source[inside]).astype(int)
            d = (source[inside] - pixel)[:, None]
            before, left, right, after = (
                PHOTO[row, pixel + i].astype(float) for i in (-1, 0, 1, 2))
            cubic = left + d * ((right - before) + d * (
                2 * (before - left) + right - after + d * (left - before + after - right)))
            assert difference(result[row, inside], np.rint(cubic)).max() <= 1
        assert np.array_equal(apply("ShearY", shear).transpose(1, 0, 2), apply_operations(
            np.ascontiguousarray(PHOTO.transpose(1, 0, 2)), (Operation("ShearX", shear),)))

    @pytest.mark.parametrize("degrees", [9, -24, 27])
    def test_rotate_takes_the_nearest_pixel_and_fills_with_black(self, degrees: float) -> None:
        """Counter-clockwise about the centre."""
        result = apply("Rotate", degrees)
        height, width = PHOTO.shape[:2]
        y, x = np.mgrid[:height, :width] + 0.5
        x, y = x - width / 2, y - height / 2
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        column = np.floor(cosine * x - sine * y + width / 2).astype(int)
        row = np.floor(sine * x + cosine * y + height / 2).astype(int)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        expected = np.where(inside[..., None], PHOTO[np.clip(row, 0, height - 1),
                                                     np.clip(column, 0, width - 1)], 0)
        # A pixel whose source lies on an edge between two may take either.
        assert (result == expected).all(axis=-1).mean() > 0.999

    def test_size_and_type_stay(self) -> None:
        for name, magnitude in MAGNITUDES.items():
            result = apply(name, magnitude(5))
            assert result.shape == PHOTO.shape, name
            assert result.dtype == np.uint8, name

    def test_operations_apply_in_order(self) -> None:
        both = (Operation("Posterize", 2), Operation("Invert", 0))
        assert np.array_equal(apply_operations(PHOTO, both), 255 - (PHOTO >> 6 << 6))
        assert np.array_equal(apply_operations(PHOTO, both[::-1]), (255 - PHOTO) >> 6 << 6)

    def test_grey_and_flat_images(self) -> None:
        """One level everywhere: nothing to equalise or to stretch."""
        flat = np.full((20, 30, 3), 90, np.uint8)
        for name in ("Equalize", "AutoContrast", "Contrast", "Color", "Sharpness"):
            result = apply_operations(flat, (Operation(name, 1.5),))
            assert np.array_equal(result, flat), name
        assert Image.fromarray(flat).size == (30, 20)
