"""A run's numbers as TensorBoard's events."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gluon_resnest.errors import InputError
from gluon_resnest.runs.steady_file import SteadyFile

_REMEDY = "`pip install gluon-resnest[tensorboard]`"
_numbers = itertools.count()


def _messages() -> tuple[Any, Any, Any, Any]:
    """The classes Event, SessionLog and Summary, and the checksum of a record."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import masked_crc32c

    return Event, SessionLog, Summary, masked_crc32c


def can_write(wanted: bool | None) -> bool:
    """Whether there are to be events: not if `wanted` is None and there is no tensorboardX.

    Raises
    ------
    InputError
        They are wanted, but tensorboardX cannot be imported.
    """
    if wanted is False:
        return False
    try:
        _messages()
    except Exception as error:  # protobuf has its own kinds for messages of another version
        reason = " ".join(str(error).split())
        if wanted:
            raise InputError(f"--tensorboard needs tensorboardX ({reason}): {_REMEDY}") from None
        if not isinstance(error, ImportError):
            tqdm.write("warning: no TensorBoard events, as tensorboardX cannot be imported: "
                       f"{reason}", file=sys.stderr)
        return False
    return True


class TensorBoard:
    """Scalars in a file of events.

    Not through tensorboardX's ``SummaryWriter``: its thread ends when the disk is full, and with
    its queue full too the training waits for that thread for ever. Its messages and checksums are
    used here, and the file is one that outlives a failing disk.

    Parameters
    ----------
    folder
        Made if it is not there; each run that goes on writes a further file into it.
    purge_step
        TensorBoard forgets what earlier files say of this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        event, session, self._summary, self._checksum = _messages()
        self._event = event
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {error.strerror or error}") from None
        # TensorBoard reads files in the order of their names, so the time goes first; two that
        # begin in one second must not be one file.
        name = (f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}."
                f"{next(_numbers)}")
        self._file = SteadyFile(folder / name)
        self._add(event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            self._add(event(wall_time=time.time(), step=purge_step,
                            session_log=session(status=session.START)))

    def add_scalars(self, group: str, step: int, seconds: float,
                    values: Mapping[str, Any]) -> None:
        """Numbers as scalars ``group/name`` of `step`, written at `seconds` since 1970."""
        scalars = [self._summary.Value(tag=f"{group}/{name}", simple_value=value)
                   for name, value in values.items()
                   if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if scalars:
            self._add(self._event(wall_time=seconds, step=step,
                                  summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Any) -> None:
        """One record as TensorFlow frames it: length, checksum, message, checksum."""
        message = event.SerializeToString()
        length = struct.pack("<Q", len(message))
        self._file.append(b"".join((
            length, struct.pack("<I", self._checksum(length)),
            message, struct.pack("<I", self._checksum(message)))))
