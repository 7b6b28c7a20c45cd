"""Serve one contestant: `python serve.py PROGRAM.py`, asked on stdin, answering on stdout.

A line of JSON each way; the driver is benchmarks/contest.py.

    {"do": "prepare", "task": {...}}  -> {"facts", "calls", "call_seconds", "baseline_mb"}
    {"do": "turn"}                    -> {"started", "seconds": [one a call], "counts": [...],
                                          "cpu_seconds", "idle_cpu_seconds"}
    {"do": "profile"}                 -> {"calls", "operators": [{"operator", "ms", "count"}]}
    {"do": "finish"}                  -> {"peak_mb"}

"cpu_seconds" is this process's and its descendants' CPU time in the turn, "idle_cpu_seconds" what
they took since the turn before: near 0, or the contestant works while others are timed.

PROGRAM.py defines `prepare(task) -> Prepared`. What it cannot do by the user's choice it answers
with {"refused": why}; any other exception ends the process with a traceback on stderr, and the
end of the requests ends it too. Standard library only, for environments without gluon_resnest.
"""

from __future__ import annotations

import json
import math
import os
import resource
import runpy
import sys
import time
from typing import Any, BinaryIO

from contestant import Prepared, Refused
from cpu_time import cpu_seconds

_TURN_SECONDS = 0.3  # at least, so that the clock and the wake-up of threads count little
_MOST_CALLS = 50  # in a turn
_PROFILE_CALLS = (3, 20)  # at least, at most


class Server:
    """Answers requests about the contestant of one program."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._contestant: Prepared
        self._calls = 1
        self._rests_since = 0.0  # CPU time of the end of the last call

    def prepare(self, task: dict[str, Any]) -> dict[str, Any]:
        prepare = runpy.run_path(self._program)["prepare"]  # imports the library
        baseline = peak_memory()
        self._contestant = prepare(task)
        for _ in range(self._contestant.warm_up_calls):
            seconds, _ = self._time_call()
        self._rests_since = cpu_seconds()
        self._calls = self._contestant.calls or min(_MOST_CALLS,
                                                    math.ceil(_TURN_SECONDS / seconds))
        return {"facts": self._contestant.facts, "calls": self._calls, "call_seconds": seconds,
                "baseline_mb": baseline}

    def turn(self) -> dict[str, Any]:
        # The clock of the whole machine, so that turns of several processes can be put in order.
        begin, started = cpu_seconds(), time.monotonic()
        idle = begin - self._rests_since
        seconds, counts = zip(*(self._time_call() for _ in range(self._calls)))
        self._rests_since = cpu_seconds()
        return {"started": started, "seconds": seconds,
                "counts": counts if self._contestant.counts else [],
                "cpu_seconds": self._rests_since - begin, "idle_cpu_seconds": idle}

    def profile(self) -> dict[str, Any]:
        if self._contestant.profile is None:
            raise Refused("cannot be profiled by operator")
        least, most = _PROFILE_CALLS
        calls = min(most, max(least, self._calls))
        return {"calls": calls, "operators": self._contestant.profile(calls)}

    def finish(self) -> dict[str, Any]:
        return {"peak_mb": peak_memory()}

    def _time_call(self) -> tuple[float, Any]:
        """Seconds of a call, and what it returned where that is a count."""
        start = time.perf_counter()
        result = self._contestant.call()
        return time.perf_counter() - start, result if self._contestant.counts else None


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB (10^6 bytes)."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        # Not the first choice: Linux carries it over from the process that started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def take_stdout() -> BinaryIO:
    """The real stdout, for answers alone; what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def main() -> None:
    answers = take_stdout()
    server = Server(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Refused as refusal:
            answer = {"refused": str(refusal)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
