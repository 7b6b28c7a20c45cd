"""A job and all the processes that come of it: started, told, and ended to the last one.

Linux gives the supervisor every process of the job whose parent has died, whatever session it is
in (``PR_SET_CHILD_SUBREAPER``), so what descends from the supervisor is the job. Elsewhere only the
job's process group is told to end, and what the job leaves behind is not found.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gluon_resnest.errors import InputError
from gluon_resnest.jobs.job_command import runs

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
_FORWARDS_SIGNALS = "srun"  # to the tasks on all hosts, none of which descends from it

# Looked up here: between fork and exec nothing should be loaded any more.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent has ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _PRCTL is not None:
        _PRCTL(option, ctypes.c_ulong(value), 0, 0, 0)


class Job:
    """A command that runs in a session of its own, and ends if this process does.

    Parameters
    ----------
    command
        To be run; its output goes where this process's goes.
    program
        The training script (or ``-m`` module) in it, by which :meth:`ranks` knows its processes.

    Attributes
    ----------
    code
        Exit code of the command, negative if a signal ended it; None while it runs.

    Raises
    ------
    InputError
        The command cannot be started.
    """

    def __init__(self, command: Sequence[str], program: str | None) -> None:
        self.code: int | None = None
        self._program = program
        # Of the shell that became this process by `exec`, or an ssh that others share.
        self._strangers = set(_descendants())
        supervisor = os.getpid()

        def prepare() -> None:  # runs in the child, before the command does
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:  # it was killed a moment ago: no signal will come
                os._exit(1)

        try:
            # A second start could not read standard input again, so not even the first one does.
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=prepare)
        except OSError as error:
            raise InputError(f"cannot start '{command[0]}': {error.strerror or error}; check its "
                             "path, and that its environment is active") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def reap(self) -> None:
        """Take note of processes that have ended: the command, and orphans that came here."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.code = (-os.WTERMSIG(status) if os.WIFSIGNALED(status)
                             else os.WEXITSTATUS(status))
                self._process.returncode = self.code  # or Popen would wait for it, too

    def alive(self) -> list[int]:
        """Processes of the job that have not ended."""
        # Twice, as one whose parent ends while the list is made may be in neither's place.
        return list(_descendants(self._strangers) or _descendants(self._strangers))

    def ranks(self) -> list[int]:
        """Processes of this host that run the training program itself, each rank once."""
        found = {pid: parent for pid, parent in _descendants(self._strangers).items()
                 if runs(_arguments(pid), self._program)}
        return [pid for pid, parent in found.items() if parent not in found]

    def save(self) -> int:
        """SIGUSR1 to the ranks on this host; to how many processes it went.

        Only to these: it ends `horovodrun`, shells and whatever else does not expect it. `srun`
        does, and has it reach the ranks of all hosts. A rank that has only begun would end, too.
        """
        ranks = self.ranks()
        if ranks:
            return _send(signal.SIGUSR1, [pid for pid in ranks if _catches(pid, signal.SIGUSR1)])
        return _send(signal.SIGUSR1, [pid for pid in self.alive()
                                      if Path(_arguments(pid)[0]).name == _FORWARDS_SIGNALS])

    def stop(self, number: int) -> None:
        """Pass on the wish to end: to the ranks on this host, or else to the process group.

        The ranks agree on a step, write a checkpoint and end, those of other hosts with them, and
        the launcher follows. If `horovodrun` got the signal it would kill the ranks 5 seconds
        later, checkpoint or not; where /bin/sh is bash, which becomes the rank, it even stops them
        (SIGSTOP) before they can do anything (Horovod 0.28.1, `safe_shell_exec.py`). If both got
        it, a rank would be told twice, which ends it at once.
        """
        if not _send(number, self.ranks()):
            self._to_group(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the job."""
        if not _send(number, self.alive()):
            self._to_group(number)

    def _to_group(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _send(number: int, pids: Sequence[int]) -> int:
    sent = 0
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            sent += 1
    return sent


def _descendants(without: Collection[int] = ()) -> dict[int, int]:
    """Parent of each living descendant of this process, leaving out those of some."""
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for pid, parent, state in _processes():
        children.setdefault(parent, []).append(pid)
        states[pid] = state
    found: dict[int, int] = {}
    parents = [os.getpid()]
    while parents:
        parent = parents.pop()
        for pid in children.get(parent, ()):
            if pid not in without:
                parents.append(pid)
                if states[pid] not in "ZX":
                    found[pid] = parent
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent and state of each process."""
    with suppress(OSError):
        for name in os.listdir(_PROC):
            if name.isdigit():
                with suppress(OSError):
                    # The name of the program, in parentheses, may hold anything.
                    fields = (_PROC / name / "stat").read_text(errors="replace")
                    state, parent = fields.rpartition(")")[2].split()[:2]
                    yield int(name), int(parent), state


def _arguments(pid: int) -> list[str]:
    """Command line of a process, at least one word."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")[:-1] or [""]
    except OSError:
        return [""]


def _catches(pid: int, number: int) -> bool:
    """Whether a process has said what it does on a signal."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
