"""The files in a folder and below it, whatever links lie there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

# What is searched for. By name only: what a file really holds is looked at when it is read.
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png",
                            ".ppm", ".tif", ".tiff", ".webp"})


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as images' do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def files_below(folder: Path, refuse: Callable[[OSError], None]) -> Iterator[str]:
    """Paths of the files in a folder and below it, relative to it, with slashes.

    What is hidden is left out. Links to folders are followed, each folder once; a link to a folder
    that contains this one is left out, for it would lead round in a circle.

    Parameters
    ----------
    folder
        Where to begin.
    refuse
        Called with the error of a folder that cannot be read. If it returns, the search goes on.
    """
    seen = _folders_above(folder)
    waiting = [""]
    while waiting:
        below = waiting.pop()
        place = os.path.join(folder, below)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")),
                                 key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            refuse(error)
            continue
        for entry in entries:
            if is_folder(entry):
                waiting.append(f"{below}{entry.name}/")
            else:
                yield f"{below}{entry.name}"


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _folders_above(folder: Path) -> set[tuple[int, int]]:
    """Device and inode of the folders above, along the path as given and along the real one."""
    above = set()
    for path in (Path(os.path.abspath(folder)), Path(os.path.realpath(folder))):
        for parent in path.parents:
            try:
                status = os.stat(parent)
            except OSError:
                continue
            above.add((status.st_dev, status.st_ino))
    return above
