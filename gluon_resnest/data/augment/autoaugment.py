"""The ImageNet policy of AutoAugment (Cubuk et al., CVPR 2019), and draws from it.

A policy is 25 sub-policies of two operations. One sub-policy is drawn for an image; each of its
operations is then applied with its own probability. What is drawn is a plain value, apart from the
pixels, so an augmented image can be made again, or shown, from it; `operations.py` does that.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

from gluon_resnest.data.augment.operations import Operation
from gluon_resnest.data.augment.random_streams import Source, below


class Step(NamedTuple):
    """One operation of a sub-policy; level 0 to 10."""

    name: str
    probability: float
    level: int


# Table 9 of the AutoAugment paper; the last five repeat earlier rows, as there. The level of an
# operation without a magnitude is the paper's and has no effect.
IMAGENET_POLICY: tuple[tuple[Step, Step], ...] = tuple(
    (Step(*first), Step(*second))
    for first, second in (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
        (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        # The earlier Gluon code has Color at level 0 here.
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    )
)

# Level -> magnitude. Whole numbers are cut, not rounded, as the policy was searched with.
MAGNITUDES: dict[str, Callable[[int], float]] = {
    "ShearX": lambda level: 0.3 * level / 10,  # pixels across for each pixel down
    "ShearY": lambda level: 0.3 * level / 10,
    "Rotate": lambda level: int(30 * level / 10),  # degrees
    "Solarize": lambda level: 256 - int(256 * level / 10),  # levels from here on are inverted
    "Posterize": lambda level: max(1, 4 - int(4 * level / 10)),  # bits that are kept
    "Contrast": lambda level: 1.8 * level / 10 + 0.1,  # blending factor, 1 changes nothing
    "Color": lambda level: 1.8 * level / 10 + 0.1,
    "Brightness": lambda level: 1.8 * level / 10 + 0.1,
    "Sharpness": lambda level: 1.8 * level / 10 + 0.1,
    "AutoContrast": lambda level: 0.0,
    "Equalize": lambda level: 0.0,
    "Invert": lambda level: 0.0,
}

# Operations that go either way with equal chance.
SIGNED = frozenset({"ShearX", "ShearY", "Rotate"})


def draw_operations(
    rng: Source,
    policy: tuple[tuple[Step, ...], ...] = IMAGENET_POLICY,
) -> tuple[Operation, ...]:
    """Draw a sub-policy and which of its operations are applied, with their magnitudes."""
    drawn = []
    for step in policy[below(rng, len(policy))]:
        # Both draws are always made: an operation that is skipped leaves the next one's alone.
        applied, negative = rng.random() < step.probability, rng.random() < 0.5
        if applied:
            magnitude = MAGNITUDES[step.name](step.level)
            flips = negative and step.name in SIGNED
            drawn.append(Operation(step.name, -magnitude if flips else magnitude))
    return tuple(drawn)
