"""``metrics.jsonl``, the record of a run: one JSON object a line, also as TensorBoard's events."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from gluon_resnest.atomic import replacing
from gluon_resnest.errors import InputError
from gluon_resnest.runs.run_directory import METRICS, TENSORBOARD
from gluon_resnest.runs.steady_file import SteadyFile
from gluon_resnest.runs.tensorboard import TensorBoard, can_write

# What TensorBoard shows, and the group of its tags.
_GROUPS = {"step": "train", "epoch": "epoch", "validation": "validation",
           "validation_ema": "validation_ema"}


class MetricsLog:
    """Writes events of a run, each at once: ``{"event": ..., "time": ..., ...}``.

    A disk that fails does not end the run: that is said once, and what could not be written is
    tried again with the next event.

    Parameters
    ----------
    folder
        Run directory: ``metrics.jsonl``, and ``tensorboard/`` with TensorBoard's events.
    tensorboard
        Whether to write these; None for: if tensorboardX can be imported.
    resumed_at
        Step of the checkpoint that the run goes on from: what there is of later steps is removed.
    lines
        :attr:`lines` when that checkpoint was made: what came after is removed too, as the
        validation of that very step, which is about to come again.

    Raises
    ------
    InputError
        A file cannot be written to, or tensorboardX is wanted and not there.
    """

    def __init__(self, folder: Path, tensorboard: bool | None = None,
                 resumed_at: int | None = None, lines: int | None = None) -> None:
        self._lock = threading.Lock()
        path = folder / METRICS
        with_events = can_write(tensorboard)
        kept = _cut(path, resumed_at, lines) if path.is_file() else []
        self._lines = len(kept)
        self._file = SteadyFile(path)
        self._events = TensorBoard(folder / TENSORBOARD, resumed_at) if with_events else None
        for record in map(_record, kept):
            # TensorBoard forgets by steps alone: it is told again of what the lines still have.
            if resumed_at is not None and record and record.get("step") == resumed_at:
                self._show(record)

    @property
    def lines(self) -> int:
        """Number of lines in the file."""
        return self._lines

    def write(self, event: str, **values: Any) -> None:
        """Append one event; floats keep full precision, and those that are not finite are null."""
        record = _plain({"event": event, "time": time.time(), **values})
        with self._lock:  # checkpoints are written by a thread of their own
            self._file.append(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._lines += 1
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        """Write a record as TensorBoard's events, if there are any."""
        if self._events is not None and record["event"] in _GROUPS and "step" in record:
            scalars = {name: value for name, value in record.items()
                       if name not in ("event", "time", "step")}
            self._events.add_scalars(_GROUPS[record["event"]], record["step"],
                                     record.get("time", 0.0), scalars)

    def close(self) -> None:
        with self._lock:
            self._file.close()
            if self._events is not None:
                self._events.close()


def _plain(value: Any) -> Any:
    """`value` of types that JSON has: it has no NaN, no infinity and nothing of NumPy."""
    if isinstance(value, dict):
        return {str(name): _plain(of) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _cut(path: Path, step: int | None, lines: int | None) -> list[bytes]:
    """Remove the lines of later steps, those after the first `lines`, and a torn one at the end.

    A line that cannot be read is left for :func:`read_metrics` to complain of: the run must go on.

    Returns
    -------
    list
        The lines that are left.
    """
    content = _content(path)
    *whole, torn = content.split(b"\n")
    if _record(torn) is not None:  # all of a line but its end
        whole.append(torn)
    kept = [line for line in whole[:lines] if not _is_later(line, step)]
    wanted = b"".join(line + b"\n" for line in kept)
    if wanted != content:
        with replacing(path) as temporary:
            temporary.write_bytes(wanted)
    return kept


def _is_later(line: bytes, step: int | None) -> bool:
    found = (_record(line) or {}).get("step")
    return step is not None and isinstance(found, (int, float)) and found > step


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe waits for its writer
        raise InputError(f"cannot read {path}: it is not a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _record(line: bytes) -> dict[str, Any] | None:
    """The event of a line, or None if it holds none."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def read_metrics(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The records of one kind of event in a ``metrics.jsonl``, in order; None for all kinds.

    The last line may be torn, by a run that was killed or is being written just now: then it does
    not count.

    Raises
    ------
    InputError
        The file cannot be read, or a line is damaged.
    """
    path = Path(path)
    *whole, torn = _content(path).split(b"\n")
    records = [_record(line) for line in (*whole, torn)]
    if records[-1] is None:
        records.pop()
    for number, record in enumerate(records, 1):
        if record is None:
            raise InputError(f"line {number} of {path} is damaged, it holds no event of a run: "
                             "delete that line")
    return [record for record in records if event is None or record["event"] == event]
