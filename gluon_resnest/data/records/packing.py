"""Pack image files into RecordIO: PREFIX.rec, .idx, .lst and .classes.txt.

The images are shuffled once, because a worker's shard is a contiguous range of the file and is
never exchanged: unshuffled, a worker would see only some of the classes. The files appear under
their names when all is written, so an error or Ctrl-C leaves nothing half-written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from gluon_resnest import runtime
from gluon_resnest.atomic import replacing
from gluon_resnest.data.images.decoding import check_header, decode
from gluon_resnest.data.images.image_files import read_content
from gluon_resnest.data.images.image_limits import JPEG, PNG
from gluon_resnest.data.records.class_folders import refuse_parts, with_classes_of
from gluon_resnest.data.records.image_list import ImageList, ListedImage, list_images
from gluon_resnest.data.records.recordio import (
    IMAGE_HEADER,
    LENGTH_BITS,
    MAGIC,
    PART_FIRST,
    PART_HEADER,
    PART_LAST,
    PART_MIDDLE,
    PART_WHOLE,
)
from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar

DEFAULT_QUALITY = 95

# What every reader of the format decodes, ImageRecordIter included, and how each file begins.
_SIGNATURES = {"JPEG": JPEG, "PNG": PNG, "BMP": b"BM"}


@dataclass(frozen=True)
class PackOptions:
    """How images become records.

    Attributes
    ----------
    resize
        Shrink images whose shorter side is longer than this many pixels; None keeps the size.
    quality
        JPEG quality (1 to 100) to encode every image with; None copies the files' own bytes,
        except those of images that `resize` shrinks, which get quality 95.
    threads
        Images prepared at a time.
    seed
        Chooses the order of the records.
    shuffle
        False keeps the order of the source.
    overwrite
        Replace files that exist.
    classes_of
        Record file whose classes give the labels; some of them may have no images here.
    folders_are_classes
        Folders that are called as the parts of a data set (`train`, `val`) are classes.
    """

    resize: int | None = None
    quality: int | None = None
    threads: int = 1
    seed: int = 0
    shuffle: bool = True
    overwrite: bool = False
    classes_of: Path | None = None
    folders_are_classes: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(f"--resize {self.resize} must be at least 1 pixel")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality} must be between 1 and 100")
        if self.threads < 1:
            raise InputError(f"--data-nthreads {self.threads} must be at least 1")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} must not be negative")


@dataclass(frozen=True)
class PackedFiles:
    """What was written: the record file, its images, its bytes and the classes' names if known."""

    record_file: Path
    images: int
    size: int
    class_names: list[str] | None


def pack(
    source: str | Path,
    prefix: str | Path,
    options: PackOptions | None = None,
    root: str | Path | None = None,
) -> PackedFiles:
    """Pack the images of `source` into `prefix`.rec, .idx, .lst and, if known, .classes.txt.

    Parameters
    ----------
    source
        A folder with one folder a class, or an im2rec list (`.lst`).
    prefix
        Path of the files to write, without their endings; its folder is made where missing.
    options
        See :class:`PackOptions`.
    root
        Folder that the paths of a list start from; by default the list's own.

    Raises
    ------
    InputError
        The source cannot be used (see :func:`~.image_list.list_images`), a file is missing or
        no image, or the output exists.
    """
    options = options or PackOptions()
    paths = {ending: Path(f"{prefix}.{ending}") for ending in ("rec", "idx", "lst", "classes.txt")}
    _refuse_existing(Path(source), paths, options.overwrite)
    listed = list_images(source, root)
    if Path(source).is_dir() and not options.folders_are_classes:
        refuse_parts(source, listed)
    if options.classes_of is not None:
        listed = with_classes_of(listed, options.classes_of)
    _make_folder(paths["rec"].parent)
    images = listed.images
    if options.shuffle:
        order = np.random.default_rng(options.seed).permutation(len(images))
        images = [images[i] for i in order]

    with ExitStack() as files:
        open_output = {
            ending: files.enter_context(open(files.enter_context(replacing(path)), "wb"))
            for ending, path in paths.items()
            if ending != "classes.txt" or listed.class_names
        }
        offset = 0
        for content, image in zip(_contents(listed, images, options), images):
            text = f"{image.key}\t{offset}\n"
            open_output["idx"].write(text.encode())
            text = f"{image.key}\t{image.label:.6f}\t{image.path}\n"
            open_output["lst"].write(text.encode("utf-8"))
            offset += write_record(open_output["rec"], image.key, image.label, content)
        if listed.class_names:
            open_output["classes.txt"].write(("\n".join(listed.class_names) + "\n").encode("utf-8"))
    if not listed.class_names and paths["classes.txt"].exists():
        paths["classes.txt"].unlink()  # of the files that were replaced
    return PackedFiles(paths["rec"], len(images), offset, listed.class_names)


def _refuse_existing(source: Path, paths: dict[str, Path], overwrite: bool) -> None:
    if source.is_file() and paths["lst"].exists() and source.samefile(paths["lst"]):
        raise InputError(
            f"{source} would be overwritten by the list in the order of the records; choose "
            "another output prefix"
        )
    existing = [path for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]} exists; give another prefix, or --overwrite to replace it")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the output folder {folder}: {error.strerror}; choose another prefix"
        ) from None


def _contents(
    listed: ImageList, images: Sequence[ListedImage], options: PackOptions
) -> Iterator[bytes]:
    """Bytes to store for each image, in order, prepared a little ahead by threads."""
    waiting: deque[Future[bytes]] = deque()
    remaining = iter(images)
    progress = progress_bar(total=len(images), unit="image", desc="pack", leave=True)
    cv2.setNumThreads(0)  # the threads are ours
    with ThreadPoolExecutor(options.threads) as pool, progress:
        try:
            while True:
                while len(waiting) < 4 * options.threads:
                    image = next(remaining, None)
                    if image is None:
                        break
                    path = listed.root / image.path
                    waiting.append(pool.submit(image_bytes, path, options))
                if not waiting:
                    return
                yield waiting.popleft().result()
                progress.update()
        finally:
            for future in waiting:
                future.cancel()


def image_bytes(path: Path, options: PackOptions) -> bytes:
    """Bytes that a record of the image file at `path` holds: its own, or encoded anew."""
    content = read_content(path)
    try:
        if options.resize is None and options.quality is None:
            _check_format(content)
            check_header(content)
            return content
        image = decode(content)
        shrunk = _shrink(image, options.resize)
        if shrunk is image and options.quality is None:
            _check_format(content)
            return content
    except InputError as error:
        raise InputError(f"{path}: {error}; remove or replace it") from None
    quality = options.quality or DEFAULT_QUALITY
    bgr = cv2.cvtColor(shrunk, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _check_format(content: bytes) -> None:
    if not content.startswith(tuple(_SIGNATURES.values())):
        raise InputError(
            f"its {len(content):,} bytes are not an image that every reader of records knows "
            f"({', '.join(_SIGNATURES)}); re-encode other formats with --quality {DEFAULT_QUALITY}")


def _shrink(image: np.ndarray, short_side: int | None) -> np.ndarray:
    """Shrink (H, W, 3) so that its shorter side has `short_side` pixels; never enlarge."""
    height, width = image.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    # The mean over each new pixel's area: no aliasing, however much an image shrinks.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_record(file: BinaryIO, key: int, label: float, payload: bytes) -> int:
    """Append an image record to a RecordIO file; the number of bytes written.

    A content that holds the format's magic number at a multiple of 4 is cut into parts there, as
    :mod:`gluon_resnest.data.records.recordio` describes.
    """
    content = IMAGE_HEADER.pack(0, label, key, 0) + payload
    parts = _split_at_magic(content)
    written = 0
    for number, part in enumerate(parts):
        if len(parts) == 1:
            kind = PART_WHOLE
        elif number == 0:
            kind = PART_FIRST
        else:
            kind = PART_LAST if number == len(parts) - 1 else PART_MIDDLE
        if len(part) >> LENGTH_BITS:
            raise InputError(f"image {key} has {len(payload)} bytes; a record holds 512 MiB")
        padding = b"\0" * (-len(part) % 4)
        written += file.write(PART_HEADER.pack(MAGIC, kind << LENGTH_BITS | len(part)))
        written += file.write(part) + file.write(padding)
    return written


def _split_at_magic(content: bytes) -> list[bytes]:
    """Cut `content` at each magic number that stands at a multiple of 4, leaving it out."""
    magic = MAGIC.to_bytes(4, "little")
    parts, start, found = [], 0, content.find(magic)
    while found >= 0:
        if found % 4 == 0:
            parts.append(content[start:found])
            start = found + 4
            found = content.find(magic, start)
        else:
            found = content.find(magic, found + 1)
    parts.append(content[start:])
    return parts


def packing_threads() -> int:
    """Threads that keep this machine's cores busy, or its disk where they have little to do."""
    return max(2, runtime.usable_cores())
