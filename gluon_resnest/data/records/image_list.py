"""What is to be packed: the images of a folder of class folders, or those of an im2rec list."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gluon_resnest.data.images.image_folders import (
    IMAGE_SUFFIXES,
    files_below,
    is_folder,
    is_image_name,
)
from gluon_resnest.data.records.recordio import LARGEST_KEY, LARGEST_LABEL
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_lines

# im2rec writes labels with six decimals.
_INDEX = re.compile(r"[0-9]{1,18}", re.ASCII)
_LABEL = re.compile(r"([0-9]{1,9})(\.0{0,9})?", re.ASCII)
_LARGEST_LIST = 1 << 30  # bytes; ImageNet's has 6e7
_LONGEST_PATH = 4096  # characters, on Linux
_MOST_SHOWN = 60  # characters of a line in an error

# Unicode's categories of what a line of text cannot hold: control characters (tabs and line breaks
# among them), separators of lines and paragraphs, and bytes of a name that are no UTF-8.
_NOT_IN_A_LINE = ("Cc", "Zl", "Zp", "Cs")


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
    if source.exists():
        raise InputError(f"source {source} is neither a folder nor a regular file; give a folder "
                         "with one folder a class, or a .lst file")
    raise InputError(
        f"source {source} does not exist; give a folder with one folder a class, or a .lst file"
    )


def _list_folder(source: Path) -> ImageList:
    try:
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries
                           if is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read folder {source}: {error.strerror}") from None
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


def _image_paths(root: Path, name: str) -> list[str]:
    """Paths of the images in a class folder and below it, relative to `root`, with slashes."""
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read folder {error.filename}: {error.strerror}") from None

    if not name.strip():
        raise InputError(f"the class folder {str(root / name)!r} has a name of spaces alone; "
                         "rename it")
    paths = []
    for below in files_below(root / name, refuse):
        path = f"{name}/{below}"
        if any(unicodedata.category(letter) in _NOT_IN_A_LINE for letter in path):
            raise InputError(f"the name {str(root / path)!a} has characters that a list cannot "
                             "hold; rename the file or its folder")
        if os.path.basename(path) == "Thumbs.db":
            continue  # what a file manager leaves behind
        if not is_image_name(path):
            raise InputError(
                f"{root / path} is not an image by its name; remove it from the class folder "
                f"(images end in {', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        paths.append(path)
    return paths


def _list_file(source: Path, root: Path) -> ImageList:
    if not root.is_dir():
        raise InputError(f"--root {root} is not a folder; give the one that the list starts from")
    images: list[ListedImage] = []
    keys = set()
    lines = read_lines(source, "list", _LARGEST_LIST)
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
    shown = line[:_MOST_SHOWN] + ("..." if len(line) > _MOST_SHOWN else "")
    if len(fields) != 3:
        raise InputError(f"{place}: {len(fields)} fields in {shown!r} instead of 3; {form}")
    # A path may begin or end with spaces, as files' names may.
    index, label, path = fields[0].strip(), _LABEL.fullmatch(fields[1].strip()), fields[2]
    if not _INDEX.fullmatch(index):
        raise InputError(f"{place}: index {_short(index)} is not a whole number from 0 to "
                         f"{LARGEST_KEY}; {form}")
    if label is None or int(label.group(1)) > LARGEST_LABEL:
        raise InputError(f"{place}: label {_short(fields[1])} is not a class, a whole number from "
                         f"0 to {LARGEST_LABEL:,}; {form}")
    if not path.strip():
        raise InputError(f"{place}: no path in {shown!r}; {form}")
    if "\0" in path:
        raise InputError(f"{place}: the path {_short(path)} has a zero byte; {form}")
    if len(path) > _LONGEST_PATH:
        raise InputError(f"{place}: the path {_short(path)} has {len(path):,} characters, more "
                         f"than the {_LONGEST_PATH:,} that a file's may have; {form}")
    return ListedImage(int(index), float(label.group(1)), path)


def _short(text: str) -> str:
    return repr(text[:_MOST_SHOWN]) + ("..." if len(text) > _MOST_SHOWN else "")


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
