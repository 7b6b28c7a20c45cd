"""Random access to the images of a RecordIO file: position -> (key, label, the image's bytes).

The format is MXNet's. A `.rec` file is a row of records, each aligned to 4 bytes:

    magic 0xced7230a | uint32 (kind << 29 | length) | `length` bytes | padding to 4 bytes

`kind` is 0 for a whole record. A record whose content holds the magic number at a multiple of 4
is cut there into parts (kind 1 first, 2 middle, 3 last) and the magic itself is left out, so that
a reader can find the next record anywhere. An image record's content is

    uint32 flag | float32 label | uint64 key | uint64 (unused) | flag x float32 labels | image

where a `flag` above 0 means that the labels follow in an array (`im2rec --pack-label`). The `.idx`
beside it has one line a record: `key <tab> offset`.
"""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest.errors import InputError

MAGIC = 0xCED7230A
LENGTH_BITS = 29
PART_WHOLE, PART_FIRST, PART_MIDDLE, PART_LAST = range(4)

PART_HEADER = struct.Struct("<II")
IMAGE_HEADER = struct.Struct("<IfQQ")

_REMEDY = "pack the images again with scripts/pack_records.py"


class Record(NamedTuple):
    """One image as it lies in the file: its key in the index, its label and its encoded bytes."""

    key: int
    label: float
    payload: bytes


class RecordFile:
    """The records of a `.rec` file, by position in its index.

    Reading is `pread` on one descriptor: any number of threads may read at once, a forked process
    may go on reading, and a pickled object opens the file anew.

    Parameters
    ----------
    path
        The `.rec` file.
    index
        Its `.idx` file; by default the one beside it with the same name.

    Raises
    ------
    InputError
        A file is missing or empty, or the index is malformed or belongs to another `.rec`.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None) -> None:
        self.path = Path(path)
        self.index = Path(index) if index is not None else self.path.with_suffix(".idx")
        self._descriptor = -1
        self._open()
        try:
            self._keys, self._offsets = _read_index(self.index)
            self._check_index()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if not self.path.is_file():
            raise InputError(f"record file {self.path} does not exist; {_REMEDY}")
        try:
            self._descriptor = os.open(str(self.path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise InputError(f"cannot read record file {self.path}: {error.strerror}") from None
        self._size = os.fstat(self._descriptor).st_size

    def _check_index(self) -> None:
        """Find the faults that show without reading the records: cheap, and before training."""
        if self._size == 0:
            raise InputError(f"record file {self.path} is empty; {_REMEDY}")
        if self._size % 4:
            raise InputError(
                f"record file {self.path} has {self._size} bytes, not a multiple of 4: it was cut "
                f"or is not RecordIO; copy it again or {_REMEDY}"
            )
        wrong = (self._offsets < 0) | (self._offsets % 4 != 0)
        wrong |= self._offsets + PART_HEADER.size > self._size
        if wrong.any():
            line = int(np.argmax(wrong))
            raise InputError(
                f"index {self.index}, line {line + 1}: offset {self._offsets[line]} is no place of "
                f"a record in {self.path} ({self._size} bytes): the record file was cut or the "
                f"index belongs to another one; copy both again or {_REMEDY}"
            )
        # Two reads tell a file that was cut, that is no RecordIO or that has another index.
        self.read(0)
        self.read(int(np.argmax(self._offsets)))

    def __len__(self) -> int:
        return len(self._offsets)

    def key(self, position: int) -> int:
        """Key that the index gives to a position; no read of the record file."""
        return int(self._keys[position])

    def read(self, position: int) -> Record:
        """Read one record.

        Parameters
        ----------
        position
            Place in the index, 0 to `len(self) - 1`.

        Raises
        ------
        InputError
            The record is damaged or cut, or carries several labels. The message names key and file.
        """
        offset = int(self._offsets[position])
        key = int(self._keys[position])
        content = self._read_content(offset, key)
        if len(content) < IMAGE_HEADER.size:
            raise self._damaged(key, offset, f"{len(content)} bytes are too few for its header")
        flag, label, _, _ = IMAGE_HEADER.unpack_from(content)
        start = IMAGE_HEADER.size
        if flag > 1:
            raise InputError(
                f"record {key} of {self.path} has {flag} labels; classification takes one an "
                f"image: make the .lst with one label column and pack it again"
            )
        if flag == 1:
            if len(content) < start + 4:
                raise self._damaged(key, offset, "it ends within its label")
            (label,) = struct.unpack_from("<f", content, start)
            start += 4
        return Record(key, label, content[start:])

    def _read_content(self, offset: int, key: int) -> bytes:
        """Join the parts of the record at `offset`; the magic that cut them apart goes between."""
        kind, content, offset = self._read_part(offset, key)
        if kind == PART_WHOLE:
            return content
        if kind != PART_FIRST:
            raise self._damaged(key, offset, "the index points into the middle of a record")
        parts = [content]
        while kind != PART_LAST:
            kind, content, offset = self._read_part(offset, key)
            if kind not in (PART_MIDDLE, PART_LAST):
                raise self._damaged(key, offset, "its last part is missing")
            parts.append(content)
        return struct.pack("<I", MAGIC).join(parts)

    def _read_part(self, offset: int, key: int) -> tuple[int, bytes, int]:
        """Kind and content of the part at `offset`, and the offset of the part behind it."""
        header = os.pread(self._descriptor, PART_HEADER.size, offset)
        if len(header) < PART_HEADER.size:
            raise self._damaged(key, offset, "the file ends before it")
        magic, kind_and_length = PART_HEADER.unpack(header)
        if magic != MAGIC:
            raise self._damaged(key, offset, f"magic number {magic:#010x} instead of {MAGIC:#010x}")
        kind, length = kind_and_length >> LENGTH_BITS, kind_and_length & ((1 << LENGTH_BITS) - 1)
        offset += PART_HEADER.size
        content = os.pread(self._descriptor, length, offset)
        if len(content) < length:
            raise self._damaged(key, offset, f"the file ends {length - len(content)} bytes early")
        return kind, content, offset + (length + 3) // 4 * 4

    def _damaged(self, key: int, offset: int, reason: str) -> InputError:
        return InputError(
            f"record {key} of {self.path} (byte {offset}) is damaged: {reason}; copy the file and "
            f"its .idx again or {_REMEDY}"
        )

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in the order of their labels; None without a class list.

        The list is the file `PREFIX.classes.txt` beside `PREFIX.rec`, one name a line.
        """
        path = self.path.with_suffix(".classes.txt")
        if not path.is_file():
            return None
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read class list {path} as UTF-8 text ({error})") from None
        if not names or not all(name.strip() for name in names):
            raise InputError(
                f"class list {path} has an empty line; give it one name a line, in the order of "
                "the labels, or remove it"
            )
        return names

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_descriptor": -1}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an `.idx` file, each int64 of shape (records,)."""
    if not path.is_file():
        raise InputError(
            f"index {path} does not exist; it must lie beside the .rec file or be named with its "
            f"flag: copy it there or {_REMEDY}"
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read index {path}: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"index {path} is empty; copy it again or {_REMEDY}")
    try:
        with warnings.catch_warnings():
            # NumPy only warns where the text is no number, and parses a million lines in 0.1 s.
            warnings.simplefilter("error", DeprecationWarning)
            numbers = np.fromstring(text, dtype=np.int64, sep=" ")
    except (DeprecationWarning, ValueError):
        raise _malformed_index(path, text) from None
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    if len(numbers) != 2 * lines or text.count(b"\t") != lines:
        raise _malformed_index(path, text)
    return numbers[0::2].copy(), numbers[1::2].copy()


def _malformed_index(path: Path, text: bytes) -> InputError:
    """Name the first line that is not `key <tab> offset`."""
    place = ""
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(field.strip().isdigit() for field in fields):
            place = f", line {number}: {line[:60].decode('utf-8', 'replace')!r}"
            break
    return InputError(
        f"index {path}{place} is not 'key <tab> offset' in each line; copy it again or {_REMEDY}"
    )
