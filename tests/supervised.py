"""Supervisors in processes of their own, and jobs for them: small programs without MXNet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from conftest import ROOT

SCRIPT = ROOT / "scripts" / "run_resilient.py"
TOKEN = "SUPERVISOR_TEST_TOKEN"  # in the environment of all that comes of a supervisor
PATIENCE = 60.0

# What every job begins with. `start` counts its starts (of a rank, where there are ranks).
PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--save-dir") + 1])
run.mkdir(parents=True, exist_ok=True)
rank = os.environ.get("HOROVOD_RANK", "")
def note(name, text="x"):
    with open(run / (name + rank), "a") as file:
        file.write(text)
def checkpoint(step):
    (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
note("starts")
start = len((run / ("starts" + rank)).read_text())
"""


def default_signals() -> None:
    """What started the tests, in the background or by nohup, may have told them to ignore some."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Supervised:
    """A supervisor in a process of its own, and all that it starts.

    Parameters
    ----------
    folder
        Its working directory; the run directory is ``run`` in it.
    flags
        Of the supervisor.
    job
        Python program, without what all have in common.
    launcher, wrapper
        Words before the job's command, and before the supervisor's.
    tools
        Folder of programs that take the place of the system's.
    """

    def __init__(self, folder: Path, flags: str, job: str, launcher=(), wrapper=(),
                 tools: Path | None = None) -> None:
        self.run, self.token = folder / "run", uuid.uuid4().hex
        self.out, self.err = folder / "out", folder / "err"
        self.job = folder / "job.py"
        self.job.write_text(PRELUDE + job, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items()
                       if name != "OMP_NUM_THREADS"}
        environment.update({TOKEN: self.token, "HOME": str(folder)})
        if tools is not None:
            environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
        command = [*wrapper, sys.executable, SCRIPT, "--backoff", "0.1", *flags.split(), "--",
                   *launcher, sys.executable, self.job, "--save-dir", self.run]
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, env=environment, preexec_fn=default_signals)

    def events(self) -> list[str]:
        """What the supervisor said, without the times."""
        found = re.findall(r"^\S+ \S+ supervisor: (.*)$", self.err.read_text(), re.M)
        return [re.sub(r"\d+\.\d s|\d+ min \d+ s", "T", line) for line in found]

    def noted(self, name: str) -> str:
        path = self.run / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, *names: str) -> None:
        """Until the job has noted these."""
        self.wait_until(lambda: all(map(self.noted, names)), " and ".join(names))

    def wait_until(self, condition, what: str, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (
                f"{what} did not come:\n{self.err.read_text()[-4000:]}{self.out.read_text()}")
            time.sleep(0.02)

    def end(self) -> int:
        """Exit code of the supervisor, after which nothing of its job may be there."""
        code = self.process.wait(PATIENCE)
        assert self.left() == []
        return code

    def left(self) -> list[int]:
        """Processes that have the token in their environment: zombies have none."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.token.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(PATIENCE)


def fake_ssh(folder: Path, script: str) -> None:
    """An `ssh` that notes its arguments in ssh.log; `$host` and `$@` are host and command."""
    path = folder / "ssh"
    path.write_text(f"""#!/bin/bash
echo "$*" >> {folder}/ssh.log
while :; do case $1 in
    -o) shift 2;;
    *) [ -n "$host" ] && break; host=$1; shift;;
esac; done
{script}
""")
    path.chmod(0o755)
