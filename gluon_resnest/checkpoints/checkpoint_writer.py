"""Checkpoints written by a thread, while the next steps are trained."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Callable

from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.errors import InputError


class CheckpointWriter:
    """Writes snapshots one at a time in a thread, which calls neither MXNet nor Horovod.

    A checkpoint that cannot be written (the disk is full, say) does not end the run: it is for
    the caller to look at :attr:`failure` and to say so. The thread is a daemon, so the end of the
    process does not wait for it; what it was writing then is never seen. :meth:`wait` before the
    end waits for it.

    Parameters
    ----------
    checkpoints
        Where they are written.
    on_written
        Called by the thread with the folder of each checkpoint that was written; what it raises
        counts like an error of writing.

    Attributes
    ----------
    failure
        Why the last write failed, or None if it did not.
    failures_in_a_row
        Writes that failed since the last that did not.
    last_step
        Step of the last checkpoint that is safely on the disk, or None.
    seconds
        What the last write took. All four are of the last write that has ended.
    """

    def __init__(
        self, checkpoints: Checkpoints, on_written: Callable[[Path], None] | None = None
    ) -> None:
        self.failure: InputError | None = None
        self.failures_in_a_row = 0
        self.last_step: int | None = None
        self.seconds = 0.0
        self._checkpoints = checkpoints
        self._on_written = on_written
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None

    def begin(self, snapshot: Snapshot) -> None:
        """Start to write, once the write before has ended; see :meth:`Checkpoints.write`.

        An exception other than InputError of the write before is raised here.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(snapshot,), daemon=True, name=f"checkpoint-{snapshot.step}")
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the write to end, for `timeout` seconds at most; whether it has ended.

        An exception other than InputError, so a bug, is raised here, with the thread's traceback.
        """
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        return True

    def _write(self, snapshot: Snapshot) -> None:
        start, failure = time.perf_counter(), None
        try:
            path = self._checkpoints.write(snapshot)
            self.last_step = snapshot.step
            if self._on_written is not None:
                self._on_written(path)
        except InputError as error:
            failure = error
        except BaseException as bug:  # whatever it is, the main thread raises it
            self._bug = bug
        self.failure = failure
        self.failures_in_a_row = 0 if failure is None else self.failures_in_a_row + 1
        self.seconds = time.perf_counter() - start
