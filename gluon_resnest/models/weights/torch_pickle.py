"""Tensors in the pickles that PyTorch writes, read without running what a pickle asks for.

A pickle may call any function when it is loaded. Here it may use the opcodes that `torch.save`
uses and name four things: what makes a tensor, a parameter or a dictionary, and the types of
storages, which become strings. Layout: the source of ``torch.save`` and ``torch.load``.
"""

from __future__ import annotations

import collections
import inspect
import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from gluon_resnest.errors import InputError

# NumPy has no bfloat16: its 16 bits are the upper half of a float32.
BFLOAT16 = "bfloat16"
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16, "LongStorage": "<i8", "IntStorage": "<i4",
}
# The names and shapes of resnest269 take 0.3 MB and some 30,000 places of the pickle's memo.
LARGEST_HEADER = 32 << 20
_LARGEST_MEMO = 1 << 22
# resnest269's state dict has some 70,000. Each may leave an object behind, of a hundred bytes.
_MOST_OPCODES = 1_000_000
_LONGEST_SHOWN = 80  # characters of a name in an error
# Tensors may share values, or repeat one: many times what a file holds is no network.
_MOST_REPEATED, _SMALL = 4, 64 << 20
MOST_DIMENSIONS = 32  # NumPy's limit
_OPCODES = frozenset(
    "PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 "
    "LONG1 BINFLOAT BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT".split())
_MAKERS = {
    "collections OrderedDict": lambda: collections.OrderedDict(),
    "torch._utils _rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Tensor(
        storage, offset, shape, strides),
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    **{f"torch {kind}": kind for kind in STORAGES},
}
# A file began with this number before PyTorch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Where training programs keep the weights inside of their checkpoints.
_NESTED = ("state_dict", "model")


class Storage(NamedTuple):
    """Values of one or more tensors in a file: `dtype` as NumPy writes it, or bfloat16."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * (2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize)

    def values(self, content: bytes) -> np.ndarray:
        """(numel,) of its bytes; bfloat16 as float32."""
        if len(content) != self.nbytes:
            raise ValueError(f"storage {self.key} has {len(content)} of {self.nbytes} bytes")
        if self.dtype == BFLOAT16:
            return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
        return np.frombuffer(content, self.dtype)


class _Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, values: np.ndarray) -> np.ndarray:
        """A view on the storage's values, after making sure that it stays inside."""
        if type(self.shape) is not tuple or type(self.strides) is not tuple or not (
                len(self.shape) == len(self.strides) <= MOST_DIMENSIONS):
            raise ValueError("a tensor has no shape, or other strides")
        numbers = (self.offset, *self.shape, *self.strides)
        # No word about what they are instead: it may be of any size.
        if not all(type(number) is int and -1 << 63 <= number < 1 << 63 for number in numbers):
            raise ValueError("a tensor has an offset, a shape or strides that are no numbers")
        if min(numbers) < 0:
            raise ValueError(f"a tensor of shape {self.shape} and strides {self.strides}")
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        last = self.offset + sum((size - 1) * stride
                                 for size, stride in zip(self.shape, self.strides))
        if last >= len(values):
            raise ValueError(f"a tensor ends at {last} in a storage of {len(values)} values")
        return np.lib.stride_tricks.as_strided(
            values[self.offset:], self.shape,
            [stride * values.itemsize for stride in self.strides], writeable=False)


def read_zip(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name of a file that PyTorch 1.6 or later wrote."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            held = ", ".join(map(shown_name, names[:3])) or "nothing"
            raise InputError(f"{path} is a zip archive of {held}, not of PyTorch weights: unpack "
                             "it and give the file in it")
        root = pickles[0][: -len("data.pkl")]

        def member(name: str, largest: int) -> bytes:
            info = archive.getinfo(root + name)
            # PyTorch never compresses, so a member is no larger than the file says.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > largest:
                raise ValueError(f"{name} is compressed or too large")
            return archive.read(info)

        if f"{root}byteorder" in names and member("byteorder", 8) != b"little":
            raise InputError(f"{path} was written on a big-endian machine: save it on another")
        unpickler = _Unpickler(io.BytesIO(member("data.pkl", LARGEST_HEADER)), path)
        tree = unpickler.load()
        _check_sizes(unpickler.storages, path)
        data = {key: storage.values(member(f"data/{key}", storage.nbytes))
                for key, storage in unpickler.storages.items()}
    return _arrays(tree, data, path)


def read_legacy(file: BinaryIO, path: Path) -> dict[str, np.ndarray]:
    """Tensors by name of an older file: pickles one behind the other, then the storages."""
    if _Unpickler(file, path).load() != _LEGACY_MAGIC:
        raise InputError(f"{path} is a pickle, not a state dict that torch.save wrote")
    _Unpickler(file, path).load()  # version of the protocol
    _Unpickler(file, path).load()  # sizes of integers on the machine that wrote it
    unpickler = _Unpickler(file, path)
    tree = unpickler.load()
    _check_sizes(unpickler.storages, path)
    data = {}
    for key in _Unpickler(file, path).load():
        if type(key) is not str or key not in unpickler.storages:
            raise ValueError("a storage that no tensor names")
        numel, storage = int.from_bytes(file.read(8), "little"), unpickler.storages[key]
        if numel != storage.numel:
            raise ValueError(f"storage {key} has {numel} of {storage.numel} values")
        data[key] = storage.values(file.read(storage.nbytes))
    return _arrays(tree, data, path)


def _check_sizes(storages: dict[str, Storage], path: Path) -> None:
    """Refuse storages that cannot all be in the file: parts of an archive may overlap."""
    size, held = sum(storage.nbytes for storage in storages.values()), path.stat().st_size
    if size > held:
        raise ValueError(f"storages of {size:,} bytes in a file of {held:,}")


class _Unpickler(pickle._Unpickler):
    """Loads the next pickle of a file, once all of it has been found harmless.

    In Python, as the one in C cannot be told which keys a dictionary may have: to hash a tuple of
    tuples that occur many times in each other may take for ever.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._file, self._path = file, path
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        start = self._file.tell()
        head = io.BytesIO(self._file.read(LARGEST_HEADER))
        for number, (opcode, value, _) in enumerate(pickletools.genops(head)):
            if number == _MOST_OPCODES:
                raise ValueError(f"its pickle has more than {_MOST_OPCODES:,} opcodes")
            if opcode.name == "GLOBAL":
                self._check_global(value)
            # Python would make room for all places below the one that is named.
            elif opcode.name not in _OPCODES or (
                    opcode.name == "LONG_BINPUT" and value > _LARGEST_MEMO):
                raise ValueError(f"pickle opcode {opcode.name}")
        self._file.seek(start)
        return super().load()

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        self._check_global(f"{module} {name}")
        maker = _MAKERS[f"{module} {name}"]
        # A new function each time: BUILD can set attributes of what it is given.
        return (lambda *args: maker(*args)) if inspect.isfunction(maker) else maker

    def _check_global(self, name: str) -> None:
        if name not in _MAKERS:
            raise InputError(
                f"{self._path} wants to load {shown_name(name.replace(' ', '.'))}, which weights "
                "do not need and is never run here; in PyTorch, if you trust the file, save its "
                "tensors alone: torch.save(model.state_dict(), 'weights.pth')"
            )

    def persistent_load(self, pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) < 5:
            raise ValueError("a storage has no description")
        word, kind, key, _, numel, *view = pid
        if not (type(word) is type(kind) is type(key) is str and type(numel) is int) or (
                word != "storage" or kind not in STORAGES or not 0 <= numel < 1 << 48
                or any(part is not None for part in view)):
            raise ValueError("unknown storage")
        storage = Storage(key, STORAGES[kind], numel)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {shown_name(key)} is named with several types")
        return storage


def _check_keys(keys: Iterable[Any]) -> None:
    if not all(type(key) in (str, int) for key in keys):
        raise ValueError("a dictionary has keys that are neither text nor numbers")


def shown_name(name: Any) -> str:
    """A name from a file as an error shows it: short, and on one line."""
    text = name if isinstance(name, str) else type(name).__name__
    text = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return text if text.isprintable() else ascii(text)


def _arrays(tree: Any, data: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    for name in _NESTED:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds a {type(tree).__name__}, not a state dict")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise InputError(f"{path} is no state dict: '{shown_name(name)}' is no tensor in it; "
                             "save model.state_dict() alone")
        if not isinstance(value.storage, Storage):
            raise ValueError(f"{shown_name(name)} has no storage")
    arrays = {name: tensor.array(data[tensor.storage.key]) for name, tensor in tree.items()}
    # Views take no memory, however often they repeat a value; what is made of them does.
    size = sum(array.nbytes for array in arrays.values())
    if size > max(_SMALL, _MOST_REPEATED * path.stat().st_size):
        raise ValueError(f"tensors of {size:,} bytes in a file of {path.stat().st_size:,}")
    return arrays
