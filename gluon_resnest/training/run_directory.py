"""The one folder that a run writes to."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LAST = "last.params"
BEST = "best.params"
CURVE = "learning_curve.png"
CLASSES = "classes.txt"
BAD_RECORDS = "bad_records.jsonl"
FILES = (CONFIG, METRICS, LAST, BEST, CURVE, CLASSES)


def default_run_directory(model: str) -> Path:
    """``runs/MODEL-DATE-TIME`` below the current folder."""
    return Path("runs") / f"{model}-{datetime.now():%Y%m%d-%H%M%S}"


def create_run_directory(path: Path, overwrite: bool, config: dict[str, Any]) -> None:
    """Make `path` ready for a new run, with the resolved settings in it.

    Raises
    ------
    InputError
        If it holds a run already and not `overwrite`, or cannot be written to.
    """
    existing = [name for name in FILES if (path / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"--save-dir {path} holds a run already ({', '.join(existing)}): choose another "
            "folder, or give --overwrite to delete it"
        )
    if (path / BAD_RECORDS).exists():  # of a run that ended there before it had anything else
        existing.append(BAD_RECORDS)
    for name in existing:
        (path / name).unlink()
    with replacing(path / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def discard_unless_trained(path: Path) -> None:
    """Remove a run that ended on bad input before its first checkpoint: there is nothing in it.

    The list of bad records stays: it may be why the run ended.
    """
    if (path / LAST).exists():
        return
    for name in FILES:
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the list, or the user's own files
        path.rmdir()


def write_class_names(path: Path, names: list[str]) -> None:
    """One class name a line, in the order of the labels."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
