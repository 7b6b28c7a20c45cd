"""Images that Pillow decodes: GIF, WebP, TIFF, BMP, PPM, JPEG 2000 and unusual JPEGs.

Of an animation it is the first frame, of a file with several pages the first.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import PIL.ImageFile
from PIL import Image

from gluon_resnest.data.images.image_limits import MOST_PIXELS, check_pixels, damaged
from gluon_resnest.data.images.sixteen_bits import to_eight_bits
from gluon_resnest.errors import InputError

# No others: Pillow would hand PostScript, for one, to an interpreter.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")

_ORIENTATION = 0x0112  # EXIF
_PHOTOMETRIC, _BITS, _TILE_WIDTH, _TILE_HEIGHT = 262, 258, 322, 323  # TIFF
_WHITE_IS_ZERO = 0

# Pillow's names of pixels that it converts to RGB, and of grey with 16 bits.
_CONVERTED = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_COLOR_16 = ("RGB", "RGBA", "RGBX")  # of a TIFF whose tags say 16 bits; Pillow reads the upper 8

# EXIF orientation: (transposed first, then flipped: 0 top to bottom, 1 left to right, -1 both).
_TURNS = {2: (False, 1), 3: (False, -1), 4: (False, 0), 5: (True, None), 6: (True, 1),
          7: (True, -1), 8: (True, 0)}


class _WholeImagesOnly:
    """While any thread is inside, Pillow refuses images that were cut, and warns of nothing.

    Libraries switch the first off for the whole process: `gluoncv.data` does when it is imported.
    It warns of sizes that it finds suspicious (the limit here is ours) and of odd metadata.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._lenient = False
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._lenient = PIL.ImageFile.LOAD_TRUNCATED_IMAGES
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = self._lenient
                self._warnings.__exit__(*exception)


_whole_images_only = _WholeImagesOnly()


def decode_with_pillow(content: bytes | memoryview, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode an image of one of `FORMATS`; see :func:`.decoding.decode`."""
    with _opened(content, most_pixels) as image:
        _check_pixel_kind(image)
        if image.format == "TIFF" and image.mode in _COLOR_16 and _sixteen_bits(image):
            turn = orientation_of(image)
            values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if values is None or values.dtype != np.uint16 or values.ndim != 3:
                raise InputError("has 16 bits a channel in a way that is not read; convert it to 8")
            return turned(to_eight_bits(values[..., 2::-1]), turn)
        image.load()
        if image.mode[0] == "I":
            values = np.asarray(image)
            grey = to_eight_bits(values)
            if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
                grey = ~grey
            pixels = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
        else:
            image.info.pop("transparency", None)  # left out, as an alpha channel is
            pixels = np.array(image.convert("RGB"))
        return turned(pixels, orientation_of(image))  # a TIFF was turned when it was loaded


def check_with_pillow(content: bytes | memoryview, most_pixels: int = MOST_PIXELS) -> None:
    """Raise InputError unless the header is that of an image that would be decoded."""
    with _opened(content, most_pixels) as image:
        _check_pixel_kind(image)


def read_orientation(content: bytes | memoryview) -> int:
    """EXIF orientation of an image whose pixels another library decodes; 1 where it has none."""
    try:
        with _opened(content, MOST_PIXELS) as image:
            return orientation_of(image)
    except InputError:
        return 1


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation; 1, upright, where there is none that means anything."""
    try:
        number = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises many kinds on damaged EXIF, which costs no pixels
        return 1
    return number if number in _TURNS else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (H, W, 3) as an EXIF orientation says."""
    if orientation not in _TURNS:
        return pixels
    transposed, flip = _TURNS[orientation]
    if transposed:
        pixels = cv2.transpose(pixels)
    return pixels if flip is None else cv2.flip(pixels, flip)


@contextmanager
def _opened(content: bytes | memoryview, most_pixels: int) -> Iterator[Image.Image]:
    """An image of acceptable size of which only the header has been read."""
    try:
        with _whole_images_only, Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_pixels(*image.size, most_pixels)
            if image.format == "TIFF":  # the library takes memory for a whole tile
                check_pixels(int(image.tag_v2.get(_TILE_WIDTH, 1)),
                             int(image.tag_v2.get(_TILE_HEIGHT, 1)), most_pixels)
            yield image
    except InputError:
        raise
    except MemoryError:
        raise InputError("needs more memory than there is; shrink it") from None
    except Image.DecompressionBombError as error:  # far beyond, and Pillow does not say the sides
        count = next(iter(re.findall(r"\d+", str(error))), "many")
        raise InputError(f"its {count} pixels are more than the {most_pixels:,} that are decoded; "
                         "shrink it") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"its {len(content):,} bytes are not an image of a known format "
                         f"({', '.join(FORMATS)}); convert it to JPEG or PNG") from None
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise damaged(content, error) from None


def _check_pixel_kind(image: Image.Image) -> None:
    if image.mode in _CONVERTED or image.mode in _GREY_16:
        return
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, in 32 of memory
        return
    if image.mode in ("I", "F"):
        raise InputError("has 32 bits a channel, or signed ones, of which black and white are not "
                         "known; convert it to 8 or 16 bits")
    raise InputError(f"has pixels of the kind {image.mode}, which are not converted; convert it "
                     "to RGB")


def _sixteen_bits(image: Image.Image) -> bool:
    return 16 in tuple(image.tag_v2.get(_BITS, ()))
