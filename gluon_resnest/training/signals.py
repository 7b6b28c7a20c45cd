"""What signals ask of a run: to write a checkpoint, or to write one and stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Wishes:
    """What signals have asked for since this was entered.

    SIGUSR1 asks for a checkpoint. SIGTERM and SIGINT ask for a checkpoint and the end; a second
    one of these ends the process at once.

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
        self._before: dict[int, Any] = {}

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise SystemExit(128 + number)
        self.stop = number

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
