"""What signals ask of a run: to write a checkpoint, or to write one and stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

# Seconds in which a key that was pressed once may arrive twice, directly and by the launcher.
_SAME_KEY = 1.0


def ignore_early_wishes() -> None:
    """Let SIGUSR1 not end a process that has nothing to save yet."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Stopped(Exception):
    """A signal asked for the end, and the run can go on from where it stopped.

    Parameters
    ----------
    where
        What was reached and saved, and how to go on, in words.

    Attributes
    ----------
    number
        Of the signal.
    together
        Whether all workers stop at the same point; otherwise none must wait for the others.
    """

    def __init__(self, number: int, together: bool, where: str) -> None:
        super().__init__(f"{signal.Signals(number).name} {where}")
        self.number, self.together = number, together


class Wishes:
    """What signals have asked for since this was entered.

    SIGUSR1 asks for a checkpoint. SIGTERM and SIGINT ask for a checkpoint and the end. A second
    Ctrl-C, if it is not part of the first, ends the process at once; further SIGTERMs do not, as
    launchers and schedulers may send one each.

    Attributes
    ----------
    save
        Whether a checkpoint is asked for.
    stop
        Number of the signal that asked for the end, or 0.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop = 0
        self._stop_time = 0.0
        self._before: dict[int, Any] = {}

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.stop:
            self.stop, self._stop_time = number, now
        elif number == signal.SIGINT and now - self._stop_time > _SAME_KEY:
            raise SystemExit(128 + number)

    def __enter__(self) -> Wishes:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number, handler in ((signal.SIGUSR1, self._on_save),
                                    (signal.SIGTERM, self._on_stop),
                                    (signal.SIGINT, self._on_stop)):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
