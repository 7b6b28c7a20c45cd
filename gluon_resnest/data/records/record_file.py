"""Random access to the images of a RecordIO file: position -> (key, label, the image's bytes).

A file that was copied badly can still be used: it opens, and a record that is damaged or cut is an
error when that record is read. The format is described in :mod:`.recordio`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest.data.records.index import read_index, rebuild_index
from gluon_resnest.data.records.recordio import (
    HEADERS,
    PART_HEADER,
    PART_WHOLE,
    REMEDY,
    RecordDamage,
    check_flag,
    open_file,
    parse_image,
    read_headers,
    read_record,
)
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_lines

# Records whose headers are looked at before an index is believed.
_PROBES = 16

# The index tells where the next record begins. What is read of one that ends farther away is
# limited, because an index may list a few records of many; a longer record is read in two steps.
_LONGEST_GUESS = 1 << 20


class Record(NamedTuple):
    """One image as it lies in the file.

    Attributes
    ----------
    key
        Its key in the index.
    label
        Its label.
    payload
        Its encoded bytes: a view of what was read, which `np.frombuffer` takes without a copy.
    """

    key: int
    label: float
    payload: memoryview


class BadRecord(InputError):
    """One record of a file cannot be used; the others can.

    Attributes
    ----------
    position, key
        Its place in the index, and its key there.
    reason
        What is wrong, as a sentence goes on that begins with the record: "is damaged: ...",
        "is no image: ...", in one line without the file's path.
    """

    def __init__(self, path: Path, position: int, key: int, offset: int, reason: str) -> None:
        super().__init__(
            f"record {key} of {path} (position {position}, byte {offset}) {reason}; copy the file "
            f"and its .idx again or {REMEDY} (its --verify lists all bad records)"
        )
        self.position, self.key, self.reason = position, key, reason
        self._arguments = (path, position, key, offset, reason)

    def __reduce__(self) -> tuple:
        return type(self), self._arguments

    def to_keep(self) -> BadRecord:
        """The same without the frames it was raised in, which hold images and whole batches."""
        return type(self)(*self._arguments)


class RecordFile:
    """The records of a `.rec` file, by position in its index.

    Reading is `pread` on one descriptor: any number of threads may read at once, a forked process
    may go on reading, and a pickled object opens the file anew.

    Parameters
    ----------
    path
        The `.rec` file.
    index
        Its `.idx` file; by default the one beside it with the same name. If that is missing, it
        is rebuilt from the record file and written there if it can be.

    Attributes
    ----------
    path, index
        The two files.
    unreachable
        Positions of records that lie beyond the end of the file or where none can begin, int64 of
        shape (bad,). Others may turn out bad when they are read.
    gaps
        (offset, bytes) of places in a file without an index where records may have been lost.

    Raises
    ------
    InputError
        A file is missing or empty, the index is malformed or belongs to another `.rec`, or most
        of the records that were looked at are damaged.
    """

    def __init__(self, path: str | Path, index: str | Path | None = None) -> None:
        self.path = Path(path)
        self.index = Path(index) if index is not None else self.path.with_suffix(".idx")
        self._descriptor = -1
        self._open()
        try:
            if index is None and not self.index.exists():
                self._keys, self._offsets, self.gaps = rebuild_index(
                    self.path, self._descriptor, self._size, self.index)
            else:
                (self._keys, self._offsets), self.gaps = read_index(self.index), []
            reachable = reachable_records(self._offsets, self._size)
            self.unreachable = np.flatnonzero(~reachable)
            self._spans = record_spans(self._offsets, reachable, self._size)
            self._refuse_hopeless(np.flatnonzero(reachable))
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._descriptor, self._size = open_file(self.path)

    def _refuse_hopeless(self, reachable: np.ndarray) -> None:
        """Look at the headers of a few records: cheap, and before training."""
        if not len(reachable):
            raise InputError(
                f"none of the {len(self):,} records in index {self.index} lies within "
                f"{self.path} ({self._size:,} bytes): the record file was cut or the index "
                f"belongs to another one; copy both again or {REMEDY}"
            )
        places = np.linspace(0, len(reachable) - 1, min(_PROBES, len(reachable))).astype(int)
        bad = []
        for position in reachable[places].tolist():
            try:
                kind, _, flag, _ = read_headers(self._descriptor, int(self._offsets[position]))
                if kind == PART_WHOLE:
                    check_flag(flag)
            except RecordDamage as damage:
                bad.append((position, damage))
        if 2 * len(bad) > len(places):
            position, damage = bad[0]
            raise InputError(
                f"{len(bad)} of {len(places)} records looked at cannot be used: record "
                f"{self.key(position)} of {self.path} (byte {self._offsets[position]}) {damage}; "
                f"if {self.index} belongs to another file or one is damaged, copy both again, "
                f"else {REMEDY}"
            )

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
        BadRecord
            The record is damaged or cut, or carries several labels.
        """
        try:
            content, _ = read_record(
                self._descriptor, int(self._offsets[position]), int(self._spans[position]))
            label, payload = parse_image(content)
        except RecordDamage as damage:
            raise self.bad(position, str(damage)) from None
        return Record(int(self._keys[position]), label, payload)

    def bad(self, position: int, reason: str) -> BadRecord:
        """The error for a record that cannot be used for a reason that shows only later on.

        Parameters
        ----------
        position
            Place in the index.
        reason
            As in :class:`BadRecord`; line breaks become spaces.
        """
        return BadRecord(self.path, position, self.key(position), int(self._offsets[position]),
                         " ".join(reason.split()))

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, as :func:`read_class_names` finds them."""
        return read_class_names(self.path)

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


def reachable_records(offsets: np.ndarray, size: int) -> np.ndarray:
    """Whether a record can begin at each of `offsets`, in a file of `size` bytes; bool."""
    return (offsets % 4 == 0) & (offsets + PART_HEADER.size <= size)


def record_spans(offsets: np.ndarray, reachable: np.ndarray, size: int) -> np.ndarray:
    """Bytes to read at each of `offsets`: up to the next one or the end of the file; uint32."""
    starts = np.unique(offsets[reachable])
    ends = np.append(starts, max(size, HEADERS))[np.searchsorted(starts, offsets, side="right")]
    # What is not reachable may lie behind all ends.
    return np.clip(ends - offsets, HEADERS, _LONGEST_GUESS).astype(np.uint32)


def read_class_names(path: Path) -> list[str] | None:
    """Names of the classes of a `.rec` file, in the order of their labels; None without a list.

    The list is the file `PREFIX.classes.txt` beside `PREFIX.rec`, one name a line.
    """
    path = path.with_suffix(".classes.txt")
    if not path.is_file():
        return None
    names = read_lines(path, "class list")
    if not names or not all(name.strip() for name in names):
        raise InputError(
            f"class list {path} has an empty line; give it one name a line, in the order of "
            "the labels, or remove it"
        )
    return names
