"""A .rec file of images by position, without MXNet; standard library only."""

from __future__ import annotations

import os
import struct

_MAGIC = struct.pack("<I", 0xCED7230A)
_PART = struct.Struct("<4sI")  # magic; kind and length
_IMAGE = struct.Struct("<IfQQ")  # number of labels that follow, or 0 and the label; two keys
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


class Records:
    """``records[position]`` is an image file's bytes and its label; forked processes may read."""

    def __init__(self, path: str) -> None:
        with open(os.path.splitext(path)[0] + ".idx") as index:
            self._offsets = [int(line.split("\t")[1]) for line in index]
        self._file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> tuple[bytes, int]:
        content = self._content(self._offsets[position])
        labels, label, _, _ = _IMAGE.unpack_from(content)
        if labels:
            label, = struct.unpack_from("<f", content, _IMAGE.size)
        return content[_IMAGE.size + 4 * labels:], int(label)

    def _content(self, offset: int) -> bytes:
        parts, kind = [], _FIRST
        while kind not in (_WHOLE, _LAST):
            magic, header = _PART.unpack(os.pread(self._file, _PART.size, offset))
            if magic != _MAGIC:
                raise ValueError(f"no record begins at byte {offset}: the .idx is of another .rec")
            kind, length = header >> _LENGTH_BITS, header & ((1 << _LENGTH_BITS) - 1)
            parts.append(os.pread(self._file, length, offset + _PART.size))
            offset += _PART.size + (length + 3) // 4 * 4
        return _MAGIC.join(parts)  # which cut the parts apart and was left out
