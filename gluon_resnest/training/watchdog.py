"""Exit a process whose training hangs."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from typing import Callable

# "Temporary failure" among the exit codes of sysexits.h: worth another try.
HUNG = 75

_LOOK_EVERY = 1.0  # seconds
_TIMES_THE_SLOWEST = 5


class Watchdog:
    """Ends the process, from a thread, when nothing has been finished for too long.

    A worker that hangs leaves the others waiting for it inside a call that no exception can end.
    Each worker has a watchdog, so it does not matter which one hangs: the others end, and the
    launcher ends the rest.

    It begins to watch with the second :meth:`beat`: what comes before, such as the choice of
    kernels, may take long. Intervals are counted in looks of the thread, so that a job that was
    suspended as a whole has not hung.

    What it says is followed by the stacks of all threads, so that a log shows where it hung.

    Parameters
    ----------
    patience
        Seconds without a beat, or five times the longest interval until then if that is more.
    who
        Words for this worker.
    end
        What to do; by default the process exits with code 75.
    """

    def __init__(
        self, patience: float, who: str, end: Callable[[int], None] = os._exit
    ) -> None:
        self._patience = patience
        self._who = who
        self._end = end
        self._last = "start"
        self._beats = 0
        self._looks = 0
        self._slowest = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, what: str) -> None:
        """Say that `what` has been finished."""
        if self._beats >= 2:  # the first interval is no measure
            self._slowest = max(self._slowest, self._looks * _LOOK_EVERY)
        self._looks = 0
        self._beats += 1
        self._last = what

    @property
    def limit(self) -> float:
        """Seconds without a beat that are too many."""
        return max(self._patience, _TIMES_THE_SLOWEST * self._slowest)

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY):
            self._looks += 1
            if self._beats >= 2 and self._looks * _LOOK_EVERY > self.limit:
                # Before anything is said: the one who should read it may hang as well.
                last_resort = threading.Timer(5.0, self._end, (HUNG,))
                last_resort.daemon = True
                last_resort.start()
                print(f"error: {self._who} has finished nothing for {self.limit:.0f} s (last: "
                      f"{self._last}): it hangs, or waits for a worker that does; the same "
                      "command goes on from the last checkpoint (--hang-timeout sets the time)",
                      file=sys.stderr, flush=True)
                _write_stacks()
                last_resort.cancel()
                self._end(HUNG)
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()


def _write_stacks() -> None:
    """Python's stacks of all threads, to standard error; what hangs need not help."""
    try:
        file = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # replaced by something that is no file
        file = 2
    faulthandler.dump_traceback(file, all_threads=True)
