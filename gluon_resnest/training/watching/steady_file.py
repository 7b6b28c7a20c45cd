"""A file that a run appends to, and whose failures must not end the run."""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from gluon_resnest.errors import InputError

# Pieces kept for a disk that may have room again; the oldest go first. A few MB at most.
_MOST_KEPT = 10_000


class SteadyFile:
    """Appends pieces of bytes, each whole or not at all.

    What cannot be written is said once, kept, and tried again before the next piece: a disk that
    is full for a while, or a server that is away, leaves no gap.

    Parameters
    ----------
    path
        Appended to; made if it is not there.

    Raises
    ------
    InputError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: deque[bytes] = deque(maxlen=_MOST_KEPT)
        self._file: int | None = None
        self._size = sys.maxsize
        self._failing = False
        try:
            self._open()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None

    def append(self, piece: bytes) -> None:
        """Write a piece, and those before it that are still to be written."""
        self._kept.append(piece)
        self._write_kept()

    def close(self) -> None:
        """Try for the last time; nothing more can be appended."""
        if self._kept:
            self._write_kept()
        if self._kept:
            self._warn(f"{self._path} lacks what was written last: the disk still fails")
            self._kept.clear()
        self._let_go()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        found = os.fstat(self._file).st_size
        if found > self._size:  # half a piece, which the disk would not let go before
            os.ftruncate(self._file, self._size)
        self._size = min(self._size, found)

    def _write_kept(self) -> None:
        try:
            if self._file is None:
                self._open()
            while self._kept:
                rest = memoryview(self._kept[0])
                while rest:
                    rest = rest[os.write(self._file, rest):]
                self._size += len(self._kept.popleft())
        except OSError as error:
            if not self._failing:
                self._warn(f"cannot write {self._path}: {error.strerror or error}; the run goes "
                           "on and tries again")
            self._failing = True
            # A new descriptor next time: after some faults of a network's disk an old one is dead.
            self._let_go()
        else:
            self._failing = False

    def _let_go(self) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            if os.fstat(self._file).st_size > self._size:
                os.ftruncate(self._file, self._size)
        with suppress(OSError):
            os.close(self._file)
        self._file = None

    @staticmethod
    def _warn(text: str) -> None:
        tqdm.write(f"warning: {text}", file=sys.stderr)
