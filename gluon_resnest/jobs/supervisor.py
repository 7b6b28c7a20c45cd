"""Restarts a training job that fails, also with fewer hosts, until it is done or cannot be.

Horovod's elastic mode does not exist for MXNet. It is not needed either: the trainer goes on
exactly where its newest checkpoint was written, with any number of workers. What is left is to
start it again, to tell a fault that passes from one that does not, and to leave nothing running.

Standard library only: this process waits for days beside the one that computes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from gluon_resnest.errors import InputError
from gluon_resnest.jobs.hosts import Host, silent_hosts
from gluon_resnest.jobs.job_command import LAUNCHERS, program_of, run_directory_of, words_of
from gluon_resnest.jobs.job_processes import Job, adopt_orphans
from gluon_resnest.jobs.supervisor_events import STOP, Signals, outcome
from gluon_resnest.plain_text import duration

BAD_INPUT = 2
GIVEN_UP = 1
GRACE = 10.0  # seconds from SIGTERM to SIGKILL for what a job leaves behind
_SETTLE = 1.0  # seconds; what helps a launcher may end a moment after it
_MOST_FUTILE = 2
_LONGEST_PAUSE = 600.0  # seconds; a host that starts again takes less
_CHECKPOINT = re.compile(r"step-([0-9]{8,})")


@dataclass(frozen=True)
class Policy:
    """How often and how soon a job is started again.

    Attributes
    ----------
    max_restarts
        In all, those included for which too few hosts answered.
    backoff
        Seconds before a restart; doubled each time that nothing was gained since the last, up to
        ten minutes.
    min_ranks
        With fewer the job is not started.
    ssh_timeout
        Seconds in which a host must answer.
    """

    max_restarts: int = 10
    backoff: float = 10.0
    min_ranks: int = 1
    ssh_timeout: int = 10


class Supervisor:
    """Runs a command until it succeeds.

    Parameters
    ----------
    command
        The training command; ``--save-dir`` in it names the run directory.
    ranks
        Start it on so many ranks by `horovodrun`; None where there are hosts: on all their slots.
    hosts
        Where; with neither hosts nor ranks the command is run as it is.
    policy
        When to try again.
    say
        Is told each event, in a line.

    Raises
    ------
    InputError
        The command cannot be supervised.
    """

    def __init__(self, command: Sequence[str], ranks: int | None, hosts: tuple[Host, ...] | None,
                 policy: Policy, say: Callable[[str], None]) -> None:
        words = words_of(command)
        self.run_directory = run_directory_of(words)
        self._command, self._policy, self._say = list(command), policy, say
        self._program = program_of(words)
        if hosts is None and ranks is not None:
            hosts = (Host("localhost", ranks),)
        self._hosts = hosts
        self._ranks = ranks or sum(host.slots for host in hosts or ())
        if hosts is not None:
            self._check_ranks()
        self._job: Job | None = None
        self._asked = 0  # number of the signal that asked for the end
        self._starts = 0

    def _check_ranks(self) -> None:
        slots = sum(host.slots for host in self._hosts)
        if self._ranks > slots:
            raise InputError(f"--np {self._ranks} is more than the {slots} slots of the hosts: "
                             "lower it, or give them more slots")
        if self._policy.min_ranks > self._ranks:
            raise InputError(f"--min-np {self._policy.min_ranks} is more than there would be with "
                             f"all hosts: {self._ranks}")
        if Path(self._command[0]).name in LAUNCHERS:
            raise InputError(f"with --np, --hosts or --hostfile the ranks are started here: leave "
                             f"{self._command[0]} out of the command, or leave these flags out")
        if not _horovodrun().exists():
            raise InputError(f"--np, --hosts and --hostfile need {_horovodrun()}, which is not "
                             "there: run this with the Python that has Horovod")

    def run(self) -> int:
        """Exit code for the supervisor.

        0: the command succeeded. 1: given up. 2: bad input. 128 + n: signal n asked for the end.
        """
        adopt_orphans()
        with Signals() as self._signals:
            code = self._run()
        return 128 + self._asked if self._asked else code

    def _run(self) -> int:
        policy, restarts, futile, idle = self._policy, 0, 0, 0
        while True:
            command = self._next_command()
            idle += 1
            if command is not None and not self._asked:
                before = newest_step(self.run_directory)
                code = self._run_once(*command)
                if newest_step(self.run_directory) > before:
                    futile = idle = 0
                else:
                    futile += 1
                if code == 0 and not self._asked:
                    return 0
            if self._asked:
                self._say(f"{signal.Signals(self._asked).name}: ended")
                return GIVEN_UP  # run() has the signal's code
            if command is not None and code == BAD_INPUT and self._starts == futile == 1:
                self._say("given up: the command says that its input is bad (exit code 2)")
                return BAD_INPUT
            if futile == _MOST_FUTILE:
                self._say(f"given up: it failed {futile} times in a row without a new checkpoint "
                          f"in {self.run_directory}")
                return GIVEN_UP
            if restarts == policy.max_restarts:
                self._say(f"given up: all of --max-restarts {restarts} are used up")
                return GIVEN_UP
            restarts += 1
            seconds = min(policy.backoff * 2 ** min(max(0, idle - 1), 30),
                          max(policy.backoff, _LONGEST_PAUSE))
            self._say(f"restarting in {seconds:g} s (attempt {restarts} of {policy.max_restarts})")
            self._pause(seconds)

    # ---- a start ----

    def _next_command(self) -> tuple[list[str], str] | None:
        """What to start, and where in words; None if too few hosts answer."""
        if self._hosts is None:
            return self._command, ""
        silent = silent_hosts(self._hosts, self._policy.ssh_timeout, self._listen,
                              lambda: bool(self._asked))
        if self._asked:
            return None
        for host, reason in silent.items():
            self._say(f"left out: {host} ({reason})")
        hosts = [host for host in self._hosts if host not in silent]
        slots = sum(host.slots for host in hosts)
        ranks = min(self._ranks, slots)
        if ranks < self._policy.min_ranks:
            self._say(f"not started: {slots} slots on the hosts that answer are less than "
                      f"--min-np {self._policy.min_ranks}")
            return None
        places = ",".join(map(str, hosts))
        return ([str(_horovodrun()), "-np", str(ranks), "-H", places, *self._command],
                f" {ranks} of {self._ranks} ranks on {places}")

    def _run_once(self, command: list[str], where: str) -> int:
        """Start the job and wait for its end; its exit code, negative if a signal ended it."""
        began = time.monotonic()
        job = self._job = Job(command, self._program)
        self._starts += 1
        self._say(f"started{where} (process {job.pid}): {shlex.join(command)}")
        try:
            while job.code is None:
                self._listen(5.0)  # SIGCHLD ends the wait
                job.reap()
        except BaseException:  # our own bug: not the job's, but nothing may be left behind
            job.signal_all(signal.SIGKILL)
            raise
        finally:
            self._end_rest(job)
            self._job = None
        newest = newest_step(self.run_directory)
        self._say(f"ended: {outcome(job.code)} after {duration(time.monotonic() - began)}; "
                  + (f"newest checkpoint: step {newest}" if newest >= 0 else "no checkpoint"))
        return job.code

    def _end_rest(self, job: Job) -> None:
        """End what the command left behind: horovodrun's ranks, if that was killed."""
        left = self._wait_for_rest(job, _SETTLE)
        if left:
            self._say(f"ending {left} process(es) that are left of the job")
            job.signal_all(signal.SIGTERM)
            left = self._wait_for_rest(job, GRACE)
        if left:
            left = self._wait_for_rest(job, GRACE, kill=True)
        if left:
            self._say(f"{left} process(es) of the job cannot be ended")

    def _wait_for_rest(self, job: Job, seconds: float, kill: bool = False) -> int:
        """How many processes of the job there still are after some time, at most so long."""
        end = time.monotonic() + seconds
        while True:
            job.reap()
            left = len(job.alive())
            if not left or time.monotonic() >= end:
                return left
            if kill:  # again and again, for what they have started since
                job.signal_all(signal.SIGKILL)
            self._listen(0.1)

    # ---- waiting ----

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            self._listen(end - time.monotonic())

    def _listen(self, seconds: float) -> None:
        """Wait for signals, at most so long, and do what they ask for."""
        for number in self._signals.wait(seconds):
            if number == signal.SIGUSR1:
                told = self._job.save() if self._job else 0
                self._say(f"SIGUSR1: passed on to {told} rank(s) of this host")
            elif number in STOP:
                self._stop(number)

    def _stop(self, number: int) -> None:
        name, job = signal.Signals(number).name, self._job
        if self._asked:
            self._say(f"{name} again: the job is killed")
            if job is not None:
                job.signal_all(signal.SIGKILL)
            return
        self._asked = number
        if job is None or job.code is not None:
            return
        self._say(f"{name}: passed on; waiting for the job to end (another one kills it)")
        # A closed terminal is no reason to end without a checkpoint.
        job.stop(signal.SIGTERM if number == signal.SIGHUP else number)


def newest_step(run_directory: Path) -> int:
    """Step of the newest checkpoint, going by the names alone; -1 if there is none."""
    try:
        names = os.listdir(run_directory / "checkpoints")
    except OSError:
        return -1
    return max((int(found[1]) for found in map(_CHECKPOINT.fullmatch, names) if found),
               default=-1)


def _horovodrun() -> Path:
    return Path(sys.executable).with_name("horovodrun")
