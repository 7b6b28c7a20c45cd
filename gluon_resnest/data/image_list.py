"""What is to be packed: the images of a folder of class folders, or those of an im2rec list."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ContextManager, NamedTuple

from gluon_resnest.errors import InputError

# By name only: what a file really holds is looked at when it is read.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


class ListedImage(NamedTuple):
    """One line of an im2rec list: its key, its label and the image's path below the root."""

    key: int
    label: float
    path: str


class ImageList(NamedTuple):
    """Images to pack, the folder that their paths start from, and the classes' names if known."""

    root: Path
    images: list[ListedImage]
    class_names: list[str] | None


def list_images(source: str | Path, root: str | Path | None = None) -> ImageList:
    """List the images of `source`.

    Parameters
    ----------
    source
        A folder with one folder a class, whose sorted names become the labels 0, 1, ..., or an
        im2rec list (`.lst`): index, label and path in each line, between tabs.
    root
        Folder that the paths of a list start from; by default the list's own.

    Raises
    ------
    InputError
        The source is missing, has no class folders, an empty one, a file that is no image, or a
        line that cannot be read.
    """
    source = Path(source)
    if source.is_dir():
        if root is not None:
            raise InputError(f"--root is for a .lst file; {source} is a folder of class folders")
        return _list_folder(source)
    if source.is_file():
        return _list_file(source, Path(root) if root is not None else source.parent)
    raise InputError(
        f"source {source} does not exist; give a folder with one folder a class, or a .lst file"
    )


def _list_folder(source: Path) -> ImageList:
    with _scan(source) as entries:
        names = sorted(entry.name for entry in entries
                       if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(
            f"{source} has no class folders; put the images of each class into a folder of its "
            "own there, or give a .lst file"
        )
    images: list[ListedImage] = []
    for label, name in enumerate(names):
        paths = sorted(_image_paths(source, name))
        if not paths:
            raise InputError(
                f"class folder {source / name} has no images; add some, or remove the folder"
            )
        first = len(images)
        images += [ListedImage(first + i, float(label), path) for i, path in enumerate(paths)]
    return ImageList(source, images, names)


def _scan(folder: Path) -> ContextManager[Iterator[os.DirEntry]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror}") from None


def _image_paths(root: Path, folder: str) -> Iterator[str]:
    """Paths of the images in a class folder and below it, relative to `root`, with slashes."""
    with _scan(root / folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if not path.isprintable():
                raise InputError(f"the name of {root / folder}/{entry.name!a} has characters "
                                 "that a list cannot hold; rename the file")
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                continue  # what file managers leave behind
            if entry.is_dir():
                yield from _image_paths(root, path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                yield path
            else:
                raise InputError(
                    f"{root / path} is not an image by its name; remove it from the class folder "
                    f"(images end in {', '.join(sorted(IMAGE_SUFFIXES))})"
                )


def _list_file(source: Path, root: Path) -> ImageList:
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that the list starts from")
    images: list[ListedImage] = []
    keys = set()
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{source} is neither a folder nor a .lst text file") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image = _parse_line(line, f"{source}, line {number}")
        if image.key in keys:
            raise InputError(
                f"{source}, line {number}: index {image.key} occurs twice; give each line its own"
            )
        keys.add(image.key)
        images.append(image)
    if not images:
        raise InputError(f"{source} lists no images; each line is: index <tab> label <tab> path")
    return ImageList(root, images, _names_from_folders(images))


def _parse_line(line: str, place: str) -> ListedImage:
    fields = line.rstrip("\r\n").split("\t")
    form = "a line is: index <tab> label <tab> path"
    if len(fields) != 3:
        raise InputError(f"{place}: {len(fields)} fields in {line[:80]!r} instead of 3; {form}")
    index, label_text, path = (field.strip() for field in fields)
    try:
        label = float(label_text)
    except ValueError:
        label = math.nan
    if not index.isdigit() or not math.isfinite(label) or not path:
        raise InputError(f"{place}: cannot read {line[:80]!r}; {form}, index and label are numbers")
    return ListedImage(int(index), label, path)


def _names_from_folders(images: Sequence[ListedImage]) -> list[str] | None:
    """Class names of a list whose images lie in one folder a class; None where they do not.

    The classes' folders may lie below others: `train/n01440764/1.JPEG` has its class in second
    place.
    """
    labels = sorted({image.label for image in images})
    if labels != list(range(len(labels))):
        return None
    folders = [Path(image.path).parts[:-1] for image in images]
    for depth in range(min(map(len, folders))):
        pairs = {(image.label, parts[depth]) for image, parts in zip(images, folders)}
        names = [name for _, name in sorted(pairs)]
        if len(names) == len(set(names)) == len(labels):
            return names
    return None
