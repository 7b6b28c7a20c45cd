"""The one folder that a run writes to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from gluon_resnest.atomic import open_own, replacing
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import read_text

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LAST = "last.params"
BEST = "best.params"
BEST_EMA = "best-ema.params"
CURVE = "learning_curve.png"
CLASSES = "classes.txt"
BAD_RECORDS = "bad_records.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
RESULT = "result.json"
LOCK = "run.lock"

_WEIGHTS = (LAST, BEST, BEST_EMA)
_FILES = (CONFIG, METRICS, *_WEIGHTS, CURVE, CLASSES, RESULT)
_FOLDERS = (CHECKPOINTS, TENSORBOARD)


def default_run_directory(model: str) -> Path:
    """``runs/MODEL-DATE-TIME`` below the current folder."""
    return Path("runs") / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"


class RunLock:
    """Keeps a second run out of a run directory for as long as this process lives.

    The file names the process, so that signals can be sent to it. The lock goes with the process,
    however that ends; the file is removed by :meth:`release`.

    Raises
    ------
    InputError
        Another process writes to the directory, or this one may not.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "a+", encoding="utf-8", opener=open_own)
        except OSError as error:
            where = self._path if os.path.lexists(self._path) else f"to --save-dir {directory}"
            raise InputError(f"cannot write {where}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(f"--save-dir {directory} is being written by {holder}: wait for it, "
                             "end it, or choose another folder") from None
        except OSError:
            pass  # a file system without locks: then there is none to be had
        with contextlib.suppress(OSError):  # a full disk is met, and said, when it matters
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def is_lost(self) -> bool:
        """Whether the directory, or the file in it, was deleted, moved or replaced since."""
        try:
            there = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # a server that is away for a moment
        return not os.path.samestat(there, os.fstat(self._file.fileno()))

    def release(self) -> None:
        """Let others in."""
        if self.is_lost():  # what is there now may be another run's
            self._file.close()
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):  # unless there is something in it
            self._path.parent.rmdir()


def holds_weights(path: Path) -> bool:
    """Whether something was trained in `path` that a new run must not delete unasked."""
    return any((path / name).exists() for name in _WEIGHTS)


def was_begun(path: Path) -> bool:
    """Whether a run was begun in `path`; else what is there, such as a config.yaml, is a user's."""
    return (path / METRICS).exists()


def refuse_a_run(path: Path) -> None:
    """Raise an InputError if `path` holds a run."""
    existing = [name for name in (*_FILES, *_FOLDERS) if (path / name).exists()]
    if existing:
        raise InputError(
            f"--save-dir {path} holds a run already ({', '.join(existing)}): choose another "
            "folder, or give --overwrite to delete it")


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write ``result.json``, the outcome of a run that has come to its end."""
    with replacing(path / RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any] | None:
    """What :func:`write_result` wrote, or None."""
    try:
        result = json.loads(read_text(path / RESULT, "the result of the run"))
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


def clear_run_directory(path: Path) -> None:
    """Remove what a run left in `path`; what else is there stays.

    Raises
    ------
    InputError
        It cannot be removed.
    """
    try:
        for name in (*_FILES, BAD_RECORDS):
            with contextlib.suppress(FileNotFoundError):
                (path / name).unlink()
        for name in _FOLDERS:
            if (path / name).is_dir():
                shutil.rmtree(path / name)
    except OSError as error:
        raise InputError(f"cannot delete the run in --save-dir {path}: "
                         f"{error.strerror or error}") from None


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Keep the resolved settings of a run, so that ``-c`` can take them again."""
    with replacing(path / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def discard_unless_trained(path: Path) -> None:
    """Remove a run that ended on bad input before its first checkpoint: there is nothing in it.

    The list of bad records stays: it may be why the run ended.
    """
    if holds_weights(path) or any((path / CHECKPOINTS).glob("step-*")):
        return
    with contextlib.suppress(OSError):
        for name in _FILES:
            (path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(path / name, ignore_errors=True)
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()  # unless there is the list, or the user's own files
