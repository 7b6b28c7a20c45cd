"""What the supervisor of a job says and hears: lines with the time, and signals."""

from __future__ import annotations

import os
import select
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from gluon_resnest.errors import InputError

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HEARD = (*STOP, signal.SIGUSR1, signal.SIGCHLD)


class Events:
    """One line for each event, with the time: on stderr, and in a file if one is given.

    Raises
    ------
    InputError
        The file cannot be written.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = None
        if log is not None:
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                self._log = open(log, "a", encoding="utf-8")
            except OSError as error:
                raise InputError(f"cannot write --log {log}: {error.strerror or error}") from None

    def __call__(self, text: str) -> None:
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S} supervisor: {text}\n"
        for stream in (sys.stderr, self._log):
            if stream is not None:
                try:
                    stream.write(line)
                    stream.flush()
                except (OSError, ValueError):
                    pass  # a full disk or a closed terminal must not end the job


class Signals:
    """Signals that arrive while this is entered, in their order, and none of them lost.

    They come by a pipe: whichever thread meets a signal, the one that waits is woken.
    """

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before: dict[int, Any] = {}
        for number in _HEARD:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> bytes:
        """Numbers of the signals that have come, or come within `seconds`."""
        if not select.select([self._read], [], [], max(0.0, seconds))[0]:
            return b""
        return os.read(self._read, 4096)


def outcome(code: int) -> str:
    """In words; a shell or Python tells of a signal by 128 + n."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"
    return f"killed by {name}" if code < 0 else f"exit code {code} ({name})"
