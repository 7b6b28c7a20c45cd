"""A file that a run appends to, and whose failures must not end the run."""

from __future__ import annotations

import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from gluon_resnest.atomic import open_own
from gluon_resnest.errors import InputError

# Pieces kept for a disk that may have room again; the oldest go first. A few MB at most.
_MOST_KEPT = 10_000


class SteadyFile:
    """Appends pieces of bytes, each whole or not at all.

    If the file is deleted, or its folder moved away, while it is open, it is written again, whole.
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
        self._file = open_own(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        found = os.fstat(self._file).st_size
        if found > self._size:  # half a piece, which the disk would not let go before
            os.ftruncate(self._file, self._size)
        self._size = min(self._size, found)

    def _write_kept(self) -> None:
        try:
            if self._file is None:
                self._open()
            elif self._is_lost():
                self._write_again()
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

    def _is_lost(self) -> bool:
        """Whether the path is not this file's any more: nobody would find what is written."""
        try:
            there = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not os.path.samestat(there, os.fstat(self._file))

    def _write_again(self) -> None:
        """Give the path a file with all that the lost one holds, or go on with what is there."""
        lost, size = self._file, self._size
        self._file, self._size = None, sys.maxsize
        try:
            is_there = self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            if is_there:  # as after an editor has saved it, which keeps what was in it
                return
            self._warn(f"{self._path} was deleted or moved while the run goes on: it is written "
                       "again")
            pieces = [os.pread(lost, min(1 << 20, size - at), at) for at in range(0, size, 1 << 20)]
            self._kept = deque((*pieces, *self._kept), maxlen=_MOST_KEPT)
        finally:
            os.close(lost)

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
