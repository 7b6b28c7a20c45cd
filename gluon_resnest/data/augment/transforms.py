"""From a decoded image to the network's input size: the paper's training and evaluation views.

Order of the training view (the paper, section "Image Classification Results"): AutoAugment on the
whole image, random crop, horizontal flip, colour jitter, lighting. Mean and deviation are taken in
the network's graph, so pixels stay uint8 until they are on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from gluon_resnest.data.augment.autoaugment import draw_operations
from gluon_resnest.data.augment.color import (
    Jitter,
    apply_jitter,
    apply_lighting,
    draw_jitter,
    draw_lighting,
)
from gluon_resnest.data.augment.crops import (
    LARGEST_BILINEAR_SIZE,
    Box,
    centred_box,
    draw_covering_crop,
    draw_resized_crop,
    resample,
)
from gluon_resnest.data.augment.operations import Operation, apply_operations
from gluon_resnest.data.augment.random_streams import Source
from gluon_resnest.errors import InputError

# From this train size on, the recipe crops as EfficientNet does.
SMALLEST_COVERING_CROP = 320

# The evaluation view keeps a square of the middle: of a longer image the ends are cut off before
# it is resized, or a line of pixels would become gigabytes.
LONGEST_SIDES_RATIO = 4


@dataclass(frozen=True)
class TrainView:
    """Everything that was drawn for one training sample: with the image, it gives the pixels.

    Attributes
    ----------
    operations
        AutoAugment's, on the whole image.
    box
        The crop.
    flipped
        Mirrored left to right.
    jitters
        Brightness, contrast and saturation in their order.
    lighting
        Weights of the principal components; None leaves them out.
    """

    operations: tuple[Operation, ...]
    box: Box
    flipped: bool
    jitters: tuple[Jitter, ...]
    lighting: tuple[float, float, float] | None


@dataclass(frozen=True)
class TrainTransform:
    """The training view of an image: `transform(image, rng)`.

    Attributes
    ----------
    size
        Side of the result in pixels.
    auto_augment
        Apply the ImageNet policy of AutoAugment first.
    color_jitter
        Brightness, contrast and saturation each change by up to this share; 0 leaves them.
    lighting
        Standard deviation of the weights of the principal components; 0 leaves them out.
    area
        Smallest and largest share of the image that the crop takes; None for the recipe's: 0.08
        to 1, and 0.1 to 1 from 320 pixels on.
    ratio
        Smallest and largest width / height of the crop.
    flip
        Mirror half of the samples left to right.
    """

    size: int
    auto_augment: bool = True
    color_jitter: float = 0.4
    lighting: float = 0.1
    area: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        _check_size(self.size)
        for name in ("color_jitter", "lighting"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} {getattr(self, name)} must not be negative")
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise InputError(f"crop area {self.area} must be two shares with 0 < smallest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"crop ratio {self.ratio} must be two positive numbers in order")

    def draw(self, rng: Source, height: int, width: int) -> TrainView:
        """Draw a view of an image of this size; the pixels are not needed."""
        operations = draw_operations(rng) if self.auto_augment else ()
        if self.size >= SMALLEST_COVERING_CROP:
            area = self.area or (0.1, 1.0)
            box = draw_covering_crop(rng, height, width, self.size, area, self.ratio)
        else:
            box = draw_resized_crop(rng, height, width, self.area or (0.08, 1.0), self.ratio)
        flipped = self.flip and bool(rng.random() < 0.5)
        jitters = draw_jitter(rng, self.color_jitter) if self.color_jitter else ()
        weights = draw_lighting(rng, self.lighting) if self.lighting else None
        return TrainView(operations, box, flipped, jitters, weights)

    def apply(self, image: np.ndarray, view: TrainView) -> np.ndarray:
        """Make the pixels of a drawn view.

        Parameters
        ----------
        image
            uint8 RGB of shape (H, W, 3).
        view
            From :meth:`draw` for this height and width.

        Returns
        -------
        numpy.ndarray
            uint8 of shape (size, size, 3).
        """
        image = apply_operations(image, view.operations, view.box)
        image = resample(image, self.size, self.size, bicubic=self.size > LARGEST_BILINEAR_SIZE)
        if view.flipped:
            image = cv2.flip(image, 1)
        image = apply_jitter(image, view.jitters)
        return image if view.lighting is None else apply_lighting(image, view.lighting)

    def __call__(self, image: np.ndarray, rng: Source) -> np.ndarray:
        """Draw a view and make its pixels."""
        return self.apply(image, self.draw(rng, *image.shape[:2]))


@dataclass(frozen=True)
class EvaluationTransform:
    """The evaluation view of an image: `transform(image)`.

    "For evaluation, we first resize each image to 1/0.875 of the crop size along the short edge
    and apply a center crop" (the paper); bilinear up to 256 pixels, bicubic above.

    Attributes
    ----------
    size
        Side of the result in pixels.
    crop_ratio
        Size of the crop / shorter side of the resized image, above 0 and at most 1.
    """

    size: int
    crop_ratio: float = 0.875

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"--crop-ratio {self.crop_ratio} must be above 0 and at most 1")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop.

        Parameters
        ----------
        image
            uint8 RGB of shape (H, W, 3).

        Returns
        -------
        numpy.ndarray
            uint8 of shape (size, size, 3).
        """
        height, width = image.shape[:2]
        shorter = min(height, width)
        if max(height, width) > LONGEST_SIDES_RATIO * shorter:
            image = centred_box(
                height, width, min(height, LONGEST_SIDES_RATIO * shorter),
                min(width, LONGEST_SIDES_RATIO * shorter),
            ).cut(image)
            height, width = image.shape[:2]
        # Rounded first: 0.875 is exact, but 320 / 0.8 must not become 401 by a last bit.
        short = math.ceil(round(self.size / self.crop_ratio, 6))
        height, width = height * short // shorter, width * short // shorter
        image = resample(image, width, height, bicubic=self.size > LARGEST_BILINEAR_SIZE)
        return centred_box(height, width, self.size, self.size).cut(image)


def _check_size(size: int) -> None:
    if size < 1:
        raise InputError(f"image size {size} must be at least 1 pixel")
