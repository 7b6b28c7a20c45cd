"""The loaders of gluon_resnest, or its decoder alone."""

from __future__ import annotations

import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

# First: it prepares NumPy and the number of threads before MXNet is imported.
import gluon_resnest

# isort: split
import cv2
import numpy as np
import pipeline_calls
from contestant import Prepared, Refused

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks/ is not installed

from benchmarks.our_pipeline import epoch_starter, transform_of
from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.errors import InputError


def prepare(task: dict[str, Any]) -> Prepared:
    """``part``: "pipeline" or "decode"; ``classes``: labels are 0 to ``classes`` - 1."""
    start = {"pipeline": _pipeline, "decode": _decoder}[task["part"]](task)
    return pipeline_calls.prepared(lambda: _epoch(start), {"versions": _versions()})


def _epoch(start: Callable[[], Iterable[int]]) -> Iterator[int]:
    try:
        yield from start()
    except InputError as error:  # such as an image that cannot be decoded
        raise Refused(str(error)) from error


def _pipeline(task: dict[str, Any]) -> Callable[[], Iterable[int]]:
    start_epoch = epoch_starter(
        RecordFile(task["records"]), transform_of(task["augmentation"], task["input_size"]),
        task["batch_size"], task["classes"], task["threads"])
    return lambda: (len(batch.labels) for batch in start_epoch())


def _decoder(task: dict[str, Any]) -> Callable[[], Iterable[int]]:
    records, threads = RecordFile(task["records"]), task["threads"]
    cv2.setNumThreads(0)  # the threads are ours
    pool = ThreadPoolExecutor(threads)

    def decode_every(first: int) -> int:
        positions = range(first, len(records), threads)
        for position in positions:
            decode(records.read(position).payload)
        return len(positions)

    return lambda: pool.map(decode_every, range(threads))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "gluon_resnest": gluon_resnest.__version__,
                "numpy": np.__version__, "opencv": cv2.__version__}
    for module, package in (("simplejpeg", "simplejpeg"), ("PIL", "Pillow")):
        if module in sys.modules:
            versions[package] = metadata.version(package)
    return versions
