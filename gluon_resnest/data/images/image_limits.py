"""How large an image may be: for packing, verification, training and prediction alike.

A file of a kilobyte can ask for gigabytes of pixels. So sizes are read from the header and compared
with this table before memory is taken.
"""

from __future__ import annotations

from gluon_resnest.errors import InputError

# How files of the two kinds begin that are read most.
JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"

# 0.4 GB of RGB: the photo of a 108-megapixel telephone still passes. Decoding takes up to 12 bytes
# a pixel for a while.
MOST_PIXELS = 1 << 27
# Of a file or a record: nothing of so few pixels needs more.
MOST_BYTES = 1 << 30


def check_pixels(width: int, height: int, most_pixels: int = MOST_PIXELS) -> None:
    """Raise InputError if a header asks for no pixels at all, or for more than are decoded."""
    if width < 1 or height < 1:
        raise InputError(f"its {width} x {height} pixels are none; copy it again")
    if width * height > most_pixels:
        raise InputError(f"its {width} x {height} pixels are more than the {most_pixels:,} that "
                         "are decoded; shrink it")


def check_bytes(count: int) -> None:
    """Raise InputError if a file or a record is larger than any image that is decoded."""
    if count > MOST_BYTES:
        raise InputError(f"its {count:,} bytes are more than an image of {MOST_PIXELS:,} pixels "
                         "needs; is it an image?")


def damaged(content: bytes | memoryview, reason: object) -> InputError:
    """The error for an image whose bytes are not whole; `reason` may be a library's exception."""
    kind = "JPEG" if bytes(content[:3]) == JPEG else "PNG" if bytes(content[:8]) == PNG else "image"
    text = " ".join(str(reason).split()) or type(reason).__name__
    return InputError(f"its {len(content):,} bytes are a damaged {kind}: {text[:200]}; "
                      "copy it again")
