"""What the programs of input pipelines share; standard library only.

Their task: ``records``, a .rec file with its .idx; ``augmentation``, "crop" (random crop and
flip), "recipe" (the paper's: AutoAugment, crop, flip, jitter, lighting) or "evaluation" (resize,
centre crop); ``input_size``; ``batch_size``; and ``threads`` or ``workers``.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable

from contestant import Prepared

JITTER, LIGHTING = 0.4, 0.1
CROP_RATIO = 0.875  # of evaluation: crop / shorter side of the resized image
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST_BILINEAR_SIZE = 256


def prepared(epoch: Callable[[], Iterable[int]], facts: dict[str, Any]) -> Prepared:
    """A call is an epoch, from its start to its end.

    Parameters
    ----------
    epoch
        Starts an epoch, of which nothing has been prepared, and gives each batch's number of
        images when the batch is there.
    facts
        As of :class:`Prepared`.
    """
    return Prepared(lambda: sum(epoch()), facts, warm_up_calls=1, calls=1, counts=True)


def resized_side(input_size: int) -> int:
    """Shorter side of the image that evaluation takes its crop from."""
    return -int(-input_size // CROP_RATIO)


def is_bicubic(input_size: int) -> bool:
    """The recipe resamples by bicubic interpolation above 256 pixels."""
    return input_size > _LARGEST_BILINEAR_SIZE
