"""Image files that anyone may have made: found in folders, read safely, and decoded.

The decoder is that of records (:mod:`.decoding`), so a network sees what it was trained on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gluon_resnest.data.images.decoding import decode
from gluon_resnest.data.images.image_folders import IMAGE_SUFFIXES, files_below, is_image_name
from gluon_resnest.data.images.image_limits import MOST_PIXELS, check_bytes
from gluon_resnest.errors import InputError


class ImageFile(NamedTuple):
    """A file to read, or why there is none.

    Attributes
    ----------
    path
        Of the file, or of the folder that `fault` is about.
    fault
        None, or what is wrong in one line that names the path.
    """

    path: Path
    fault: str | None = None


def find_images(paths: Iterable[Path]) -> list[ImageFile]:
    """Files as given, in their order; in place of a folder, the images in it and below, sorted.

    A file that is named is taken whatever its name; in a folder, those are that end as images do
    (`IMAGE_SUFFIXES`) and are not hidden. A folder without any, or that cannot be read, is a
    fault in its place. Links are followed as :func:`.image_folders.files_below` says.
    """
    found: list[ImageFile] = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises errors on the strangest names
            found.append(ImageFile(path))
            continue
        below = sorted(_below(path))
        found += below or [ImageFile(path, (
            f"folder {path} has no images: give one with files that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"))]
    return found


def _below(folder: Path) -> Iterator[ImageFile]:
    faults: list[ImageFile] = []

    def refuse(error: OSError) -> None:
        faults.append(ImageFile(Path(error.filename),
                                f"cannot read folder {error.filename}: {error.strerror}"))

    for name in files_below(folder, refuse):
        if is_image_name(name):
            yield ImageFile(Path(folder, name))
    yield from faults


def read_image(path: Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read and decode one file of any origin.

    Parameters
    ----------
    path
        The file.
    most_pixels
        A header that asks for more is refused before anything is decoded. Memory for decoding
        grows with it: up to 12 bytes a pixel for a while.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (H, W, 3), channels R, G, B, as :func:`.decoding.decode` gives them.

    Raises
    ------
    InputError
        There is no such file, it cannot be read, or it is not one whole image of a known format
        and acceptable size. The message names the path.
    """
    content = read_content(path)
    try:
        return decode(content, most_pixels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except MemoryError:
        raise InputError(f"cannot read image {path}: it needs more memory than there is; "
                         "shrink it") from None


def read_content(path: Path) -> bytes:
    """Bytes of a regular file that is no larger than an image can be.

    Raises
    ------
    InputError
        It is something else, empty, or cannot be read. The message names the path.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is not a regular file; give an image file or a folder")
            if status.st_size == 0:
                raise InputError("is empty (0 bytes); copy it again")
            check_bytes(status.st_size)
            return file.read(status.st_size)  # what grows meanwhile is no whole image either
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError:  # a null character
        raise InputError(f"cannot read image {str(path)!a}: this is no name of a file") from None


def _without_waiting(path: str, flags: int) -> int:
    # Opening a named pipe would wait for someone to write into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
