"""Image files of every kind that people have, and the pixels that each of them stands for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # EXIF


class ImageKind(NamedTuple):
    """A file and its pixels (H, W, 3), uint8, RGB, by Pillow or NumPy."""

    path: Path
    pixels: np.ndarray


def write_kinds(folder: Path, photo: np.ndarray) -> list[ImageKind]:
    """A file of each kind, of a photograph (H, W, 3), uint8, RGB, that is not square."""
    kinds = []

    def add(name: str, image: Image.Image, **options) -> None:
        image.save(folder / name, **options)
        with Image.open(folder / name) as read:
            upright = ImageOps.exif_transpose(read)
            upright.info.pop("transparency", None)
            kinds.append(ImageKind(folder / name, np.array(upright.convert("RGB"))))

    def add_deep(name: str, values: np.ndarray, bits: int) -> None:
        """16 bits a channel that hold data of `bits`; OpenCV writes B, G, R, opacity."""
        color = values if values.ndim == 2 else values[..., [2, 1, 0, 3][:values.shape[2]]]
        assert cv2.imwrite(str(folder / name), color)
        eight = (values.astype(int) * 256 // (1 << bits)).astype(np.uint8)
        eight = eight[..., None] if eight.ndim == 2 else eight[..., :3]
        kinds.append(ImageKind(folder / name, np.broadcast_to(eight, (*eight.shape[:2], 3))))

    rng = np.random.default_rng(4)
    opacity = rng.integers(0, 256, photo.shape[:2], dtype=np.uint8)
    color = Image.fromarray(photo)
    grey, palette, two = color.convert("L"), color.quantize(64), color.convert("1")
    clear_grey, clear_color = grey.copy(), color.copy()
    clear_grey.putalpha(Image.fromarray(opacity))
    clear_color.putalpha(Image.fromarray(opacity))

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for suffix, options in (("jpg", {"quality": 92}), ("png", {}), ("tif", {}),
                                ("webp", {"lossless": True})):
            add(f"exif{orientation}.{suffix}", color, exif=exif, **options)
    for subsampling in (0, 1, 2):
        add(f"subsampling{subsampling}.jpg", color, quality=90, subsampling=subsampling)
    add("progressive.jpg", color, quality=90, progressive=True)
    add("grey.jpg", grey, quality=90)
    add("cmyk.jpg", color.convert("CMYK"), quality=95)
    add("cmyk.tif", color.convert("CMYK"))
    for suffix in ("png", "tif", "bmp", "gif"):
        add(f"palette.{suffix}", palette)
        add(f"one bit.{suffix}", two)
        add(f"grey.{suffix}", grey)
    add("palette of four.png", color.quantize(4), bits=2)
    add("clear palette.png", palette, transparency=3)
    add("clear palette.gif", palette, transparency=3)
    for suffix in ("png", "tif"):
        add(f"grey and opacity.{suffix}", clear_grey)
        add(f"opacity.{suffix}", clear_color)
    add("opacity.webp", clear_color, lossless=True, exact=True)
    add("lossy.webp", color, quality=80)
    add("first of three.gif", palette, save_all=True, append_images=[color.rotate(180), color])
    add("first of two.webp", color, save_all=True, append_images=[color.rotate(180)],
        lossless=True)
    add("first of two.png", color, save_all=True, append_images=[color.rotate(180)])
    add("first of two.tif", color, save_all=True, append_images=[color.rotate(180)])
    add("jpeg.tif", color, compression="jpeg")
    add("lzw.tif", color, compression="tiff_lzw")
    add("fax.tif", two, compression="group4")
    for suffix, image in (("bmp", color), ("ppm", color), ("pgm", grey), ("jp2", color)):
        add(f"plain.{suffix}", image)

    deep = photo.astype(np.uint16) * 257 + rng.integers(0, 200, photo.shape, dtype=np.uint16) % 255
    deep = np.minimum(deep, 65535).astype(np.uint16)
    deep_opacity = np.dstack([deep, np.full(photo.shape[:2], 65535, np.uint16)])
    for suffix in ("png", "tif"):
        add_deep(f"16 bits.{suffix}", deep, 16)
        add_deep(f"16 bits grey.{suffix}", deep[..., 1], 16)
        add_deep(f"16 bits and opacity.{suffix}", deep_opacity, 16)
        add_deep(f"12 of 16 bits.{suffix}", deep >> 4, 12)
        add_deep(f"12 of 16 bits grey.{suffix}", deep[..., 1] >> 4, 12)
        add_deep(f"8 of 16 bits grey.{suffix}", deep[..., 1] >> 8, 8)
    return kinds
