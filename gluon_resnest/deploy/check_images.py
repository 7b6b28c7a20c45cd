"""Images that exported files are compared with their network on, and quantized by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gluon_resnest.data.decoding import decode
from gluon_resnest.data.records import RecordFile
from gluon_resnest.data.transforms import EvaluationTransform
from gluon_resnest.errors import InputError


def record_crops(path: Path, transform: EvaluationTransform, count: int) -> np.ndarray:
    """Crops (n, S, S, 3), uint8, of up to `count` images spread over a RecordIO file.

    Records that cannot be used are left out.

    Raises
    ------
    InputError
        None of them can be used.
    """
    crops = []
    with RecordFile(path) as records:
        chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
        for number in tqdm(np.unique(chosen), "reading images", unit="image", leave=False,
                           disable=None):
            try:
                crops.append(transform(decode(records.read(int(number)).payload)))
            except InputError:
                continue
    if not crops:
        raise InputError(f"none of the images in {path} can be used: scripts/pack_records.py "
                         f"--verify {path} says why")
    return np.stack(crops)


def drawn_crops(
    photographs: Sequence[bytes], transform: EvaluationTransform
) -> np.ndarray:
    """Crops of encoded images."""
    return np.stack([transform(decode(content)) for content in photographs])
