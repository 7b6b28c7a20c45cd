"""MXNet's ImageRecordIter, which decodes and augments in C++."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from typing import Any, Iterator

# Without gluon_resnest, which leaves this thread one thread of OpenMP.
import mxnet as mx
import pipeline_calls
from contestant import Prepared

_CROP = {"shuffle": True, "rand_mirror": True, "random_resized_crop": True,
         "min_random_area": 0.08, "max_random_area": 1.0,
         "min_aspect_ratio": 3 / 4, "max_aspect_ratio": 4 / 3}
# It has no AutoAugment.
_COLOR = {**dict.fromkeys(("brightness", "contrast", "saturation"), pipeline_calls.JITTER),
          "pca_noise": pipeline_calls.LIGHTING}


def prepare(task: dict[str, Any]) -> Prepared:
    """``dtype``: "float32" or "uint8"; ``ctx``: "gpu", its default, or "cpu".

    Nothing is normalised. With "gpu" its threads prepare batches ahead, but are at most half as
    many as there are processors; with "cpu" OpenMP's threads make a batch when it is asked for.
    """
    facts = {"versions": {"python": platform.python_version(), "mxnet": mx.__version__},
             "decoding_threads": _decoding_threads(task)}
    return pipeline_calls.prepared(lambda: _epoch(task), facts)


def _epoch(task: dict[str, Any]) -> Iterator[int]:
    # A new iterator: an old one that is reset would begin where it filled up its last batch.
    for batch in _iterator(task):
        batch.data[0].wait_to_read()
        yield task["batch_size"] - batch.pad


def _iterator(task: dict[str, Any], verbose: bool = False) -> mx.io.DataIter:
    side = task["input_size"]
    augmentation = {"crop": _CROP, "recipe": {**_CROP, **_COLOR},
                    "evaluation": {"resize": pipeline_calls.resized_side(side)}}
    return mx.io.ImageRecordIter(
        path_imgrec=task["records"], path_imgidx=os.path.splitext(task["records"])[0] + ".idx",
        data_shape=(3, side, side), batch_size=task["batch_size"],
        dtype=task["dtype"], ctx=task["ctx"], preprocess_threads=task["threads"], verbose=verbose,
        inter_method=2 if pipeline_calls.is_bicubic(side) else 1,
        **augmentation[task["augmentation"]])


def _decoding_threads(task: dict[str, Any]) -> int | None:
    """Threads that it really takes, which it tells its log alone; None where it does not."""
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            _iterator(task, verbose=True)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        said = re.search(rb"use (\d+) threads", log.read())
    return int(said.group(1)) if said else None
