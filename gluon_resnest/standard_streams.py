"""Standard output and standard error that cannot fail a tool: encodings, closed pipes, full disks.

Standard library only, as the supervisor uses it.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

# The reader of a pipe has ended; the terminal has been closed.
_READER_GONE = (errno.EPIPE, errno.EIO)


class OutputLost(Exception):
    """Standard output, which is what the tool is run for, cannot be written.

    Attributes
    ----------
    reader_gone
        Whether nobody reads it any more, as after `| head`: no fault, but no reason to go on.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}")
        self.reader_gone = error.errno in _READER_GONE


class _Stream:
    """A text stream: what its encoding lacks is escaped, and `needed` decides what a fault does.

    If it is not needed, what cannot be written is dropped; else :class:`OutputLost` is raised.
    """

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self._stream, self._needed = stream, needed
        with suppress(AttributeError):  # a notebook's stream takes any text as it is
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if self._needed or error.errno in _READER_GONE:
            # Else Python tries again at its end, and complains with an exit code of its own.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        if self._needed:
            raise OutputLost(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secure(output_needed: bool) -> None:
    """Let no text and no fault of standard error end this process.

    Parameters
    ----------
    output_needed
        Whether a fault of standard output raises :class:`OutputLost`. Otherwise it does not matter
        either: a training run must outlive the terminal that it was started from.
    """
    for name, needed in (("stdout", output_needed), ("stderr", False)):
        stream = getattr(sys, name)
        if isinstance(stream, _Stream):  # secured before, by another tool in this process
            stream = stream._stream
        if stream is None:  # closed by whoever started this process
            stream = open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, _Stream(stream, needed))
