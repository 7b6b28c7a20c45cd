"""Text that people write and read: files of any editor, and names that any font can show.

Standard library only, as the supervisor uses it.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from gluon_resnest.errors import InputError

# The longest of UTF-32's begins like UTF-16's, so it is looked for first.
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
          (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))
_MOST_BYTES = 16 << 20


def read_text(path: str | Path, what: str, most_bytes: int = _MOST_BYTES) -> str:
    """Text of a file that a person may have written, with line ends of any kind made ``\\n``.

    It is UTF-8, or has a byte-order mark that says which of Unicode's encodings it is, as
    Windows' editors write it. The mark is no part of the text.

    Parameters
    ----------
    path
        A regular file.
    what
        What it is, for the error: ``"--hostfile"``.
    most_bytes
        Larger files are refused before they are read.

    Raises
    ------
    InputError
        It cannot be read, is too large, or is not text.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(most_bytes + 1) if regular else b""
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}") from None
    if not regular:  # a named pipe waits for its writer, and a device may never end
        raise InputError(f"cannot read {what} {path}: it is not a regular file")
    if len(content) > most_bytes:
        raise InputError(f"cannot read {what} {path}: it has more than {most_bytes:,} bytes, too "
                         "many for a text file of this kind")
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {what} {path}: it is not {encoding[:6].upper()} text (byte {error.start} "
            f"is 0x{content[error.start]:02x}); save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"cannot read {what} {path}: it has zero bytes, so it is not text or is "
                         "UTF-16 without a byte-order mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encoding_of(content: bytes) -> str:
    """The encoding that a byte-order mark tells, whose decoder drops the mark; else UTF-8."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_lines(path: str | Path, what: str, most_bytes: int = _MOST_BYTES) -> list[str]:
    """Lines of :func:`read_text` without their ends; nothing else than these separates lines."""
    lines = read_text(path, what, most_bytes).split("\n")
    return lines if lines[-1] else lines[:-1]


def printable(text: str) -> str:
    """One line that any terminal, file and font takes: file names may hold anything."""
    return "".join(letter if letter.isprintable() else
                   letter.encode("unicode_escape").decode() for letter in text)


def duration(seconds: float) -> str:
    """Seconds as a person says them, to two units: `3 h 12 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else (
        f"{seconds:.1f} s")


def shortened(value: object, most: int = 80) -> str:
    """One printable line of at most so many letters and an ellipsis, for an error."""
    text = printable(" ".join(str(value)[: 10 * most].split()))
    return text if len(text) <= most else f"{text[:most]}..."
