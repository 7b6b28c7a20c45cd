"""Photograph-like JPEGs in a record file, made once: what input pipelines are timed on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from gluon_resnest import runtime
from gluon_resnest.atomic import replacing
from gluon_resnest.data.images.made_photographs import photographs
from gluon_resnest.progress_bar import progress_bar

# In the files' names: with any change of the pictures comes another number, and other files.
VERSION = 1
COUNT = 1024
CLASSES = 1000


def record_file(count: int = COUNT, seed: int = 0) -> Path:
    """The `.rec` of `count` pictures in the cache folder, with its `.idx`; made where it is not."""
    folder = runtime.cache_folder() / "photographs"
    path = folder / f"version{VERSION}-seed{seed}-{count}.rec"
    if not (path.is_file() and path.with_suffix(".idx").is_file()):
        _write(path, count, seed)
    return path


def _write(path: Path, count: int, seed: int) -> None:
    from mxnet import recordio  # behind gluon_resnest, which prepares for it

    with ExitStack() as files:
        index, records = (files.enter_context(replacing(name))
                          for name in (path.with_suffix(".idx"), path))
        writer = recordio.MXIndexedRecordIO(str(index), str(records), "w")
        files.callback(writer.close)  # before the files get their names
        encoded = progress_bar(photographs(count, seed), total=count, unit="image",
                               desc="making photographs, once")
        for key, payload in enumerate(encoded):
            header = recordio.IRHeader(0, float(key % CLASSES), key, 0)
            writer.write_idx(key, recordio.pack(header, payload))
