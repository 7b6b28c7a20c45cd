"""Decoding, crops, resampling and colour against Pillow, MXNet and NumPy."""

from __future__ import annotations

import contextlib
import io
import math
import random

import mxnet as mx
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFile, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_images

from gluon_resnest.data.augment import color, crops
from gluon_resnest.data.augment.transforms import EvaluationTransform, TrainTransform, TrainView
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.errors import InputError

CHINA, FLOWER = load_sample_images().images  # 427 x 640, uint8


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    second = np.asarray(second)
    assert first.shape == second.shape
    return np.abs(first.astype(int) - second.astype(int))


def overlaps(old: int, new: int) -> np.ndarray:
    """Share (new, old) of each old pixel in each new one, along a line; rows add up to 1."""
    scale = old / new
    first = np.arange(new)[:, None] * scale
    left, right = np.arange(old), np.arange(old) + 1
    return np.clip(np.minimum(right, first + scale) - np.maximum(left, first), 0, None) / scale


class TestDecoding:
    """Whatever a record holds comes out as RGB, as Pillow has it."""

    photo = Image.fromarray(CHINA)

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("BMP", "RGB"), ("BMP", "L")],
    )
    def test_lossless_kinds_are_equal(self, kind: str, mode: str) -> None:
        image = self.photo.convert(mode)
        decoded = decode(encode(image, kind))
        assert decoded.dtype == np.uint8
        assert np.array_equal(decoded, np.asarray(image.convert("RGB")))

    def test_transparency_is_left_out(self) -> None:
        image = self.photo.copy()
        image.putalpha(Image.fromarray(FLOWER).convert("L"))
        assert np.array_equal(decode(encode(image, "PNG")), CHINA)

    def test_sixteen_bits_become_eight(self) -> None:
        deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        decoded = decode(encode(Image.fromarray(deep), "PNG"))
        assert difference(decoded[..., 0], deep // 257).max() <= 1

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_jpeg(self, mode: str, progressive: bool) -> None:
        content = encode(self.photo.convert(mode), "JPEG", quality=90, progressive=progressive)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        error = difference(decode(content), expected)
        # Two builds of libjpeg-turbo; CMYK is rounded twice on its way to RGB.
        assert error.mean() < (1.5 if mode == "CMYK" else 0.6)
        assert error.max() <= 12

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_photo_is_turned_as_its_exif_says(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(self.photo, "JPEG", quality=95, exif=exif)
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
        assert difference(decode(content), upright).mean() < 0.6

    @pytest.mark.parametrize("orientation", [0, 9, 77])
    def test_an_orientation_that_means_nothing(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encode(self.photo, "JPEG", quality=95, exif=exif)
        assert difference(decode(content), np.asarray(Image.open(io.BytesIO(content)))).mean() < 0.6

    @pytest.mark.parametrize("content", [b"", b"<html></html>", bytes(1000)])
    def test_what_is_no_image_is_refused(self, content: bytes) -> None:
        with pytest.raises(InputError, match=f"its {len(content):,} bytes are not an image"):
            decode(content)

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
    def test_a_jpeg_that_was_cut_is_refused(
        self, mode: str, progressive: bool, share: float
    ) -> None:
        """MXNet's decoder fills up with grey, and says nothing."""
        content = encode(self.photo.convert(mode), "JPEG", quality=90, progressive=progressive)
        with pytest.raises(InputError, match="damaged JPEG"):
            decode(content[: int(share * len(content))])

    def test_a_jpeg_whose_middle_was_lost_is_refused(self) -> None:
        content = bytearray(encode(self.photo, "JPEG", quality=90))
        middle = len(content) // 2
        content[middle : middle + 4096] = bytes(4096)
        with pytest.raises(InputError, match="damaged JPEG: Corrupt JPEG data"):
            decode(bytes(content))

    @pytest.mark.parametrize("extra", [1, 30, 300])
    def test_a_few_bytes_too_many_are_no_damage(self, extra: int) -> None:
        """Cameras and editors leave some before a marker; many are what lost data looks like."""
        content = encode(self.photo, "JPEG", quality=90)
        padded = content[:-2] + b"\x55" * extra + content[-2:]
        if extra < 100:
            assert np.array_equal(decode(padded), decode(content))
        else:
            with pytest.raises(InputError, match="extraneous bytes"):
                decode(padded)

    @pytest.mark.parametrize("lenient", [False, True])
    @pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
    def test_harmless_bytes_hide_no_cut(
        self, share: float, lenient: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Strays between the scans of a progressive JPEG: the first that a decoder warns of."""
        content = encode(self.photo, "JPEG", quality=90, progressive=True)
        # A switch for all of a process, which some libraries turn on.
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
        scan = content.index(b"\xff\xda", content.index(b"\xff\xda") + 2)
        strays = content[:scan] + b"\x55" * 5 + content[scan:]
        assert np.array_equal(decode(strays), decode(content))
        with pytest.raises(InputError, match="damaged JPEG"):
            decode(strays[: int(share * len(strays))])

    def test_odd_headers_are_no_damage(self) -> None:
        content = encode(self.photo, "JPEG", quality=90)
        version = content.index(b"JFIF\0") + 5
        tables = content.index(b"\xff\xdb")
        for odd in (content[:version] + b"\x02\x01" + content[version + 2 :],
                    content[:tables] + b"\x55" * 5 + content[tables:]):
            assert difference(decode(odd), decode(content)).max() == 0

    @pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
    def test_other_kinds_that_were_cut_are_refused(self, kind: str) -> None:
        content = encode(self.photo, kind)
        with pytest.raises(InputError, match=r"are a damaged (PNG|image): "):
            decode(content[: len(content) // 2])

    def test_a_header_that_asks_for_too_much_is_refused(self) -> None:
        content = bytearray(encode(Image.fromarray(CHINA), "JPEG"))
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"  # 65,280 x 65,280 pixels
        with pytest.raises(InputError, match="65280 x 65280 pixels are more than"):
            decode(bytes(content))

    def test_damaged_bytes_give_an_image_or_one_error(self, rng: np.random.Generator) -> None:
        whole = [encode(Image.fromarray(CHINA[:90, :120]), kind) for kind in ("JPEG", "PNG")]
        for number in range(600):
            content = bytearray(whole[number % 2])
            for place in rng.integers(0, len(content), rng.integers(1, 6)):
                content[place] = rng.integers(256)
            with contextlib.suppress(InputError):
                image = decode(bytes(content))
                assert image.dtype == np.uint8
                assert image.ndim == 3

    def test_a_view_of_memory_will_do(self) -> None:
        for kind in ("JPEG", "PNG"):
            content = encode(self.photo, kind)
            assert np.array_equal(decode(memoryview(content)), decode(content))


class TestResample:
    @pytest.mark.parametrize("size", [(500, 375), (900, 700), (639, 427), (350, 240), (300, 900)])
    def test_bilinear_is_mxnets(self, size: tuple[int, int]) -> None:
        expected = mx.image.imresize(mx.nd.array(CHINA, dtype="uint8"), *size, interp=1).asnumpy()
        assert difference(crops.resample(CHINA, *size, bicubic=False), expected).max() <= 1

    @pytest.mark.parametrize("size", [(224, 224), (320, 213), (100, 427)])
    def test_from_two_on_it_is_the_mean_over_each_area(self, size: tuple[int, int]) -> None:
        down, across = (overlaps(old, new) for old, new in zip(CHINA.shape, size[::-1]))
        expected = np.einsum("yi,xj,ijc->yxc", down, across, CHINA, optimize=True)
        ours = crops.resample(CHINA, *size, bicubic=False)
        assert np.abs(ours - expected).max() <= 1
        four_pixels = mx.image.imresize(
            mx.nd.array(CHINA, dtype="uint8"), *size, interp=1).asnumpy()
        assert np.abs(four_pixels - expected).mean() > 2

    @pytest.mark.parametrize("size", [(224, 224), (366, 366), (900, 700), (64, 100)])
    def test_bicubic_is_pillows(self, size: tuple[int, int]) -> None:
        expected = Image.fromarray(CHINA).resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(crops.resample(CHINA, *size, bicubic=True), expected)

    def test_enlarging_is_pillows(self) -> None:
        expected = Image.fromarray(CHINA).resize((900, 700), Image.Resampling.BILINEAR)
        assert difference(crops.resample(CHINA, 900, 700, bicubic=False), expected).max() <= 2

    def test_shrinking_far_skips_no_pixel(self) -> None:
        """Fifteen-fold: the mean over each area, not four pixels of each."""
        expected = np.asarray(Image.fromarray(FLOWER).reduce(15))[:28, :42]
        ours = crops.resample(FLOWER[:420, :630], 42, 28, bicubic=False)
        assert difference(ours, expected).max() <= 1
        four_pixels = mx.image.imresize(
            mx.nd.array(FLOWER[:420, :630], dtype="uint8"), 42, 28, interp=1).asnumpy()
        assert difference(four_pixels, expected).mean() > 2

    def test_same_size_is_the_same_image(self) -> None:
        assert np.array_equal(crops.resample(CHINA, 640, 427, bicubic=False), CHINA)
        assert np.array_equal(crops.resample(CHINA, 640, 427, bicubic=True), CHINA)


class TestCrops:
    def test_resized_crop_is_distributed_as_mxnets(self) -> None:
        """Kolmogorov-Smirnov on 3,000 boxes of each, from MXNet's own random_size_crop."""
        rng = np.random.default_rng(0)
        ours = [crops.draw_resized_crop(rng, 375, 500) for _ in range(3000)]
        random.seed(0)
        image = mx.nd.zeros((375, 500, 3), dtype="uint8")
        theirs = [
            crops.Box(*mx.image.random_size_crop(image, (1, 1), (0.08, 1.0), (3 / 4, 4 / 3))[1])
            for _ in range(3000)
        ]
        for measure in (
            lambda box: box.width, lambda box: box.height, lambda box: box.left,
            lambda box: box.top, lambda box: box.width * box.height,
            lambda box: box.width / box.height,
        ):
            test = stats.ks_2samp([measure(b) for b in ours], [measure(b) for b in theirs])
            assert test.pvalue > 0.001

    @pytest.mark.parametrize(("height", "width"), [(375, 500), (1, 1), (3, 2000), (2000, 3)])
    def test_boxes_lie_in_the_image(self, height: int, width: int) -> None:
        rng = np.random.default_rng(1)
        for i in range(500):
            if i % 2:
                box = crops.draw_resized_crop(rng, height, width)
            else:
                box = crops.draw_covering_crop(rng, height, width, 320)
            assert box.left >= 0 < box.width
            assert box.top >= 0 < box.height
            assert box.left + box.width <= width
            assert box.top + box.height <= height
            assert box.cut(np.empty((height, width, 3))).shape == (box.height, box.width, 3)

    @pytest.mark.parametrize(
        ("height", "width", "expected"),
        [(100, 1000, (133, 100)), (1000, 100, (100, 133))],
    )
    def test_panorama_falls_back_to_the_largest_centred_box(
        self, height: int, width: int, expected: tuple[int, int]
    ) -> None:
        """With the whole area asked for no ratio fits, so all ten attempts fail."""
        box = crops.draw_resized_crop(np.random.default_rng(0), height, width, area=(1, 1))
        assert (box.width, box.height) == expected
        assert abs(box.left - (width - box.width) / 2) <= 0.5
        assert abs(box.top - (height - box.height) / 2) <= 0.5

    def test_covering_crop_has_efficientnets_distribution(self) -> None:
        """On a square, ratio a is uniform, and so is the height between sqrt(0.1 / a) and its
        largest, min(1, 1 / a) of the side."""
        rng = np.random.default_rng(2)
        side = 10_000
        boxes = [crops.draw_covering_crop(rng, side, side, 320) for _ in range(4000)]
        ratio = np.array([box.width / box.height for box in boxes])
        height = np.array([box.height / side for box in boxes])
        low, high = np.sqrt(0.1 / ratio), np.minimum(1, 1 / ratio)
        place = (height - low) / (high - low)
        assert stats.kstest(ratio, stats.uniform(3 / 4, 4 / 3 - 3 / 4).cdf).pvalue > 0.001
        assert stats.kstest(place, stats.uniform(0, 1).cdf).pvalue > 0.001
        area = ratio * height**2
        assert 0.0999 < area.min() < 0.11
        assert 0.95 < area.max() <= 1

    def test_covering_crop_falls_back_to_the_padded_centre(self) -> None:
        """A panorama whose height is a twentieth of its width cannot cover a tenth."""
        box = crops.draw_covering_crop(np.random.default_rng(0), 100, 2000, 320)
        side = round(100 * 320 / 352)
        assert box == ((2000 - side) // 2, (100 - side) // 2, side, side)


class TestColor:
    """Against MXNet's operators, which cut fractions off where we round, and Pillow's."""

    image = mx.nd.array(FLOWER, dtype="uint8")

    @pytest.mark.parametrize("kind", ["brightness", "contrast"])
    @pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.4])
    def test_jitter_is_mxnets(self, kind: str, factor: float) -> None:
        operator = getattr(mx.nd.image, f"random_{kind}")
        expected = operator(self.image, min_factor=factor, max_factor=factor).asnumpy()
        error = difference(color.apply_jitter(FLOWER, (color.Jitter(kind, factor),)), expected)
        assert error.max() <= 1

    @pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.4])
    def test_saturation_is_pillows(self, factor: float) -> None:
        """MXNet's operator has the luminance wrong (see adjust_saturation)."""
        expected = ImageEnhance.Color(Image.fromarray(FLOWER)).enhance(factor)
        error = difference(color.adjust_saturation(FLOWER, factor), expected)
        assert error.max() <= 1

    @pytest.mark.parametrize("weights", [(0.1, -0.2, 0.05), (-0.3, 0.1, 0.2), (0.0, 0.0, 0.0)])
    def test_lighting_is_mxnets(self, weights: tuple[float, float, float]) -> None:
        expected = mx.nd.image.adjust_lighting(self.image, alpha=weights).asnumpy()
        assert difference(color.apply_lighting(FLOWER, weights), expected).max() <= 1

    def test_jitters_come_in_every_order_and_stay_in_range(self) -> None:
        rng = np.random.default_rng(3)
        drawn = [color.draw_jitter(rng, 0.4) for _ in range(3000)]
        orders = [tuple(jitter.kind for jitter in jitters) for jitters in drawn]
        counts = np.array([orders.count(order) for order in set(orders)])
        assert len(counts) == 6
        assert ((counts - 500.0) ** 2 / 500).sum() < 20.5  # chi-squared, p = 0.001
        factors = [jitter.factor for jitters in drawn for jitter in jitters]
        assert stats.kstest(factors, stats.uniform(0.6, 0.8).cdf).pvalue > 0.001

    def test_lighting_weights_are_normal(self) -> None:
        rng = np.random.default_rng(4)
        weights = np.array([color.draw_lighting(rng, 0.1) for _ in range(2000)]).ravel()
        assert stats.kstest(weights, stats.norm(0, 0.1).cdf).pvalue > 0.001

    def test_order_of_jitters_matters_and_is_kept(self) -> None:
        bright, flat = color.Jitter("brightness", 1.4), color.Jitter("contrast", 0.6)
        first = color.apply_jitter(FLOWER, (bright, flat))
        assert np.array_equal(first, color.adjust_contrast(
            color.adjust_brightness(FLOWER, 1.4), 0.6))
        assert not np.array_equal(first, color.apply_jitter(FLOWER, (flat, bright)))


class TestTrainTransform:
    @pytest.mark.parametrize("size", [32, 224, 320])
    def test_result_is_a_square_of_uint8(self, size: int) -> None:
        for seed in range(5):
            pixels = TrainTransform(size)(CHINA, np.random.default_rng(seed))
            assert pixels.shape == (size, size, 3)
            assert pixels.dtype == np.uint8

    def test_pixels_of_a_view_at_224(self) -> None:
        box = crops.Box(100, 50, 300, 280)
        plain = TrainView((), box, False, (), None)
        expected = mx.image.fixed_crop(
            mx.nd.array(CHINA, dtype="uint8"), *box, size=(224, 224), interp=1).asnumpy()
        transform = TrainTransform(224)
        assert difference(transform.apply(CHINA, plain), expected).max() <= 1
        mirrored = transform.apply(CHINA, TrainView((), box, True, (), None))
        assert difference(mirrored, expected[:, ::-1]).max() <= 1

    def test_pixels_of_a_view_at_320(self) -> None:
        box = crops.Box(10, 20, 500, 380)
        expected = Image.fromarray(CHINA).crop((10, 20, 510, 400)).resize(
            (320, 320), Image.Resampling.BICUBIC)
        pixels = TrainTransform(320).apply(CHINA, TrainView((), box, False, (), None))
        assert np.array_equal(pixels, expected)

    def test_draws_are_those_of_the_generator_alone(self) -> None:
        transform = TrainTransform(224)
        first = transform(CHINA, np.random.default_rng((1, 2, 3)))
        assert np.array_equal(first, transform(CHINA.copy(), np.random.default_rng((1, 2, 3))))
        assert not np.array_equal(first, transform(CHINA, np.random.default_rng((1, 2, 4))))

    def test_half_of_the_samples_are_mirrored(self) -> None:
        rng = np.random.default_rng(5)
        flips = [TrainTransform(224).draw(rng, 427, 640).flipped for _ in range(2000)]
        assert 0.46 < np.mean(flips) < 0.54
        assert not any(TrainTransform(224, flip=False).draw(rng, 427, 640).flipped
                       for _ in range(100))

    def test_the_crop_depends_on_the_train_size(self) -> None:
        """Area of the crops: uniform from 0.08 below 320 pixels, EfficientNet's from there on."""
        def areas(size: int) -> np.ndarray:
            rng = np.random.default_rng(6)
            boxes = [TrainTransform(size).draw(rng, 1000, 1000).box for _ in range(2000)]
            return np.array([box.width * box.height / 1e6 for box in boxes])

        assert areas(256).min() < 0.09
        assert areas(320).min() > 0.0995

    def test_nothing_but_the_crop_when_the_rest_is_off(self) -> None:
        transform = TrainTransform(64, auto_augment=False, color_jitter=0, lighting=0, flip=False)
        view = transform.draw(np.random.default_rng(7), 427, 640)
        assert view == TrainView((), view.box, False, (), None)

    @pytest.mark.parametrize("settings", [
        {"size": 0}, {"size": 8, "color_jitter": -1}, {"size": 8, "lighting": math.nan},
        {"size": 8, "area": (0, 1)}, {"size": 8, "area": (0.5, 0.4)}, {"size": 8, "ratio": (2, 1)}])
    def test_unusable_settings(self, settings: dict) -> None:
        with pytest.raises(InputError):
            TrainTransform(**settings)


class TestEvaluationTransform:
    @pytest.mark.parametrize(("size", "short"), [(224, 256), (256, 293)])
    @pytest.mark.parametrize("turned", [False, True])
    def test_bilinear_up_to_256_as_mxnet_resizes_and_crops(
        self, size: int, short: int, turned: bool
    ) -> None:
        image = CHINA.transpose(1, 0, 2) if turned else CHINA
        image = np.ascontiguousarray(image)
        resized = mx.image.resize_short(mx.nd.array(image, dtype="uint8"), short, interp=1)
        expected = mx.image.center_crop(resized, (size, size))[0].asnumpy()
        pixels = EvaluationTransform(size)(image)
        assert pixels.shape == (size, size, 3)
        assert difference(pixels, expected).max() <= 1

    def test_means_from_a_reduction_by_two_on(self) -> None:
        """At 64 pixels the shorter side of 427 becomes 74."""
        width = 74 * 640 // 427
        down, across = overlaps(427, 74), overlaps(640, width)
        resized = np.einsum("yi,xj,ijc->yxc", down, across, CHINA, optimize=True)
        left, top = (width - 64) // 2, (74 - 64) // 2
        expected = resized[top : top + 64, left : left + 64]
        assert np.abs(EvaluationTransform(64)(CHINA) - expected).max() <= 1

    @pytest.mark.parametrize(("size", "short"), [(320, 366), (416, 476), (257, 294)])
    def test_bicubic_above_256_as_pillow_resizes_and_crops(self, size: int, short: int) -> None:
        width = short * 640 // 427
        resized = Image.fromarray(CHINA).resize((width, short), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (short - size) // 2
        expected = resized.crop((left, top, left + size, top + size))
        assert np.array_equal(EvaluationTransform(size)(CHINA), expected)

    def test_crop_ratio(self) -> None:
        """At 1 nothing is cut off the shorter side; 0.8 of 320 is 400 exactly."""
        whole = EvaluationTransform(224, crop_ratio=1)(CHINA[:, :427])
        expected = mx.image.imresize(
            mx.nd.array(CHINA[:, :427], dtype="uint8"), 224, 224, interp=1).asnumpy()
        assert difference(whole, expected).max() <= 1
        resized = Image.fromarray(CHINA[:, :427]).resize((400, 400), Image.Resampling.BICUBIC)
        assert np.array_equal(EvaluationTransform(320, crop_ratio=0.8)(CHINA[:, :427]),
                              resized.crop((40, 40, 360, 360)))

    @pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 2, 3)])
    def test_tiny_and_thin_images(self, shape: tuple[int, int, int]) -> None:
        image = np.full(shape, 77, np.uint8)
        for size in (32, 320):
            assert np.array_equal(EvaluationTransform(size)(image),
                                  np.full((size, size, 3), 77, np.uint8))

    @pytest.mark.parametrize("ratio", [0, -1, 1.5, math.nan])
    def test_unusable_crop_ratio(self, ratio: float) -> None:
        with pytest.raises(InputError, match=f"--crop-ratio {ratio}"):
            EvaluationTransform(224, ratio)
