"""Image files that anyone may have made: found in folders, measured, and only then decoded.

What a file holds is decided by its bytes, not by its name. Pillow reads the header alone, and only
what is of a sensible size is decoded: a file of a kilobyte can ask for gigabytes of pixels.
JPEG, PNG, BMP, TIFF, PPM and JPEG 2000 are then decoded as records are (:mod:`.decoding`), so a
network sees what it was trained on; GIF and WebP by Pillow, which alone takes their first frame
with any OpenCV and turns WebP as its EXIF orientation says.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.ImageFile
from PIL import Image, ImageOps

from gluon_resnest.data.decoding import decode
from gluon_resnest.data.image_list import IMAGE_SUFFIXES
from gluon_resnest.errors import InputError

# What a folder is searched for. Records are not packed from the others, but they can be read.
FOUND_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".jfif", ".jp2", ".pgm", ".ppm"}

# 0.4 GB of RGB: the photo of a 108-megapixel telephone still passes.
MOST_PIXELS = 1 << 27
_MOST_BYTES = 1 << 30  # of a file: nothing of so few pixels needs more

# No others: Pillow would hand PostScript, for one, to an interpreter.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
_BY_PILLOW = ("GIF", "WEBP")
_WITHOUT_FALLBACK = ("JPEG", "MPO", "PNG")  # MPO: a JPEG with more behind it, from telephones
_UNSCALED = ("F", "I")  # Pillow's modes of 32 bits a channel


class _WholeImagesOnly:
    """While any thread is inside, Pillow refuses images that were cut.

    Libraries switch that off for the whole process: `gluoncv.data` does when it is imported.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = PIL.ImageFile.LOAD_TRUNCATED_IMAGES
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_whole_images_only = _WholeImagesOnly()


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
    (`FOUND_SUFFIXES`) and are not hidden. A folder without any, or that cannot be read, is a
    fault in its place. Links to folders are followed, each folder once.
    """
    found: list[ImageFile] = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises errors on the strangest names
            found.append(ImageFile(path))
            continue
        below = sorted(_below(path))
        found += below or [ImageFile(path, (
            f"folder {path} has no images: give one with files that end in "
            f"{', '.join(sorted(FOUND_SUFFIXES))}"))]
    return found


def _below(folder: Path) -> Iterator[ImageFile]:
    faults: list[ImageFile] = []

    def refuse(error: OSError) -> None:
        faults.append(ImageFile(Path(error.filename),
                                f"cannot read folder {error.filename}: {error.strerror}"))

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in seen:  # a link to a folder above would never end
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in FOUND_SUFFIXES:
                yield ImageFile(Path(place, name))
    yield from faults


def read_image(path: Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read and decode one file of any origin.

    Of an animation it is the first frame, of a file with several pages the first. 16 bits a
    channel are scaled to 8, CMYK is converted, grey becomes three equal channels, transparency is
    left out (the colours below it count, as in records), and the image is turned as its EXIF
    orientation says. JPEG and PNG give the pixels that :func:`.decoding.decode` gives.

    Parameters
    ----------
    path
        The file.
    most_pixels
        A header that asks for more is refused before anything is decoded. Memory for decoding
        grows with it: 3 bytes a pixel, twice or three times for a while.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (H, W, 3), channels R, G, B.

    Raises
    ------
    InputError
        There is no such file, it cannot be read, or it is not one whole image of a known format
        and acceptable size. The message names the path.
    """
    try:
        with warnings.catch_warnings(), _whole_images_only:
            # Of sizes that Pillow finds suspicious (the limit here is ours), and of odd metadata.
            warnings.simplefilter("ignore")
            return _decode(_content(path), most_pixels)
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except ValueError:  # a null character
        raise InputError(f"cannot read image {str(path)!a}: this is no name of a file") from None
    except MemoryError:
        raise InputError(f"cannot read image {path}: it needs more memory than there is; "
                         "shrink it") from None


def _content(path: Path) -> bytes:
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file; give an image file or a folder")
        if status.st_size == 0:
            raise InputError("is empty (0 bytes); copy it again")
        if status.st_size > _MOST_BYTES:
            raise InputError(f"its {status.st_size:,} bytes are more than an image of "
                             f"{MOST_PIXELS:,} pixels needs; is it an image?")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    # Opening a named pipe would wait for someone to write into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(content: bytes, most_pixels: int) -> np.ndarray:
    kind, mode, width, height = _header(content, most_pixels)
    if width * height > most_pixels:
        raise InputError(f"its {width} x {height} pixels are more than the {most_pixels:,} that "
                         "are decoded; shrink it")
    if kind == "TIFF" and mode in _UNSCALED:
        raise InputError("has 32 bits a channel, of which black and white are not known; "
                         "convert it to 8 or 16 bits")
    if kind in _BY_PILLOW:
        return _by_pillow(content)
    if kind == "PNG":
        _check_png(content)
    try:
        return decode(content)
    except InputError:
        if kind in _WITHOUT_FALLBACK:
            raise
        return _by_pillow(content)  # of OpenCV's formats, its builds lack one or the other


def _header(content: bytes, most_pixels: int) -> tuple[str, str, int, int]:
    """Format, Pillow's mode, width and height, as the header has them; nothing is decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return image.format, image.mode, *image.size
    except Image.DecompressionBombError as error:  # far beyond, and Pillow does not say the sides
        count = next(iter(re.findall(r"\d+", str(error))), "many")
        raise InputError(f"its {count} pixels are more than the "
                         f"{most_pixels:,} that are decoded; shrink it") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"its {len(content):,} bytes are not an image of a known format "
                         f"({', '.join(_FORMATS)}); convert it to JPEG or PNG") from None
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise _damaged(content, error) from None


def _check_png(content: bytes) -> None:
    """Find what was cut or damaged by its checksums.

    OpenCV finds it too, but libpng then writes lines of its own to the terminal.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
    except Exception:  # as above; but perhaps of a part that is not needed
        _by_pillow(content)


def _by_pillow(content: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.load()  # of an animation, the first frame
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(content, error) from None


def _damaged(content: bytes, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"its {len(content):,} bytes are a damaged image: {reason}; copy it again")
