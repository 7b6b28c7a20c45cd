"""MXNet's ``.params`` files of named arrays, written and read with NumPy alone.

A thread that writes while another trains must not call MXNet, which is made to be called by one
thread alone. So the bytes that ``mx.nd.save`` makes of a dictionary are made here, and digested on
their way to the disk.

Layout, all little-endian: the source of MXNet 1.9.1, ``src/ndarray/ndarray.cc``
(``NDArray::Save``, version 2, of shapes without NumPy semantics)::

    uint64 0x112, uint64 0
    uint64 number of arrays, then of each:
        uint32 0xf993fac9, int32 storage (0 is dense)
        int32 dimensions, int64 of each
        int32 device (1 is the CPU), int32 its number
        int32 kind of number, the numbers themselves
    uint64 number of names, then of each:
        uint64 length, UTF-8

Read, and not written, are two older forms of an array (``NDArray::LegacyLoad``), which have no
storage: 0xf993fac8 and dimensions as above; or, before MXNet 0.12, uint32 dimensions in the place
of the magic number and uint32 of each.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gluon_resnest.errors import InputError

_START = (0x112, 0)
_ARRAY_MAGIC, _OLDER_MAGIC, _NUMPY_MAGIC = 0xF993FAC9, 0xF993FAC8, 0xF993FACA
_DENSE = 0
_SPARSE = {1: "row_sparse", 2: "csr"}
_CPU = (1, 0)
_DEVICES = (1, 2, 3, 5)  # include/mxnet/base.h: CPU, GPU, pinned and shared memory
_KINDS = {name: np.dtype(name).newbyteorder("<") for name in (
    "float32", "float64", "float16", "uint8", "int32", "int8", "int64")}
_FLAGS = {dtype: flag for flag, dtype in enumerate(_KINDS.values())}  # mshadow/base.h: TypeFlag
_DTYPES = {flag: dtype for dtype, flag in _FLAGS.items()}
_MOST_DIMENSIONS = 32  # NumPy's limit
# resnest269 has 2,084 arrays, and a checkpoint a few times as many.
_MOST_ARRAYS = 100_000
_LONGEST_NAME = 4096  # bytes

# Digesting and writing let go of Python's lock, once a chunk: so large that asking for it again
# (up to 5 ms beside a thread of pure Python) does not count.
_CHUNK = 16 << 20
# Below this, an array is put together with its neighbours: a network has hundreds of tiny ones.
_SMALL = 64 << 10


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write the bytes of ``mx.nd.save(path, arrays)`` and see them onto the disk.

    Parameters
    ----------
    path
        File that is written over. If this fails or is interrupted, what is there is no use: it
        is for the caller to write where nobody looks, and to rename.
    arrays
        By name; at least one dimension each, of float16, float32, float64, int8, uint8, int32 or
        int64. They must not change meanwhile.

    Returns
    -------
    str
        SHA-256 of the file's content, in hexadecimal digits.

    Raises
    ------
    ValueError
        For arrays or names that MXNet's format cannot hold; nothing was written.
    OSError
        If the disk is full, say.
    """
    flat = {name: _contiguous(name, array) for name, array in arrays.items()}
    names = [_name_bytes(name) for name in flat]
    # Unbuffered, for a buffered file has a lock: held by a daemon thread, it could stop the
    # interpreter at its exit.
    with open(path, "wb", buffering=0) as file:
        out = _Digested(file)
        out.put(struct.pack("<QQQ", *_START, len(flat)))
        for array in flat.values():
            out.put(struct.pack(f"<Iii{array.ndim}qiii", _ARRAY_MAGIC, _DENSE, array.ndim,
                                *array.shape, *_CPU, _FLAGS[array.dtype]))
            out.put(array.reshape(-1).view(np.uint8))
        out.put(struct.pack("<Q", len(names)))
        for name in names:
            out.put(struct.pack("<Q", len(name)) + name)
        out.flush()
        os.fsync(file.fileno())
    return out.digest.hexdigest()


def read_arrays(path: str | Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by name of a file that MXNet 1.9.1 or :func:`write_arrays` wrote.

    Parameters
    ----------
    path
        File that is read as a whole.
    sha256
        Digest that its content must have, as :func:`write_arrays` returned it.

    Raises
    ------
    InputError
        If the file cannot be read, has another digest or is not of the format, in any detail.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("sha256 differs")
        return parse_arrays(content)
    except ValueError as error:
        raise InputError(f"{path} is not a .params file of MXNet 1.9 with names, or is damaged "
                         f"({error}): copy or write it again") from None


def parse_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Arrays by name in the content of a file; they share no memory with it.

    Raises
    ------
    ValueError
        With what is wrong, for whatever bytes.
    """
    source = _Source(content)
    if source.take("QQ", "its start") != _START:
        raise ValueError("it begins otherwise")
    (count,) = source.take("Q", "its start")
    if count > _MOST_ARRAYS:
        raise ValueError(f"it says it has {count:,} arrays")
    arrays = []
    while len(arrays) < count:
        arrays.append(source.array(len(arrays)))
    (named,) = source.take("Q", "its names")
    if named == 0 < count:
        raise ValueError("its arrays have no names")
    if named != count:
        raise ValueError(f"it has {count} arrays and {named} names")
    result: dict[str, np.ndarray] = {}
    for array in arrays:
        (length,) = source.take("Q", "its names")
        if length > _LONGEST_NAME:
            raise ValueError(f"it says that a name has {length:,} bytes")
        name = source.piece(length, "its names").decode("utf-8")
        if name in result:
            raise ValueError(f"it has two arrays {name!r}")
        result[name] = array
    if source.place != len(content):
        raise ValueError(f"{len(content) - source.place} bytes follow its end")
    return result


def write_all(file: BinaryIO, content: bytes | bytearray | np.ndarray) -> None:
    """Write to an unbuffered file, of which the system may take a part at a time.

    So it does before it says that a disk is full.
    """
    rest = memoryview(content)
    while len(rest):
        rest = rest[file.write(rest):]


class _Digested:
    """Where bytes go to a file and into a digest, without Python's lock if they are many."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._file = file
        self._gathered = bytearray()

    def put(self, content: bytes | np.ndarray) -> None:
        """`content`: bytes, or uint8 of shape (N,)."""
        if len(content) < _SMALL:
            self._gathered += memoryview(content)
            if len(self._gathered) >= _CHUNK:
                self.flush()
            return
        self.flush()
        for start in range(0, len(content), _CHUNK):
            self._write(content[start:start + _CHUNK])

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._write(gathered)

    def _write(self, content: bytes | bytearray | np.ndarray) -> None:
        self.digest.update(content)
        write_all(self._file, content)


class _Source:
    """Bytes from which values are taken one behind the other, never beyond the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def piece(self, size: int, what: str) -> bytes:
        start = self._pass(size, what)
        return self._content[start:self.place]

    def take(self, layout: str, what: str) -> tuple[int, ...]:
        """Values of a :mod:`struct` layout; `what` they are is for the error."""
        layout = f"<{layout}"
        return struct.unpack_from(layout, self._content,
                                  self._pass(struct.calcsize(layout), what))

    def array(self, number: int) -> np.ndarray:
        what = f"array {number}"
        shape = self._shape(what)
        device, _, flag = self.take("iii", what)  # the device it was on; here it has none
        if min(shape) < 0 or device not in _DEVICES or flag not in _DTYPES:
            raise ValueError(f"{what} has shape {shape}, device {device}, kind {flag}")
        dtype, size = _DTYPES[flag], math.prod(shape)
        start = self._pass(size * dtype.itemsize, what)
        # A copy, since MXNet wants aligned memory and nothing in the file is aligned.
        return np.frombuffer(self._content, dtype, size, start).reshape(shape).copy()

    def _shape(self, what: str) -> tuple[int, ...]:
        (magic,) = self.take("I", what)
        if magic == _ARRAY_MAGIC:
            (storage,) = self.take("i", what)
            if storage in _SPARSE:
                raise ValueError(f"{what} is sparse ({_SPARSE[storage]}); save it as "
                                 "array.tostype('default')")
            if storage != _DENSE:
                raise ValueError(f"{what} has storage {storage}")
        elif magic == _NUMPY_MAGIC:
            raise ValueError(f"{what} was saved under mx.util.np_shape, MXNet's NumPy shapes; save "
                             "it without")
        if magic in (_ARRAY_MAGIC, _OLDER_MAGIC):
            (dimensions,), size = self.take("i", what), "q"
        elif magic <= _MOST_DIMENSIONS:
            dimensions, size = magic, "I"
        else:
            raise ValueError(f"{what} begins with {magic:#010x} instead of {_ARRAY_MAGIC:#010x}")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise ValueError(f"{what} has {dimensions} dimensions")
        return self.take(f"{dimensions}{size}", what)

    def _pass(self, size: int, what: str) -> int:
        start = self.place
        if size > len(self._content) - start:
            raise ValueError(f"it ends within {what}")
        self.place += size
        return start


def _contiguous(name: str, array: np.ndarray) -> np.ndarray:
    """The array as it goes into the file: itself, if it is laid out so already."""
    kind = np.asarray(array).dtype.name
    if kind not in _KINDS:
        raise ValueError(f"{name} is of {kind}: MXNet's files hold {', '.join(_KINDS)}")
    if not 1 <= np.ndim(array) <= _MOST_DIMENSIONS:
        raise ValueError(f"{name} has {np.ndim(array)} dimensions: MXNet's files hold arrays of 1 "
                         f"to {_MOST_DIMENSIONS}; give it the shape (1,)")
    return np.ascontiguousarray(array, dtype=_KINDS[kind])


def _name_bytes(name: str) -> bytes:
    if "\0" in name:
        raise ValueError(f"{name!r} holds a zero byte, at which MXNet would cut it")
    return name.encode("utf-8")
