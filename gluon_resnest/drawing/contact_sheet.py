"""Contact sheets of the augmentation: one photo under each operation, and training samples.

Every picture of a sheet is a :class:`Tile`, made from the training view's own functions;
`contact_page.py` puts tiles on a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gluon_resnest.data.augment.autoaugment import (
    IMAGENET_POLICY,
    MAGNITUDES,
    SIGNED,
)
from gluon_resnest.data.augment.color import Jitter, apply_jitter, apply_lighting
from gluon_resnest.data.augment.crops import Box
from gluon_resnest.data.augment.operations import Operation, apply_operations
from gluon_resnest.data.augment.random_streams import Source
from gluon_resnest.data.augment.transforms import TrainTransform, TrainView

JITTERS = ("brightness", "contrast", "saturation")

# Deviations of the lighting that are shown: three of a thousand images have more.
LIGHTING_DEVIATIONS = 3


class Tile(NamedTuple):
    """A picture and its caption.

    Attributes
    ----------
    title
        The caption's first line.
    pixels
        uint8 of shape (H, W, 3).
    notes
        Further lines.
    boxes
        Parts of the picture to draw as rectangles, in its pixels.
    """

    title: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


def policy_shares() -> dict[Operation, float]:
    """Operations of the ImageNet policy by magnitude: the share of images that they change."""
    shares: dict[Operation, float] = {}
    for sub_policy in IMAGENET_POLICY:
        without: dict[Operation, float] = {}
        for step in sub_policy:
            operation = Operation(step.name, MAGNITUDES[step.name](step.level))
            without[operation] = without.get(operation, 1.0) * (1 - step.probability)
        for operation, probability in without.items():
            share = (1 - probability) / len(IMAGENET_POLICY)
            shares[operation] = shares.get(operation, 0.0) + share
    order = list(MAGNITUDES)
    return {operation: shares[operation]
            for operation in sorted(shares, key=lambda each: (order.index(each.name), each[1]))}


def in_words(operation: Operation, sign: str | None = None) -> str:
    """An operation and its magnitude; `sign` stands for that of the signed ones, if given."""
    name, magnitude = operation
    if name in SIGNED:
        sign = ("−" if magnitude < 0 else "+") if sign is None else sign
        size = f"{abs(magnitude):.0f}°" if name == "Rotate" else f"{abs(magnitude):.2f}"
        return f"{name} {sign}{size}"
    if name == "Solarize":
        return f"{name} from {magnitude:.0f}"
    if name == "Posterize":
        return f"{name} to {magnitude:.0f} bit{'s' * (magnitude != 1)}"
    return f"{name} ×{magnitude:.2f}" if magnitude else name


def operation_tiles(image: np.ndarray) -> Iterator[Tile]:
    """An image (H, W, 3), uint8, under each operation of the policy, signed ones upwards."""
    for operation, share in policy_shares().items():
        yield Tile(in_words(operation, "±"), apply_operations(image, (operation,)),
                   (f"in {100 * share:.1f} % of images",))


def color_tiles(image: np.ndarray, transform: TrainTransform) -> Iterator[Tile]:
    """An image (H, W, 3), uint8, at the extremes of the jitters and of the lighting."""
    strength = transform.color_jitter
    for kind in JITTERS if strength else ():
        for factor in max(0.0, 1 - strength), 1 + strength:
            yield Tile(f"{kind} ×{factor:.2f}", apply_jitter(image, (Jitter(kind, factor),)))
    for sign in (-1, 1) if transform.lighting else ():
        # The other two components move a channel by one level: nothing to see.
        weights = (sign * LIGHTING_DEVIATIONS * transform.lighting, 0.0, 0.0)
        yield Tile(f"lighting {'−' if sign < 0 else '+'}{abs(weights[0]):.2f}",
                   apply_lighting(image, weights))


def crops_tile(
    image: np.ndarray, transform: TrainTransform, generators: Sequence[Source]
) -> Tile:
    """An image (H, W, 3), uint8, with the crop that each of the generators draws."""
    boxes = tuple(transform.draw(rng, *image.shape[:2]).box for rng in generators)
    return Tile(f"{len(boxes)} crops", image, (), boxes)


def describe(view: TrainView, height: int, width: int) -> tuple[str, ...]:
    """What was drawn for a view of an image of this size, in caption lines."""
    share = view.box.width * view.box.height / (height * width)
    lines = (", ".join(map(in_words, view.operations)) or "no operation",
             f"crop {100 * share:.0f} %" + ", mirrored" * view.flipped)
    factors = {jitter.kind: jitter.factor for jitter in view.jitters}
    jitters = ", ".join(f"{kind[0].upper()} {factors[kind]:.2f}" for kind in JITTERS
                        if kind in factors)
    return (*lines, jitters) if jitters else lines


def sample_tile(
    title: str, image: np.ndarray, transform: TrainTransform, rng: Source
) -> Tile:
    """A training sample (size, size, 3) of an image (H, W, 3), both uint8, and what was drawn."""
    view = transform.draw(rng, *image.shape[:2])
    return Tile(title, transform.apply(image, view), describe(view, *image.shape[:2]))


def mixed_tiles(tiles: Sequence[Tile], lambdas: np.ndarray) -> list[Tile]:
    """Mixup of a batch with its reverse: lambda_i x_i + (1 - lambda_i) x_(N-1-i).

    Parameters
    ----------
    tiles
        N samples of one shape.
    lambdas
        Of shape (N,).
    """
    mixed = []
    for tile, partner, weight in zip(tiles, tiles[::-1], lambdas.tolist()):
        pixels = weight * tile.pixels.astype(np.float64) + (1 - weight) * partner.pixels
        mixed.append(Tile(f"λ = {weight:.3f}", np.rint(pixels).astype(np.uint8),
                          (f"{weight:.2f} × {tile.title} + {1 - weight:.2f} × {partner.title}",)))
    return mixed
