"""Contestants in processes of their own, timed in turns: A, B, C, A, B, C ...

Machines drift: other tenants, clock rates, temperature. What runs in turns drifts alike, so
ratios of neighbouring turns hold where times do not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gluon_resnest.errors import InputError
from gluon_resnest.progress_bar import progress_bar

PROGRAMS = Path(__file__).resolve().parent / "programs"
# Otherwise MXNet runs several operators as one, and profiles them as one.
_PROFILE_VARIABLES = {"MXNET_EXEC_BULK_EXEC_TRAIN": "0", "MXNET_EXEC_BULK_EXEC_INFERENCE": "0"}
_TAIL_LINES = 12
_REST_SECONDS = 0.15  # before a turn: ONNX Runtime's threads spin on for 0.05 s after theirs
_ENDING_SECONDS = 5  # from the end of its answers to the end of a process


class ContestError(RuntimeError):
    """A contestant died, hung or answered nonsense: one line, then the last of its stderr."""


@dataclass(frozen=True)
class Contestant:
    """A process to be timed.

    Attributes
    ----------
    label
        For people; no two in a contest have the same.
    python, program
        Interpreter, and the program of :data:`PROGRAMS` that it serves.
    task
        What the program is asked to prepare.
    environment
        All environment variables.
    flop
        Floating-point operations of a call, or None where they are not known.
    """

    label: str
    python: Path
    program: Path
    task: dict[str, Any]
    environment: dict[str, str]
    flop: float | None = None


@dataclass(frozen=True)
class Limits:
    """Seconds without an answer after which a contestant counts as hanging.

    A turn may also take ten times as long as the last call of the warm-up promised.
    """

    prepare: float = 1800
    turn: float = 60


@dataclass
class ContestRecord:
    """What a contestant did, for each round.

    Attributes
    ----------
    started, turns
        When its turn began (s), and the seconds of each call.
    cpu_seconds, idle_cpu_seconds
        CPU time of its process and of all that it started: in the turn, and since the turn before
        (the warm-up), while others were timed.
    counts
        What each call handled, such as images; empty turns where the program does not tell.
    """

    contestant: Contestant
    facts: dict[str, Any]
    baseline_mb: float
    peak_mb: float = 0.0
    started: list[float] = field(default_factory=list)
    turns: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    idle_cpu_seconds: list[float] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)


def contest(
    contestants: Sequence[Contestant], rounds: int, limits: Limits = Limits()
) -> list[ContestRecord]:
    """Prepare all contestants, one after the other, and time them in turns.

    Returns
    -------
    list of ContestRecord
        In the order of `contestants`, with `rounds` turns each. No process is left behind,
        however this ends.

    Raises
    ------
    InputError
        If a contestant refuses its task, such as a network that its library lacks.
    ContestError
        If one dies, hangs or answers nonsense.
    """
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(total=len(contestants) * (rounds + 1),
                                               unit="turn"))
        records, processes, turn_limits = [], [], []
        for contestant in contestants:
            bar.set_description(f"preparing {contestant.label}")
            process = stack.enter_context(_started(contestant))
            answer = process.ask("prepare", limits.prepare)
            processes.append(process)
            turn_limits.append(max(limits.turn, 10 * answer["calls"] * answer["call_seconds"]))
            records.append(ContestRecord(contestant, answer["facts"], answer["baseline_mb"]))
            bar.update()
        for number in range(1, rounds + 1):
            bar.set_description(f"round {number}")
            for process, record, limit in zip(processes, records, turn_limits):
                time.sleep(_REST_SECONDS)
                answer = process.ask("turn", limit)
                record.started.append(answer["started"])
                record.turns.append(answer["seconds"])
                record.cpu_seconds.append(answer["cpu_seconds"])
                record.idle_cpu_seconds.append(answer["idle_cpu_seconds"])
                record.counts.append(answer["counts"])
                bar.update()
        for process, record in zip(processes, records):
            record.peak_mb = process.ask("finish", limits.turn)["peak_mb"]
    return records


@dataclass(frozen=True)
class Profile:
    """Operators of a contestant: ``operator``, and ``ms`` and ``count`` in all `calls` calls."""

    contestant: Contestant
    calls: int
    operators: list[dict[str, Any]]


def profiles(contestants: Sequence[Contestant], limits: Limits = Limits()) -> list[Profile]:
    """Profile each contestant, one after the other. Raises as :func:`contest` does."""
    found = []
    for contestant in progress_bar(contestants, desc="profiling", unit="contestant"):
        contestant = replace(
            contestant, environment={**contestant.environment, **_PROFILE_VARIABLES})
        with _started(contestant) as process:
            process.ask("prepare", limits.prepare)
            found.append(Profile(contestant, **process.ask("profile", limits.prepare)))
    return found


@contextmanager
def _started(contestant: Contestant) -> Iterator[_Process]:
    """A process of `contestant`, with a folder for its files; both gone in the end."""
    with tempfile.TemporaryDirectory(prefix="gluon-resnest-") as scratch:
        with closing(_Process(contestant, scratch)) as process:
            yield process


class _Process:
    """A running contestant, spoken to as programs/serve.py says."""

    def __init__(self, contestant: Contestant, scratch: str) -> None:
        self._contestant = contestant
        self._task = {**contestant.task, "scratch": scratch}
        self._hanging = False
        self._errors = tempfile.TemporaryFile()
        # In a session of its own: a Ctrl-C in the terminal is for the driver, which then ends it
        # together with whatever it has started itself. Killed, it leaves what its libraries keep
        # in the folder for temporary files.
        self._process = subprocess.Popen(
            [str(contestant.python), str(PROGRAMS / "serve.py"), str(contestant.program)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**contestant.environment, "TMPDIR": scratch}, start_new_session=True)

    def ask(self, request: str, limit: float) -> dict[str, Any]:
        """The answer to a request, which must come within `limit` seconds."""
        message = {"do": request, **({"task": self._task} if request == "prepare" else {})}
        timer = threading.Timer(limit, self._end_hanging)
        timer.start()
        try:
            with suppress(BrokenPipeError):  # it died: its last words may be on stdout
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        try:
            answer = json.loads(line)
        except ValueError:  # also where there is no line at all
            raise ContestError(self._problem(request, line, limit)) from None
        if "refused" in answer:
            raise InputError(f"{self._contestant.label}: {answer['refused']}")
        return answer

    def close(self) -> None:
        """Kill the process and what it has started; it has nothing to save."""
        if self._process.returncode is None:
            self._kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # a request that a dead process never read
                stream.close()

    def _kill(self) -> None:
        # Not waited for yet, so its number cannot be another's.
        os.killpg(self._process.pid, signal.SIGKILL)

    def _let_end(self) -> None:
        """Wait a little until the process has ended by itself, for its own exit code."""
        deadline = time.monotonic() + _ENDING_SECONDS
        while time.monotonic() < deadline and not os.waitid(
                os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.02)

    def _end_hanging(self) -> None:
        self._hanging = True
        self._kill()

    def _problem(self, request: str, line: bytes, limit: float) -> str:
        label = self._contestant.label
        if self._hanging:
            what = f"gave no answer to '{request}' in {limit:g} s"
        elif line:
            what = f"answered {line[:80]!r} to '{request}', which is no JSON"
        else:
            self._let_end()
            self._kill()
            code = self._process.wait()
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            what = f"died ({reason}) when it was to answer '{request}'"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        tail = [f"    {text.rstrip()}" for text in lines if text.strip()][-_TAIL_LINES:]
        return "\n".join([f"{label} {what}; the last that it wrote:" if tail
                          else f"{label} {what}, and wrote nothing", *tail])
