"""Signals, full disks, dead and hung ranks: what is left, and how soon everything ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from jobs import Job, checkpoints, records, run_to_end

HOROVODS_GRACE = 5.0  # seconds from SIGTERM to SIGKILL


def arguments(digits: Path, save_dir: Path, *more) -> list:
    """A run that ends only if it is told to."""
    return ["train_imagenet.py", "--model", "resnest14", "--no-cuda", "--input-size", 32,
            "--no-auto-aug", "--rec-train", digits / "train.rec", "--batch-size", 8,
            "--num-epochs", 1000, "--log-interval", 1, "--save-dir", save_dir, *more]


def assert_goes_on(digits: Path, save_dir: Path, *more) -> None:
    """One worker takes two more steps from the newest checkpoint."""
    newest = checkpoints(save_dir)[-1]
    job = run_to_end(*arguments(digits, save_dir, "--steps", newest + 2, *more))
    assert f"after step {newest} " in job.output
    assert checkpoints(save_dir)[-1] == newest + 2


@pytest.mark.slow
@pytest.mark.parametrize("target", ["horovodrun", "rank 0", "rank 1"])
def test_sigterm_leaves_a_checkpoint_in_time(target, digits, tmp_path):
    with Job(*arguments(digits, tmp_path / "run"), ranks=2) as job:
        job.wait_for_step(3)
        ranks = job.rank_processes()
        hit = job.process.pid if target == "horovodrun" else ranks[int(target[-1])].pid
        sent = time.monotonic()
        os.kill(hit, signal.SIGTERM)
        psutil.wait_procs(ranks, timeout=60)
        seconds = time.monotonic() - sent
        assert job.end() != 0
    reached = max(job.steps())
    assert checkpoints(tmp_path / "run")[-1] == reached >= 3
    assert seconds < HOROVODS_GRACE
    assert f"SIGTERM after step {reached}" in job.output
    assert "Exit code: 137" not in job.output  # nobody had to be killed
    assert not (tmp_path / "run" / "run.lock").exists()
    assert_goes_on(digits, tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_worker_alone_stops_when_it_is_told_to(number, code, digits, tmp_path):
    with Job(*arguments(digits, tmp_path / "run")) as job:
        job.wait_for_step(2)
        job.process.send_signal(number)
        assert job.end() == code
    assert checkpoints(tmp_path / "run") == [max(job.steps())]
    assert_goes_on(digits, tmp_path / "run")


@pytest.mark.slow
def test_sigusr1_writes_a_checkpoint_and_goes_on(digits, tmp_path):
    with Job(*arguments(digits, tmp_path / "run"), ranks=2) as job:
        job.wait_for_step(2)
        job.rank_processes()[1].send_signal(signal.SIGUSR1)
        job.wait_until(lambda: checkpoints(tmp_path / "run") or job.process.poll() is not None,
                       "a checkpoint")
        (saved,) = checkpoints(tmp_path / "run")
        job.wait_for_step(max(job.steps()) + 3)
        assert job.process.poll() is None
        job.kill()
    assert 2 <= saved < max(job.steps())
    assert_goes_on(digits, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_the_run(rank, digits, tmp_path):
    with Job(*arguments(digits, tmp_path / "run", "--checkpoint-steps", 2), ranks=2) as job:
        job.wait_for_step(5)
        job.rank_processes()[rank].kill()
        assert job.end(timeout=30) != 0
        assert not job.alive()
    assert_goes_on(digits, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank_ends_the_run(rank, digits, tmp_path):
    flags = ("--checkpoint-steps", 2, "--hang-timeout", 5)
    with Job(*arguments(digits, tmp_path / "run", *flags), ranks=2) as job:
        job.wait_for_step(5)
        job.rank_processes()[rank].suspend()
        # Five seconds, and those that Horovod gives a rank that does not answer.
        assert job.end(timeout=60) != 0
        assert not job.alive()
    assert "has finished nothing for" in job.output
    # The other one's watchdog saw it, and says what that one was waiting for.
    assert re.search(r'File ".*step_sums.py", line \d+ in wait', job.output)
    assert_goes_on(digits, tmp_path / "run")


@pytest.mark.slow
def test_stacks_show_where_a_rank_hangs(digits, tmp_path):
    """Rank 1 never comes back from its data; both logs say so, by the name of the function."""
    program = tmp_path / "hang.py"
    program.write_text(
        "import runpy, time\n"
        "from gluon_resnest.training.trainer import Trainer\n"
        "original = Trainer._train_step\n"
        "def waits_for_a_dead_disk():\n"
        "    time.sleep(1000)\n"
        "def hang(self, *arguments):\n"
        "    if self.progress.step == 3 and self.workers.rank == 1:\n"
        "        waits_for_a_dead_disk()\n"
        "    return original(self, *arguments)\n"
        "Trainer._train_step = hang\n"
        f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n")
    flags = arguments(digits, tmp_path / "run", "--hang-timeout", 4)[1:]
    with Job(program, *flags, ranks=2, PYTHONPATH=str(ROOT)) as job:
        assert job.end(timeout=60) != 0
    stacks = [line.partition(">:")[2] for line in job.output.splitlines()
              if line.startswith("[1]<stderr>:")]
    place = next((number for number, line in enumerate(stacks)
                  if line.endswith(" in waits_for_a_dead_disk")), None)
    assert place is not None, job.output[-4000:]
    assert stacks[place + 1].endswith(" in hang")
    assert any("rank 1 of 2 has finished nothing for 4 s (last: step 3)" in line
               for line in stacks[:place])
    assert any(re.match(r"Thread 0x[0-9a-f]+ ", line) for line in stacks)  # others, such as loaders


def test_a_hung_worker_alone_ends_itself(digits, tmp_path):
    """Its only thread sleeps in a step; the watchdog does not."""
    program = tmp_path / "hang.py"
    program.write_text(
        "import runpy, sys, time\n"
        "from gluon_resnest.training.trainer import Trainer\n"
        "original = Trainer._train_step\n"
        "def hang(self, *arguments):\n"
        "    if self.progress.step == 3:\n"
        "        time.sleep(1000)\n"
        "    return original(self, *arguments)\n"
        "Trainer._train_step = hang\n"
        f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n")
    flags = arguments(digits, tmp_path / "run", "--hang-timeout", 3)[1:]
    with Job(program, *flags, PYTHONPATH=str(ROOT)) as job:
        assert job.end(timeout=60) == 75
    assert "the run has finished nothing for" in job.output
    assert "(last: step 3)" in job.output
    assert re.search(r'File ".*hang.py", line \d+ in hang', job.output)


def limited(bytes_a_file: int) -> list:
    """A program that runs the rest of its arguments with files no larger than that.

    To write beyond it fails like on a full disk, but for the word.
    """
    return ["-c", "import resource, runpy, sys\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file}))\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"]


def test_a_disk_that_is_full_ends_the_run_after_three_tries(digits, tmp_path):
    """The checkpoint before stays; with room again the run goes on from it."""
    run = tmp_path / "run"
    run_to_end(*arguments(digits, run, "--steps", 2))
    command = arguments(digits, run, "--checkpoint-steps", 2)
    job = run_to_end(*limited(5_000_000), *command, code=2)
    lines = job.output.splitlines()
    warnings = [line for line in lines if line.startswith("warning: cannot write")]
    assert len(warnings) == 2, job.output
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "step-00000008" in error
    assert "third time in a row" in error
    assert checkpoints(run) == [2]
    assert not list(run.glob("**/*.tmp"))
    assert_goes_on(digits, run)


def in_namespace(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["unshare", "-rm", "sh", "-c", *command], capture_output=True, text=True,
                          check=False, timeout=120, cwd=ROOT)


needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None
    or in_namespace("mount -t tmpfs none /mnt").returncode != 0,
    reason="this machine allows no mounts of one's own")


@needs_mounts
def test_a_read_only_directory_is_refused(digits, tmp_path):
    run = tmp_path / "run"
    run_to_end(*arguments(digits, run, "--steps", 2))
    command = map(str, arguments(digits, run))
    done = in_namespace(f"mount --bind {run} {run} && mount -o remount,ro,bind {run} && "
                        f"exec {sys.executable} {' '.join(command)}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert f"cannot write to --save-dir {run}: Read-only file system" in done.stderr


@needs_mounts
def test_a_small_disk_is_named_before_it_is_full(digits, tmp_path):
    """A real one, with room for one checkpoint and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = map(str, arguments(digits, disk / "run", "--checkpoint-steps", 2))
    done = in_namespace(f"mount -t tmpfs -o size=100m none {disk} && {sys.executable} "
                        f"{' '.join(command)}; code=$?; ls {disk}/run/checkpoints; exit $code")
    assert done.returncode == 2, done.stderr
    assert "are free" in done.stderr or "No space left" in done.stderr
    assert done.stdout.splitlines()[-1] == "step-00000002"


def test_two_runs_in_one_directory(digits, tmp_path, tool):
    with Job(*arguments(digits, tmp_path / "run")) as job:
        job.wait_for_step(1)
        code, stderr = tool(*arguments(digits, tmp_path / "run"))
        assert code == 2
        assert f"is being written by process {job.process.pid} on " in stderr
        reached = max(job.steps())
        job.wait_for_step(reached + 1)
        assert job.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_directory_that_is_taken_away_is_written_again(how, digits, tmp_path):
    run = tmp_path / "run"
    flags = ("--rec-val", digits / "val.rec", "--steps", 25)
    with Job(*arguments(digits, run, *flags)) as job:
        job.wait_for_step(3)
        run.rename(tmp_path / "away")
        if how == "deleted":
            shutil.rmtree(tmp_path / "away")
        assert job.end() == 0, job.output[-3000:]
    assert job.steps() == list(range(1, 26))
    assert checkpoints(run)[-1] == 25
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "classes.txt", "metrics.jsonl", "last.params", "best.params", "result.json",
        "learning_curve.png"}
    assert f"warning: {run} was deleted or moved while the run goes on" in job.output
    assert not (run / "run.lock").exists()
    assert_goes_on(digits, run, "--rec-val", digits / "val.rec")


@pytest.mark.slow
def test_another_run_in_the_place_of_a_deleted_one_is_left_alone(digits, tmp_path):
    run = tmp_path / "run"
    with Job(*arguments(digits, run)) as first:
        first.wait_for_step(2)
        first.process.send_signal(signal.SIGSTOP)
        shutil.rmtree(run)
        with Job(*arguments(digits, run, "--seed", 1)) as second:
            second.wait_for_step(2)
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(60) == 2
            assert "another one has taken its place" in first.output
            second.wait_for_step(max(second.steps()) + 2)
            second.process.send_signal(signal.SIGTERM)
            assert second.end() == 143
    assert "seed: 1" in (run / "config.yaml").read_text()
    assert checkpoints(run)


@pytest.mark.slow
def test_weights_that_are_not_finite_end_the_run_by_name(digits, tmp_path):
    """Both ranks know, and the last good checkpoint stays the last."""
    run = tmp_path / "run"
    run_to_end(*arguments(digits, run, "--steps", 2), ranks=2)
    flags = ("--lr", "1e18", "--warmup-epochs", 0, "--override")
    job = run_to_end(*arguments(digits, run, *flags), ranks=2, code=1)
    # The loss's or, where that stays finite for a step, a gradient's.
    (error,) = [line for line in job.output.splitlines() if re.search(r"infinite.* at step", line)]
    assert "error: " in error
    assert "the first such tensor: " in error
    assert checkpoints(run) == [2]
    assert not records(run, "rollback")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("target", ["horovodrun", "rank 1"])
def test_a_signal_in_validation_keeps_the_epoch(target, number, digits, tmp_path):
    """Its checkpoint is there already; the ranks need not agree on anything."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import runpy, time\n"
        "from gluon_resnest.training.validation import Validation\n"
        "original = Validation._watched\n"
        "def slow(self):\n"
        "    for batch in original(self):\n"
        "        print('validates', flush=True)\n"
        "        time.sleep(0.5 + 0.5 * self._workers.rank)\n"
        "        yield batch\n"
        "Validation._watched = slow\n"
        f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n")
    # Four steps, and fifteen batches of validation: horovodrun passes a signal on after seconds.
    records_given = ("--rec-train", digits / "val.rec", "--rec-val", digits / "train.rec")
    flags = arguments(digits, tmp_path / "run", *records_given)[1:]
    with Job(program, *flags, ranks=2, PYTHONPATH=str(ROOT)) as job:
        job.wait_until(lambda: job.output.count("validates") >= 2, "validation")
        hit = job.process.pid if target == "horovodrun" else job.rank_processes()[1].pid
        os.kill(hit, number)
        assert job.end() != 0
    # Nobody had to be killed.
    assert ("SIGTERM after step 4; a checkpoint has step 4" if target == "horovodrun" else
            f"Exit code: {128 + number}") in job.output, job.output[-4000:]
    assert not re.search(r"\[\d\]<stderr>:.*Traceback", job.output), job.output[-4000:]
    assert checkpoints(tmp_path / "run") == [4]
    assert_goes_on(digits, tmp_path / "run", *records_given)
