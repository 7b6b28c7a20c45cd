"""MXNet's RecordIO format: how the records of a `.rec` file lie in it, and what an image's holds.

A `.rec` file is a row of records, each aligned to 4 bytes:

    magic 0xced7230a | uint32 (kind << 29 | length) | `length` bytes | padding to 4 bytes

`kind` is 0 for a whole record. A record whose content holds the magic number at a multiple of 4
is cut there into parts (kind 1 first, 2 middle, 3 last) and the magic itself is left out, so that
a reader can find the next record anywhere. An image record's content is

    uint32 flag | float32 label | uint64 id | uint64 (unused) | flag x float32 labels | image

where a `flag` above 0 means that the labels follow in an array (`im2rec --pack-label`). The `.idx`
beside it has one line a record: `key <tab> offset`, where the key is the id.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import numpy as np

from gluon_resnest.data.images.image_limits import MOST_BYTES
from gluon_resnest.errors import InputError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
PART_WHOLE, PART_FIRST, PART_MIDDLE, PART_LAST = range(4)

PART_HEADER = struct.Struct("<II")
IMAGE_HEADER = struct.Struct("<IfQQ")
HEADERS = PART_HEADER.size + IMAGE_HEADER.size

LARGEST_KEY = 10**18 - 1  # in 18 digits, which fit into int64; a damaged header may hold more
# Of the class labels that are packed and taken for labels; what else a header holds is damage.
LARGEST_LABEL = 999_999
# Of a record's content: more than any image that is decoded, and the end of what parts add up to.
_MOST_BYTES = MOST_BYTES + (1 << 20)

REMEDY = "pack the images again with scripts/pack_records.py"


class RecordDamage(Exception):
    """What is wrong with a record, as a sentence goes on that begins with "record 5 of a.rec"."""


def open_file(path: Path) -> tuple[int, int]:
    """Descriptor and bytes of a `.rec` file.

    Raises
    ------
    InputError
        It is missing, empty or cannot be read.
    """
    if not path.is_file():
        raise InputError(f"record file {path} does not exist; {REMEDY}")
    try:
        descriptor = os.open(str(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise InputError(f"cannot read record file {path}: {error.strerror}") from None
    size = os.fstat(descriptor).st_size
    if size == 0:
        os.close(descriptor)
        raise InputError(f"record file {path} is empty; copy it again or {REMEDY}")
    return descriptor, size


def padded(length: int) -> int:
    """`length` rounded up to a multiple of 4."""
    return (length + 3) // 4 * 4


def read_record(descriptor: int, offset: int, guess: int) -> tuple[memoryview, int]:
    """Read one record.

    Parameters
    ----------
    descriptor
        Of the open file.
    offset
        Where the record begins.
    guess
        Bytes to read at once. Where that is the distance to the next record, one system call
        reads it all; any other multiple of 4 gives the same result.

    Returns
    -------
    tuple
        The content, its parts joined, and the offset behind the record and its padding. A content
        of one part is a view of what was read, not a copy.

    Raises
    ------
    RecordDamage
        No whole record lies there.
    """
    if offset % 4:
        raise RecordDamage("is damaged: its offset is not a multiple of 4")
    chunk = _pread(descriptor, max(guess, HEADERS), offset)
    kind, length = _part_header(chunk)
    if kind not in (PART_WHOLE, PART_FIRST):
        raise _no_beginning(kind)
    parts = [_part_content(descriptor, offset, chunk, length)]
    offset += PART_HEADER.size + padded(length)
    if kind == PART_WHOLE:
        return parts[0], offset
    total = length
    while kind != PART_LAST:
        if length % 4:
            raise RecordDamage(f"is damaged: a part of it has {length} bytes, not a multiple of 4")
        chunk = _pread(descriptor, PART_HEADER.size, offset)
        kind, length = _part_header(chunk)
        if kind not in (PART_MIDDLE, PART_LAST):
            raise RecordDamage("is damaged: its last part is missing")
        parts.append(_part_content(descriptor, offset, chunk, length))
        total += len(MAGIC_BYTES) + length
        if total > _MOST_BYTES:
            raise RecordDamage("is damaged: its parts are longer than any image")
        offset += PART_HEADER.size + padded(length)
    return memoryview(MAGIC_BYTES.join(parts)), offset


def locate_record(descriptor: int, offset: int, size: int) -> tuple[int, int]:
    """Id of the image record at `offset` and the offset behind it, mostly from its headers alone.

    Raises
    ------
    RecordDamage
        No whole image record lies there, in a file of `size` bytes.
    """
    kind, length, _, key = read_headers(descriptor, offset)
    if kind == PART_WHOLE:
        missing = offset + PART_HEADER.size + length - size
        if missing > 0:
            raise _ends_early(missing)
        end = offset + PART_HEADER.size + padded(length)
    else:
        content, end = read_record(descriptor, offset, HEADERS)
        key = image_id(content)
    if key >> 63:
        raise RecordDamage(f"is damaged: its id {key} is beyond any index's")
    return key, end


def read_headers(descriptor: int, offset: int) -> tuple[int, int, int, int]:
    """(kind, length) of the part and (flag, id) of the image record that begin at `offset`.

    Only of a whole record are flag and id sure to be right: parts may cut the header, too.

    Raises
    ------
    RecordDamage
        No image record begins there.
    """
    headers = _pread(descriptor, HEADERS, offset)
    kind, length = _part_header(headers)
    if kind not in (PART_WHOLE, PART_FIRST):
        raise _no_beginning(kind)
    if kind == PART_WHOLE and length < IMAGE_HEADER.size:
        raise _too_short(length)
    if len(headers) < HEADERS:
        raise _ends_early(HEADERS - len(headers))
    flag, _, key, _ = IMAGE_HEADER.unpack_from(headers, PART_HEADER.size)
    return kind, length, flag, key


def image_id(content: memoryview) -> int:
    """Id in an image record's content; :class:`RecordDamage` if that is too short to have one."""
    if len(content) < IMAGE_HEADER.size:
        raise _too_short(len(content))
    return IMAGE_HEADER.unpack_from(content)[2]


def is_class(label: float) -> bool:
    """Whether a record's label can be that of a class."""
    return 0 <= label <= LARGEST_LABEL and label == int(label)


def parse_image(content: memoryview) -> tuple[float, memoryview]:
    """Label and encoded image of an image record's content.

    Raises
    ------
    RecordDamage
        The content is too short for its header, or it carries several labels.
    """
    start = IMAGE_HEADER.size
    if len(content) < start:
        raise _too_short(len(content))
    flag, label, _, _ = IMAGE_HEADER.unpack_from(content)
    if start + 4 * flag > len(content):
        raise RecordDamage(f"is damaged: its {len(content)} bytes end within its {flag} labels")
    check_flag(flag)
    if flag == 1:
        (label,) = struct.unpack_from("<f", content, start)
        start += 4
    return label, content[start:]


def check_flag(flag: int) -> None:
    """Raise :class:`RecordDamage` if a record's flag says that it has several labels."""
    if flag > 1:
        raise RecordDamage(
            f"has {flag} labels: classification takes one an image, from a .lst with one "
            "label column")


def check_length(content: memoryview, stored: int) -> None:
    """Raise :class:`RecordDamage` if a content that took `stored` bytes runs over the next record.

    k parts, all but the last of whole words, take 8 k bytes of headers and lack k - 1 magic
    numbers of 4 bytes: stored = padded(length) + 8 k - 4 (k - 1). So a content with k of them has
    one of another record.
    """
    parts = (stored - padded(len(content)) - 4) // 4
    if len(find_magic(content)) >= parts:
        raise RecordDamage("is damaged: its length is wrong, for another record begins within it")


def find_magic(content: bytes | memoryview) -> np.ndarray:
    """Multiples of 4 at which the magic number stands in `content`, int64."""
    words = np.frombuffer(content, dtype="<u4", count=len(content) // 4)
    return 4 * np.flatnonzero(words == MAGIC)


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, count, offset)
    except OSError as error:
        if error.errno == errno.EBADF:  # closed: a mistake of ours, not of the disk
            raise
        raise RecordDamage(f"cannot be read: {error.strerror}") from None


def _part_header(chunk: bytes) -> tuple[int, int]:
    """Kind and length of the part that `chunk` begins with."""
    if len(chunk) < PART_HEADER.size:
        raise RecordDamage("is damaged: the file ends before it" if not chunk
                     else "is damaged: the file ends within its header")
    magic, kind_and_length = PART_HEADER.unpack_from(chunk)
    if magic != MAGIC:
        raise RecordDamage(f"is damaged: magic number {magic:#010x} instead of {MAGIC:#010x}")
    return kind_and_length >> LENGTH_BITS, kind_and_length & ((1 << LENGTH_BITS) - 1)


def _part_content(descriptor: int, offset: int, chunk: bytes, length: int) -> memoryview:
    """Content of the part at `offset`, of which `chunk` has been read."""
    end = PART_HEADER.size + length
    if end > len(chunk):
        # No part holds the magic number at a multiple of 4: so this is the next one's, and the
        # length is wrong. Seen before up to 512 MiB are read.
        if _pread(descriptor, 4, offset + len(chunk)) == MAGIC_BYTES:
            raise RecordDamage(f"is damaged: its length {length} reaches into the next record")
        chunk = _pread(descriptor, end, offset)
        if len(chunk) < end:
            raise _ends_early(end - len(chunk))
    return memoryview(chunk)[PART_HEADER.size : end]


def _no_beginning(kind: int) -> RecordDamage:
    return RecordDamage(f"is damaged: no record begins at its offset, but a part of kind {kind}")


def _too_short(length: int) -> RecordDamage:
    return RecordDamage(f"is damaged: {length} bytes are too few for its header")


def _ends_early(missing: int) -> RecordDamage:
    return RecordDamage(f"is damaged: the file ends {missing} bytes early")
