"""Training jobs in processes of their own, to be signalled, killed and watched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import ROOT

LAUNCHER = Path(sys.executable).with_name("horovodrun")
_PATIENCE = 600.0  # for anything that a job should come to; it takes seconds, or minutes under load


class Job:
    """A training command that runs, alone or on the ranks of `horovodrun`.

    Parameters
    ----------
    arguments
        Of Python: a program and its flags, `--save-dir` among them.
    ranks
        More than one start under `horovodrun`.
    environment
        Variables in addition; every rank computes with one thread unless they say otherwise.
    """

    def __init__(self, *arguments, ranks: int = 1, **environment: str) -> None:
        command = [str(part) for part in (sys.executable, *arguments)]
        self.program = command[1]
        self.directory = Path(command[command.index("--save-dir") + 1])
        self.ranks = ranks
        launcher = [str(LAUNCHER), "-np", str(ranks)] if ranks > 1 else []
        self.log = self.directory.with_suffix(f".{time.monotonic_ns()}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.time = time.time()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*launcher, *command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                # What started the tests may have told them to ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment})

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    def steps(self) -> list[int]:
        """Steps that metrics.jsonl tells of."""
        return [record["step"] for record in records(self.directory, "step")]

    def has_begun(self) -> bool:
        """Whether it trains, or has ended."""
        starts = records(self.directory, "start")
        return self.process.poll() is not None or bool(starts and starts[-1]["time"] > self.time)

    def wait_for_step(self, step: int) -> None:
        """Until `step` is in metrics.jsonl, or the job has ended."""
        self.wait_until(lambda: self.process.poll() is not None
                        or max(self.steps(), default=0) >= step, f"step {step}")

    def wait_until(self, condition, what: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < end, f"{what} did not come:\n{self.output[-4000:]}"
            time.sleep(0.005)

    def rank_processes(self) -> list[psutil.Process]:
        """The processes that train, by rank."""
        if self.ranks == 1:
            return [psutil.Process(self.process.pid)]
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.cmdline()[1:2] == [self.program]:
                    found[int(process.environ()["HOROVOD_RANK"])] = process
            except (psutil.Error, KeyError):
                continue
        assert sorted(found) == list(range(self.ranks)), self.output[-4000:]
        return [found[rank] for rank in range(self.ranks)]

    def kill(self) -> None:
        """kill -9 of everything at once."""
        if self.process.poll() is None:
            launcher = psutil.Process(self.process.pid)
            for process in [launcher, *launcher.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.end()

    def end(self, timeout: float = _PATIENCE) -> int:
        """Wait for the job to end, and for its directory to be free again; its exit code."""
        code = self.process.wait(timeout)
        self.wait_until(lambda: not self.alive(), "the end of its processes")
        return code

    def alive(self) -> list[psutil.Process]:
        """Processes that still belong to the job's run."""
        found = []
        for process in psutil.process_iter():
            try:
                if (str(self.directory) in process.cmdline()
                        and process.status() != psutil.STATUS_ZOMBIE):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def records(directory: Path, event: str) -> list[dict]:
    """Whole lines of one kind in the metrics of a run that may be going on."""
    try:
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = text.splitlines()[: text.count("\n")]
    return [record for record in map(json.loads, lines) if record["event"] == event]


def checkpoints(directory: Path) -> list[int]:
    """Steps of the whole checkpoints of a run, ascending."""
    return sorted(int(path.name[5:]) for path in directory.glob("checkpoints/step-*"))


def run_to_end(*arguments, code: int = 0, **options) -> Job:
    """A job that must end with `code`."""
    with Job(*arguments, **options) as job:
        assert job.end() == code, job.output[-4000:]
    return job
