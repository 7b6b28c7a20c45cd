"""PyTorch state dicts, read and written without PyTorch, and the names in them.

Layout: the sources of ``torch.save`` and ``torch.load``, and the safetensors format description.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.models.weights.torch_pickle import (
    BFLOAT16,
    MOST_DIMENSIONS,
    STORAGES,
    Storage,
    read_legacy,
    read_zip,
    shown_name,
)

_SAFETENSORS = {
    "F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4",
}
# The header of resnest269 has 0.2 MB; lists in lists take fifty times the memory of their text.
_LARGEST_JSON = 4 << 20
_MOST_DIGITS = 18
_LONGEST_REASON = 300
_ZIP_START = b"PK\x03\x04"
_COUNTER = "num_batches_tracked"


def recognises(start: bytes) -> bool:
    """Whether a file that begins with `start` (16 bytes) is for :func:`read_state_dict`."""
    return start.startswith((_ZIP_START, pickle.PROTO)) or start[8:9] == b"{"


def torch_name(key: str) -> str:
    """Name in PyTorch of one of Gluon's keys; timm and the ResNeSt repository name alike.

    A batch normalisation has `weight` and `bias` for `gamma` and `beta`, and that behind the
    split convolution is called `bn0`. Arrays are the same on both sides, none is transposed.
    """
    module, _, kind = key.rpartition(".")
    if module.endswith("conv2.bn"):
        module += "0"
    kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
    return f"{module}.{kind}"


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name of a ``.pth``, ``.pt`` or ``.safetensors`` file.

    A checkpoint's ``state_dict`` is looked for, the prefix ``module.`` of a parallel model is
    taken off, and counters of batches, which MXNet has not, are left out.

    Raises
    ------
    InputError
        If the file is damaged, or holds anything but tensors, dictionaries and plain values.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(16)
        file.seek(0)
        try:
            if start.startswith(_ZIP_START):
                arrays = read_zip(path)
            elif start.startswith(pickle.PROTO):
                arrays = read_legacy(file, path)
            else:
                arrays = _read_safetensors(file)
        except InputError:
            raise
        except Exception as error:
            # Unpickling bytes that are no pickle raises whatever the bytes lead to.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            raise InputError(
                f"{path} is not a PyTorch state dict, or is damaged ({reason})") from None
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name[len("module."):]: array for name, array in arrays.items()}
    return {name: array for name, array in arrays.items() if not name.endswith(_COUNTER)}


def write_state_dict(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays under Gluon's keys as the file that `torch.save` makes of a state dict.

    ``torch.load(path, weights_only=True)`` reads it. Equal arrays make equal bytes.
    """
    tensors: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        tensors[torch_name(key)] = np.ascontiguousarray(array, dtype="<f4")
        if key.endswith(".running_var"):
            counter = torch_name(key).replace("running_var", _COUNTER)
            tensors[counter] = np.zeros((), dtype="<i8")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def put(name: str, content: str | bytes) -> None:
            # A ZipInfo of its own: writestr() with a plain name would store the time of day.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)

        put("data.pkl", _pickled(tensors))
        put("byteorder", "little")
        for number, array in enumerate(tensors.values()):
            put(f"data/{number}", array.tobytes())
        put("version", "3\n")


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_JSON:
        raise ValueError(f"header of {length:,} bytes")
    header = json.loads(file.read(length), parse_int=_integer)
    header.pop("__metadata__", None)
    body = file.tell()
    size = file.seek(0, os.SEEK_END) - body
    places = sorted((*_place(name, entry, size), name) for name, entry in header.items())
    # Tensors that share bytes could take any memory, however small the file.
    for (_, end, one), (start, _, other) in zip(places, places[1:]):
        if start < end:
            raise ValueError(f"{shown_name(one)} and {shown_name(other)} lie on the same bytes")
    arrays = {}
    for first, last, name in places:
        shape = tuple(header[name]["shape"])
        storage = Storage(shown_name(name), _SAFETENSORS[header[name]["dtype"]], math.prod(shape))
        if storage.nbytes != last - first:
            raise ValueError(f"{shown_name(name)} has {last - first} of {storage.nbytes} bytes")
        file.seek(body + first)
        arrays[name] = storage.values(file.read(last - first)).reshape(shape)
    return arrays


def _place(name: str, entry: Any, size: int) -> tuple[int, int]:
    """First byte and end of a tensor in a body of `size` bytes, once its entry has been checked."""
    (first, last), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if type(dtype) is not str or dtype not in _SAFETENSORS:
        raise ValueError(f"{shown_name(name)} is of {shown_name(dtype)}, not of "
                         f"{', '.join(_SAFETENSORS)}")
    if type(shape) is not list or len(shape) > MOST_DIMENSIONS or not all(
            type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"{shown_name(name)} has no shape or place")
    if not first <= last <= size:
        raise ValueError(f"{shown_name(name)} lies outside of the file")
    return first, last


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors, storage i belonging to tensor i.

    Opcode by opcode: the pickle module would want to import the torch that it names.
    """
    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode("ascii")

    def integer(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def integers(values: Iterable[int]) -> bytes:
        return sequence(*map(integer, values))

    def sequence(*parts: bytes) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    def function(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    empty = function("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    kinds = {dtype: name for name, dtype in STORAGES.items()}
    parts = [pickle.PROTO + b"\x02", empty, pickle.MARK]
    for number, (name, array) in enumerate(tensors.items()):
        kind = function("torch", kinds[array.dtype.str])
        storage = sequence(text("storage"), kind, text(str(number)), text("cpu"),
                           integer(array.size)) + pickle.BINPERSID
        strides = (stride // array.itemsize for stride in array.strides)
        parts += [
            text(name),
            function("torch._utils", "_rebuild_tensor_v2"),
            sequence(storage, integer(0), integers(array.shape), integers(strides),
                     pickle.NEWFALSE, empty),
            pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])
