"""One checkpoint: the files in its folder, and whether they are what was written.

A ``.params`` file for each group of arrays, ``state.json`` for everything else, and
``manifest.json`` with the size and the SHA-256 of each of them and a SHA-256 of its own. What is
read has these digests, or is not used. Nothing is pickled: the checkpoint of a stranger can be
wrong, but runs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.checkpoints.array_file import parse_arrays, write_all, write_arrays

FORMAT = 1
STATE = "state.json"
MANIFEST = "manifest.json"
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FILE = re.compile(rf"{_GROUP.pattern}\.params|{re.escape(STATE)}")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run's state at a step, in host memory; nobody changes it any more.

    Attributes
    ----------
    step
        Updates of the weights so far, at least 0.
    arrays
        Arrays by name, in groups: ``arrays["momentum"]["fc.weight"]``. Each group becomes a file
        of that name; a group without arrays does, too, and comes back.
    state
        Strict JSON, so finite numbers alone. It comes back as JSON has it: a tuple as a list, and
        keys as strings.
    """

    step: int
    arrays: Mapping[str, Mapping[str, np.ndarray]]
    state: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"a snapshot of step {self.step}")


class CheckpointDamage(Exception):
    """Why a checkpoint cannot be used: the file in it, and what is wrong with that."""


def write_folder(folder: Path, snapshot: Snapshot) -> None:
    """Make `folder` with everything in it, on the disk when this returns.

    Raises
    ------
    ValueError, TypeError
        For names, arrays or a state that the files cannot hold.
    OSError
        If it cannot be written; some of it may be there.
    """
    state = json.dumps(dict(snapshot.state), allow_nan=False).encode("ascii")
    for group in snapshot.arrays:
        if not _GROUP.fullmatch(group):
            raise ValueError(f"{group!r} is no name for a file of arrays")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # see is_being_written
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        digests = {f"{group}.params": write_arrays(folder / f"{group}.params", arrays)
                   for group, arrays in snapshot.arrays.items()}
        digests[STATE] = _write_file(folder / STATE, state)
        _write_file(folder / MANIFEST, _manifest(int(snapshot.step), {
            name: {"size": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in digests.items()}))
        sync_folder(folder)
    finally:
        os.close(descriptor)


def is_being_written(folder: Path) -> bool:
    """Whether a living process is in :func:`write_folder` with this folder.

    It holds a lock on it, which ends with the process, however that ends. The number of a process
    would say less: in a container the next one often has the same. Where the file system has no
    such locks the answer is no.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def read_folder(folder: Path, step: int) -> Snapshot:
    """What was written; raises :class:`CheckpointDamage` if it is not to be had."""
    contents = dict(_contents(folder, step))
    state = contents.pop(STATE)
    return Snapshot(step, {Path(name).stem: arrays for name, arrays in contents.items()}, state)


def is_whole(folder: Path, step: int) -> bool:
    """Whether :func:`read_folder` would read it; one file at a time is in memory."""
    try:
        for _ in _contents(folder, step):
            pass
    except CheckpointDamage:
        return False
    return True


def looks_whole(folder: Path, step: int) -> bool:
    """Whether all files are there and of their sizes; what is in them is not read."""
    try:
        for name, entry in _read_manifest(folder, step).items():
            _check_size(folder, name, entry["size"])
    except CheckpointDamage:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """See the names in a folder onto the disk, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _contents(folder: Path, step: int) -> Iterator[tuple[str, Any]]:
    """Name and content of each file, one after the other: arrays by name, or the state."""
    for name, entry in _read_manifest(folder, step).items():
        _check_size(folder, name, entry["size"])
        content = _read_file(folder, name)
        # Of the very bytes that become values, so nothing can change in between.
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointDamage(f"{name}: sha256 differs")
        try:
            yield name, (json.loads(content, parse_constant=_refuse_constant) if name == STATE
                         else parse_arrays(content))
        except (ValueError, RecursionError) as error:
            raise CheckpointDamage(f"{name}: {error}") from None


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _manifest(step: int, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    entries = {"format": FORMAT, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode("ascii")).hexdigest()
    return json.dumps({**entries, "sha256": digest}, indent=1, sort_keys=True).encode("ascii")


def _read_manifest(folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """Size and digest of each file."""
    content = _read_file(folder, MANIFEST)
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise CheckpointDamage(
                f"{MANIFEST}: format {manifest['format']!r:.20} instead of {FORMAT}")
        files = manifest["files"]
        # To the byte what would be written for what it says; its digest is a part of that.
        good = content == _manifest(manifest["step"], files) and STATE in files and all(
            _FILE.fullmatch(name) and entry.keys() == {"size", "sha256"}
            for name, entry in files.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise CheckpointDamage(f"{MANIFEST}: not what was written")
    if manifest["step"] != step:
        raise CheckpointDamage(f"{MANIFEST}: of step {manifest['step']}")
    return files


def _check_size(folder: Path, name: str, size: int) -> None:
    try:
        found = (folder / name).stat().st_size
    except OSError as error:
        raise CheckpointDamage(f"{name}: {error.strerror or error}") from None
    if found != size:
        raise CheckpointDamage(f"{name}: {found} bytes instead of {size}")


def _read_file(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not path.is_file():  # a folder or a device, or nothing
            raise CheckpointDamage(f"{name}: no such file")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointDamage(f"{name}: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointDamage(f"{name}: larger than the memory") from None


def _write_file(path: Path, content: bytes) -> str:
    with open(path, "wb", buffering=0) as file:
        write_all(file, content)
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()
