"""What a user sees while the environment is set up: one line a step; the rest goes to a log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping, Sequence

_TAIL_LINES = 12
_PERCENT_EVERY = 20  # seconds between two percentages of a long build


class InstallError(Exception):
    """The environment cannot be set up; the message says what to do about it, in one line.

    `details` are lines of a failed command, to be shown above the message.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class InstallProgress:
    """Prints each step with the seconds it took and collects the commands' output in a log."""

    def __init__(self, log: Path) -> None:
        self.log = log

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"  {title} ...", end="", flush=True)
        start = time.monotonic()
        try:
            yield
        except InstallError as error:
            print(f" failed\n{error.details}".rstrip(), flush=True)
            raise
        print(f" {time.monotonic() - start:.0f} s", flush=True)

    def run(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None,
            cwd: Path | None = None) -> None:
        """Run `command`, its output to the log, and print the percentages that it logs."""
        words = [str(word) for word in command]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(b"\n$ " + os.fsencode(" ".join(words)) + b"\n")
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, cwd=cwd,
                                       stderr=subprocess.STDOUT, env=env, start_new_session=True)
            try:
                self._watch(process, begin)
            finally:
                if process.poll() is None:  # interrupted: the compilers behind pip must go too
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
        if process.returncode != 0:
            raise InstallError(f"`{Path(words[0]).name} {' '.join(words[1:4])} ...` failed (exit "
                               f"code {process.returncode}); the whole log is {self.log}",
                               _extract(self._output(begin)))

    def _watch(self, process: subprocess.Popen[bytes], begin: int) -> None:
        last = time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - last > _PERCENT_EVERY:
                last = time.monotonic()
                percents = re.findall(r"\[ *(\d+)%\]", self._output(begin))
                if percents:
                    print(f" {percents[-1]} %", end="", flush=True)

    def _output(self, begin: int) -> str:
        with self.log.open("rb") as log:
            log.seek(begin)
            return log.read().decode(errors="replace")


def _extract(output: str) -> str:
    """The lines of a failed command that tell the most: its first errors and its end."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    tail = lines[-_TAIL_LINES:]
    telling = [line for line in lines[:-_TAIL_LINES]
               if re.search(r"\berror: |Error at|undefined reference|Killed", line)]
    return "\n".join(f"    {line.strip()[:200]}" for line in [*telling[:5], *tail])
