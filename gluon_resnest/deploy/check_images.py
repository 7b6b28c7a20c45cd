"""Images that exported files are compared with their network on, and quantized by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np

from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.images.image_files import find_images, read_image
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar


def check_crops(path: Path, transform: EvaluationTransform, count: int) -> np.ndarray:
    """Crops (n, S, S, 3), uint8, of up to `count` images spread over what is there.

    Parameters
    ----------
    path
        A RecordIO file, an image or a folder of images. Those that cannot be used are left out.

    Raises
    ------
    InputError
        None of them can be used.
    """
    if path.suffix == ".rec":
        with RecordFile(path) as records:
            crops = _usable(len(records), count,
                            lambda number: transform(decode(records.read(number).payload)))
    else:
        files = [file for file in find_images([path]) if file.fault is None]
        crops = _usable(len(files), count,
                        lambda number: transform(read_image(files[number].path)))
    if not crops:
        raise InputError(f"{path}: none of the images in it can be used")
    return np.stack(crops)


def drawn_crops(photographs: Sequence[bytes], transform: EvaluationTransform) -> np.ndarray:
    """Crops of encoded images."""
    return np.stack([transform(decode(content)) for content in photographs])


def _usable(total: int, count: int, read: Callable[[int], np.ndarray]) -> list[np.ndarray]:
    crops = []
    chosen = np.unique(np.linspace(0, max(0, total - 1), min(count, total)).round().astype(int))
    for number in progress_bar(chosen, desc="reading images", unit="image"):
        try:
            crops.append(read(int(number)))
        except InputError:
            continue
    return crops
