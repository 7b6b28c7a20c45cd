"""Whether exported files compute what the network computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar

Forward = Callable[[np.ndarray], np.ndarray]

_BATCH = 8
_OTHER_SIZE = 33  # pixels that the images of another size have more


class DisagreementError(InputError):
    """The exported files do not compute what the network computes."""


@dataclass(frozen=True)
class Comparison:
    """How far two networks agree on the same images.

    Attributes
    ----------
    images
        Number of images.
    largest_relative_difference
        Of two logits, over the largest logit of the network.
    median_relative_difference
        The same of half of the images: the median of each image's largest difference.
    top1_agreement
        Share of the images to which both give the same class.
    """

    images: int
    largest_relative_difference: float
    median_relative_difference: float
    top1_agreement: float

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def compare(network: Forward, exported: Forward, images: np.ndarray,
            any_size: bool = True) -> Comparison:
    """Run both on `images` (N, H, W, 3) uint8: one alone, in batches, and in another size.

    Without `any_size` not in another size, as the files take one only.

    The network is asked for whole batches, the exported files for some of other sizes, so that
    files that only take the batch they were written with do not pass.

    Raises
    ------
    DisagreementError
        The logits have other shapes.
    InputError
        The network's own logits are not finite.
    """
    size = images.shape[1] + _OTHER_SIZE
    larger = np.tile(images[:3], (1, 2, 2, 1))[:, :size, :size]
    parts = [images[:1], *(images[start:start + _BATCH]
                           for start in range(1, len(images), _BATCH))]
    parts += [larger] if any_size else []
    differences, largest, same = [], 0.0, 0
    for part in progress_bar(parts, desc="comparing", unit="batch"):
        expected, found = network(part), exported(part)
        if not np.isfinite(expected).all():
            raise InputError("the network's own logits are NaN or infinite: its weights are "
                             "damaged, or its training diverged")
        if expected.shape != found.shape:
            raise DisagreementError(f"the exported files give {found.shape} for {part.shape}, the "
                                    f"network {expected.shape}; nothing was written")
        differences.append(np.abs(expected - found).max(axis=1))
        largest = max(largest, float(np.abs(expected).max()))
        if part is not larger:
            same += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    # A network of zeros only agrees with another.
    relative = np.concatenate(differences) / max(largest, np.finfo(np.float32).tiny)
    relative = np.where(np.isfinite(relative), relative, np.inf)
    return Comparison(len(images), float(relative.max()), float(np.median(relative)),
                     same / len(images))
