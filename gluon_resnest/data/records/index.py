"""The index of a record file, `key <tab> offset` a line: read, or rebuilt by a scan of the file."""

from __future__ import annotations

import codecs
import os
import re
import sys
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest import runtime
from gluon_resnest.atomic import replacing
from gluon_resnest.data.records.recordio import (
    HEADERS,
    IMAGE_HEADER,
    LARGEST_KEY,
    LENGTH_BITS,
    MAGIC,
    PART_FIRST,
    PART_HEADER,
    PART_WHOLE,
    REMEDY,
    RecordDamage,
    find_magic,
    locate_record,
    padded,
)
from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar

# 18 digits fit into int64, and lines that do not are refused rather than misread.
_LINE = re.compile(rb"[0-9]{1,18}\t[0-9]{1,18}")

_MOST_BYTES = 1 << 30  # of an index: 30 million records and more
_CHUNK = 1 << 20
# Without a record in its first GiB a file is none; a record's part has half of that at most.
_FIRST_RECORD = 1 << 30


class Scan(NamedTuple):
    """What a scan found in a record file.

    Attributes
    ----------
    keys, offsets
        int64 of shape (records,), in file order; a key is the id in the record's own header.
    gaps
        (offset, bytes) of each place that is no record, in file order.
    missing_padding
        Bytes that the file lacks behind the last record's content to be a multiple of 4.
    """

    keys: np.ndarray
    offsets: np.ndarray
    gaps: list[tuple[int, int]]
    missing_padding: int


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of an `.idx` file, each int64 of shape (records,).

    Raises
    ------
    InputError
        It is missing, empty, cannot be read, or has a line that is not `key <tab> offset`.
    """
    if not path.is_file():
        raise InputError(
            f"index {path} does not exist; it must lie beside the .rec file or be named with its "
            f"flag: copy it there or {REMEDY}"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"index {path} has more than {_MOST_BYTES:,} bytes, which is no index; "
                         f"copy it again, or remove it and it is rebuilt, or {REMEDY}")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read index {path}: {error.strerror}") from None
    if text.startswith(codecs.BOM_UTF8):  # saved by an editor
        text = text[len(codecs.BOM_UTF8):]
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    text = text.rstrip() + b"\n"
    if text == b"\n":
        raise InputError(
            f"index {path} is empty; copy it again, or remove it and it is rebuilt, or {REMEDY}"
        )
    if not _is_well_formed(text):
        raise _malformed(path, text)
    numbers = np.fromstring(text, dtype=np.int64, sep=" ")  # a million lines in 0.1 s
    return numbers[0::2].copy(), numbers[1::2].copy()


def _is_well_formed(text: bytes) -> bool:
    """Whether each line matches _LINE; in NumPy, since an index has a million of them."""
    characters = np.frombuffer(text, dtype=np.uint8)
    breaks = np.flatnonzero(characters < ord("0"))
    digits = np.diff(breaks, prepend=-1) - 1
    return bool(
        len(breaks) % 2 == 0
        and characters.max() <= ord("9")
        and (characters[breaks[0::2]] == ord("\t")).all()
        and (characters[breaks[1::2]] == ord("\n")).all()
        and digits.min() >= 1
        and digits.max() <= 18
    )


def _malformed(path: Path, text: bytes) -> InputError:
    number, line = next(
        (number, line) for number, line in enumerate(text.split(b"\n"), start=1)
        if not _LINE.fullmatch(line)
    )
    return InputError(
        f"index {path}, line {number}: {line[:60].decode('utf-8', 'replace')!r} is not 'key <tab> "
        f"offset'; copy it again, or remove it and it is rebuilt, or {REMEDY}"
    )


def rebuild_index(
    path: Path, descriptor: int, size: int, index: Path
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Index of a record file that has none; written to `index` if that can be.

    Ranks of one run may do this at once. Each scans for itself, with the same result; rank 0
    writes and says so. The file appears whole, so that another rank may as well read it.

    Returns
    -------
    tuple
        Keys and offsets, of damaged records too as far as they can be told, and (offset, bytes)
        of each place where they cannot. With such a place the index is not written, for it would
        pass as that of a whole file.

    Raises
    ------
    InputError
        The file holds no record.
    """
    scan = scan_records(path, descriptor, size)
    check_any(scan, path)
    keys, offsets, gaps = scan.keys, scan.offsets, []
    for offset, count in scan.gaps:
        damaged, all_told = records_in_gap(descriptor, offset, offset + count, size)
        if not all_told:
            gaps.append((offset, count))
        for key, place, _ in damaged:
            at = np.searchsorted(offsets, place)
            keys = np.insert(keys, at, min(key, LARGEST_KEY))
            offsets = np.insert(offsets, at, place)
    if runtime.launched_rank() == 0:
        _say(f"{index} was missing: {len(keys):,} records found in {path}, "
             f"{_written(index, keys, offsets, gaps)}")
    return keys, offsets, gaps


def _written(
    index: Path, keys: np.ndarray, offsets: np.ndarray, gaps: list[tuple[int, int]]
) -> str:
    """Write an index unless there are gaps; what has become of it, in words."""
    if gaps:
        return (f"warning: {named_gaps(gaps)} may hold records that are lost, so the index is "
                "kept in memory only; scripts/pack_records.py --verify says more")
    lines = map("{}\t{}\n".format, keys.tolist(), offsets.tolist())
    try:
        with replacing(index) as temporary, open(temporary, "w", encoding="ascii") as file:
            file.writelines(lines)
    except InputError as error:
        return f"index kept in memory only: {error}"
    return "index written"


def check_any(scan: Scan, path: Path) -> None:
    """Raise InputError for a file without a record."""
    if not len(scan.offsets):
        raise InputError(f"record file {path} holds no image record: it is not RecordIO or was "
                         f"damaged; copy it again or {REMEDY}")


def named_gaps(gaps: list[tuple[int, int]]) -> str:
    """The first gaps: "12 bytes at offset 340 and 8 bytes at offset 1,200 (and 3 more places)"."""
    shown = " and ".join(f"{count:,} bytes at offset {offset:,}" for offset, count in gaps[:3])
    return shown + (f" (and {len(gaps) - 3:,} more places)" if len(gaps) > 3 else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def scan_records(path: Path, descriptor: int, size: int) -> Scan:
    """Find the records of a file by their headers; the images are not read.

    Where no record follows the one before, the place is damaged, or the length of the one before
    is wrong: then another begins within it. The scan goes on at the next that can be one.
    """
    keys, offsets, gaps = array("q"), array("q"), []
    if hasattr(os, "posix_fadvise"):  # only the headers are wanted, not what follows them
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    offset = 0
    with progress_bar(total=size, desc=f"scan {path.name}", unit="B", delay=1,
                      enabled=runtime.launched_rank() == 0) as bar:
        while offset < size:
            try:
                key, end = locate_record(descriptor, offset, size)
                keys.append(key)
                offsets.append(offset)
            except RecordDamage:
                limit = size if offsets else min(size, _FIRST_RECORD)
                end = _next_record(descriptor, offsets[-1] if offsets else 0, limit, size)
                if end < offset:
                    keys.pop()
                    offset = offsets.pop()
                gaps.append((offset, end - offset))
            bar.update(end - bar.n)
            offset = end
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)
    return Scan(np.array(keys), np.array(offsets), gaps, offset - size)


def _next_record(descriptor: int, start: int, limit: int, size: int) -> int:
    """Offset of the first record that begins in (start, limit); `size` if none does."""
    for chunk_offset in range(start + 4, limit, _CHUNK):
        for place in find_magic(os.pread(descriptor, _CHUNK, chunk_offset)).tolist():
            try:
                locate_record(descriptor, chunk_offset + place, size)
            except RecordDamage:
                continue
            return chunk_offset + place
    return size


def records_in_gap(
    descriptor: int, start: int, end: int, size: int
) -> tuple[list[tuple[int, int, str]], bool]:
    """(id, offset, reason) of each damaged record in a gap that has a header to be believed.

    That is where the lengths lead from header to header to the end of the gap, or beyond the end
    of the file: then the second value is True, for there are no others. Or where the first at
    least has its magic number.
    """
    headers, offset = [], start
    while offset < end:
        chunk = os.pread(descriptor, HEADERS, offset)
        if len(chunk) < HEADERS:
            break
        magic, kind_and_length = PART_HEADER.unpack_from(chunk)
        kind, length = kind_and_length >> LENGTH_BITS, kind_and_length % (1 << LENGTH_BITS)
        if kind == PART_WHOLE and length < IMAGE_HEADER.size:
            break  # zeros, for one
        if kind in (PART_WHOLE, PART_FIRST):
            key = IMAGE_HEADER.unpack_from(chunk, PART_HEADER.size)[2]
            headers.append((key, offset, magic))
        offset += PART_HEADER.size + padded(length)
    is_cut = bool(end == size and headers and headers[-1][2] == MAGIC)
    all_told = bool(headers) and (offset == end or is_cut)
    if not all_told:
        headers = headers[:1] if headers and headers[0][1:] == (start, MAGIC) else []
    damaged = []
    for key, offset, _ in headers:
        reason = "is damaged: its length is wrong, for another record begins within it"
        try:
            locate_record(descriptor, offset, size)
        except RecordDamage as damage:
            reason = str(damage)
        damaged.append((key, offset, reason))
    return damaged, all_told
