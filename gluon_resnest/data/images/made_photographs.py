"""Photograph-like JPEGs, for checks and timings where there are no photographs.

No photograph is shipped or downloaded for it. The pictures are "dead leaves" (A. B. Lee,
D. Mumford and J. Huang, "Occlusion Models for Natural Images", 2001): shapes of all sizes, radius
r with density r^-3, cover one another, which gives a photograph's edges, flat parts and 1/f
spectrum. Each leaf has a colour of the picture's palette, a slope of light and a 1/f texture; what
lies behind may be out of focus, and the sensor adds noise. Sizes and bytes are those of ImageNet's
images, and so is the time to decode one: half of that is in the bytes, half in the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import cv2
import numpy as np

from gluon_resnest import runtime

# With any change of the pictures, raise VERSION in benchmarks/photograph_records.py.
LEAST_BYTES, MOST_BYTES = 70_000, 130_000

_MEAN_BYTES, _BYTES_DEVIATION = 105_000, 12_000
# Height and width; the frequent shapes of ImageNet's images. Each side is cut by up to 8 pixels.
_SHAPES = ((375, 500), (375, 500), (375, 500), (500, 375), (333, 500), (500, 333), (400, 500))
_MOST_CUT = 8
_QUALITIES = (75, 99)  # lowest, highest
_RADII = (3.0, 160.0)
_TILE = 512  # larger than a picture's sides; a texture has twice that, to take any part of it
# Slope of a texture's spectrum and its stretch across: gravel, foliage, cloud, fibre.
_TEXTURES = ((0.8, 1.0), (1.1, 1.0), (1.5, 1.0), (1.0, 6.0))


def photographs(count: int, seed: int = 0) -> Iterator[bytes]:
    """JPEG files, each of its seed and number alone."""
    cv2.setNumThreads(0)  # the threads are ours
    with ThreadPoolExecutor(runtime.usable_cores()) as pool:
        # In portions: a million pictures would wait in memory otherwise.
        portion = 64
        for first in range(0, count, portion):
            numbers = range(first, min(first + portion, count))
            yield from pool.map(partial(photograph, seed=seed), numbers)


def photograph(number: int, seed: int = 0) -> bytes:
    """One picture as a JPEG with 4:2:0 chroma, of LEAST_BYTES to MOST_BYTES."""
    rng = np.random.default_rng((seed, number))
    height, width = rng.choice(_SHAPES) - rng.integers(0, _MOST_CUT, 2, endpoint=True)
    image = picture(rng, int(height), int(width))
    size = np.clip(rng.normal(_MEAN_BYTES, _BYTES_DEVIATION), LEAST_BYTES, MOST_BYTES)
    return _encoded(image, float(size))


def _encoded(image: np.ndarray, size: float) -> bytes:
    """The JPEG whose size is nearest `size` bytes, within the bounds of all."""
    lowest, highest = _QUALITIES
    while highest - lowest > 1:
        quality = (lowest + highest) // 2
        if len(_jpeg(image, quality)) <= size:
            lowest = quality
        else:
            highest = quality
    both = [_jpeg(image, quality) for quality in (lowest, highest)]
    return min((content for content in both if LEAST_BYTES <= len(content) <= MOST_BYTES),
               key=lambda content: abs(len(content) - size))


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    return cv2.imencode(".jpg", image, settings)[1].tobytes()


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dead leaves, uint8 of shape (height, width, 3), channels B, G, R."""
    palette = _palette(rng)
    above, below = palette[rng.integers(0, len(palette), 2)]
    image = np.linspace(above, below, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    for blur, share in ((rng.uniform(0.5, 5), 0.6), (0.6, 1.0)):
        radiance, cover = _leaves(rng, height, width, palette, share)
        # Blurred together with its outline, so that edges are as soft as what they enclose.
        image *= 1 - cv2.GaussianBlur(cover, (0, 0), blur)[..., None]
        image += cv2.GaussianBlur(radiance, (0, 0), blur)
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(1, 4)
    return np.clip(image + cv2.GaussianBlur(noise, (0, 0), 0.5), 0, 255).astype(np.uint8)


def _leaves(
    rng: np.random.Generator, height: int, width: int, palette: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leaves whose areas add up to about twice `share` of the picture, the later above.

    Returns
    -------
    radiance : numpy.ndarray
        Colour x light x texture, float32 of shape (height, width, 3); 0 where no leaf is.
    cover : numpy.ndarray
        1 where a leaf is, float32 of shape (height, width).
    """
    smallest, largest = _RADII
    mean_area = 2 * np.pi * smallest**2 * np.log(largest / smallest)
    count = int(2 * share * height * width / mean_area)
    # The inverse of the distribution whose density is r^-3 between both radii.
    radii = (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5
    centers = rng.uniform(0, (height, width), (count, 2))
    number = np.zeros((height, width), np.int32)  # of the leaf on top, from 1; 0 is none
    for one, outline in enumerate(_outlines(rng, centers, radii), start=1):
        cv2.fillPoly(number, [outline], one)
    cover, number = (number > 0).astype(np.float32), np.maximum(number - 1, 0)

    colors = palette[rng.integers(0, len(palette), count)] * rng.uniform(0.7, 1.3, (count, 1))
    slopes = rng.normal(0, 0.2, (count, 2)) / radii[:, None]
    light = np.column_stack([1 - (slopes * centers).sum(1), slopes]).astype(np.float32)[number]
    down, across = np.arange(height)[:, None], np.arange(width)
    light = light[..., 0] + light[..., 1] * down + light[..., 2] * across
    deviations = np.minimum(0.6, rng.lognormal(-1.9, 0.6, count)).astype(np.float32)
    textures = _textures()
    texture = textures[rng.integers(0, len(textures), count)[number],
                       down + rng.integers(_TILE), across + rng.integers(_TILE)]
    factor = cover * np.clip(light, 0.3, 1.7) * np.exp(deviations[number] * texture)
    return np.minimum(colors.astype(np.float32)[number] * factor[..., None], 255), cover


def _outlines(
    rng: np.random.Generator, centers: np.ndarray, radii: np.ndarray
) -> Iterator[np.ndarray]:
    """Points (across, down) of a turned ellipse each, or of a polygon with 3 to 6 corners."""
    count = len(radii)
    corners = np.where(rng.random(count) < 0.6, 24, rng.integers(3, 6, count, endpoint=True))
    angles = 2 * np.pi * np.arange(24) / corners[:, None]  # those beyond the last are left out
    radii, stretch = radii[:, None], rng.uniform(1, 2, (count, 1))
    longer, shorter = radii * stretch * np.cos(angles), radii / stretch * np.sin(angles)
    turn = rng.uniform(0, 2 * np.pi, (count, 1))
    across = longer * np.cos(turn) - shorter * np.sin(turn) + centers[:, 1:]
    down = longer * np.sin(turn) + shorter * np.cos(turn) + centers[:, :1]
    points = np.rint(np.stack([across, down], axis=-1)).astype(np.int32)
    return (outline[:number] for outline, number in zip(points, corners))


def _palette(rng: np.random.Generator) -> np.ndarray:
    """A picture's colours, (8, 3), B, G, R from 0 to 255: of any lightness, of related hues."""
    cast = rng.normal(0, 8, 2)
    lab = np.column_stack([rng.uniform(12, 95, 8), rng.normal(cast, 12, (8, 2))])
    return cv2.cvtColor(lab[None].astype(np.float32), cv2.COLOR_LAB2BGR)[0].clip(0, 1) * 255


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """A tile of each of the _TEXTURES, float32 (textures, height, width), mean 0, deviation 1."""
    rng = np.random.default_rng(0)
    frequencies = np.fft.fftfreq(2 * _TILE)[:, None], np.fft.rfftfreq(2 * _TILE)[None]
    found = []
    for exponent, stretch in _TEXTURES:
        frequency = np.hypot(frequencies[0], frequencies[1] * stretch)
        frequency[0, 0] = np.inf  # no mean
        noise = np.fft.rfft2(rng.standard_normal((2 * _TILE, 2 * _TILE)))
        tile = np.fft.irfft2(noise / frequency**exponent)
        found.append(tile / tile.std())
    return np.stack(found).astype(np.float32)
