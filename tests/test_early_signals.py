"""Signals before the first step, and ranks that go while others wait for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from jobs import Job

TRAIN = f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n"
# Sends itself a signal when the first of the imports that take seconds begins.
DURING_IMPORTS = """
import os, runpy, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == "gluon_resnest":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Sender())
sys.argv = ["train_imagenet.py", "--recipe", "list"]
"""
# Says in a file of its own that a rank has begun to import what takes seconds. The ranks named stay
# in that import, however long the signal takes to reach them: horovodrun passes it on in its own
# time, and by then a rank would train.
STAYS_IN_THE_IMPORTS = """
import os, runpy, sys, time
class Teller:
    def find_spec(self, name, path=None, target=None):
        if name == "mxnet":
            sys.meta_path.remove(self)
            rank = os.environ["HOROVOD_RANK"]
            open({path!r} + rank, "w").close()
            time.sleep(300 * (rank in {ranks!r}))
sys.meta_path.insert(0, Teller())
"""
# Sends one of the ranks a signal once the run directory is locked, and before it is written.
AFTER_THE_LOCK = """
import os, runpy, signal, time
from gluon_resnest.training import resume, run
original = resume._look
def look(of, saver):
    found = original(of, saver)
    send(of)
    return found
def send(of):
    if of.workers.rank == {rank}:
        os.kill(os.getpid(), {number})
original_begin = run.begin_or_resume
def begin(of):
    if of.workers.rank != 0:
        send(of)
    return original_begin(of)
resume._look = look
run.begin_or_resume = begin
"""


def train(digits, save_dir) -> list:
    return ["--model", "resnest14", "--no-cuda", "--input-size", 32, "--no-auto-aug",
            "--rec-train", digits / "train.rec", "--batch-size", 8, "--num-epochs", 100,
            "--warmup-epochs", 0, "--log-interval", 1, "--save-dir", save_dir]


def during_imports(number: int) -> subprocess.CompletedProcess:
    code = DURING_IMPORTS.format(number=int(number)) + TRAIN
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def test_sigusr1_during_the_imports_does_not_end_a_run():
    done = during_imports(signal.SIGUSR1)
    assert done.returncode == 0, done.stderr
    assert "resnest50" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_others_during_the_imports_end_it_at_once_and_without_a_word(number):
    done = during_imports(number)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("target", "staying"), [("horovodrun", "01"), ("rank 1", "1")])
def test_a_signal_under_horovodrun_during_the_imports(target, staying, number, digits, tmp_path):
    """Rank 0 imports as well, or has gone on to wait for rank 1."""
    program, told = tmp_path / "tells.py", tmp_path / "imports."
    program.write_text(STAYS_IN_THE_IMPORTS.format(path=str(told), ranks=staying) + TRAIN)
    run = tmp_path / "run"
    with Job(program, *train(digits, run), ranks=2, PYTHONPATH=str(ROOT)) as job:
        job.wait_until(lambda: len(list(tmp_path.glob("imports.*"))) == 2, "the imports")
        os.kill(job.process.pid if target == "horovodrun" else job.rank_processes()[1].pid, number)
        assert job.end() != 0
    ranks = [line for line in job.output.splitlines() if line.startswith(("[0]", "[1]"))]
    assert not any("Traceback" in line for line in ranks), job.output[-4000:]
    assert not run.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_leaves_no_lock(number, code, digits, tmp_path):
    program = tmp_path / "early.py"
    program.write_text(AFTER_THE_LOCK.format(rank=0, number=int(number)) + TRAIN)
    run = tmp_path / "run"
    with Job(program, *train(digits, run), PYTHONPATH=str(ROOT)) as job:
        assert job.end() == code, job.output[-3000:]
    assert f"{signal.Signals(number).name} after step 0; no checkpoint was written" in job.output
    assert "Traceback" not in job.output
    assert not (run / "run.lock").exists()
    with Job("train_imagenet.py", *train(digits, run), "--steps", 1) as job:
        assert job.end() == 0, job.output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["NaiveEngine", "ThreadedEnginePerDevice"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ranks_before_the_first_step(rank, engine, digits, tmp_path):
    program = tmp_path / "early.py"
    program.write_text(AFTER_THE_LOCK.format(rank=rank, number=int(signal.SIGINT)) + TRAIN)
    run = tmp_path / "run"
    with Job(program, *train(digits, run), ranks=2, PYTHONPATH=str(ROOT),
             MXNET_ENGINE_TYPE=engine) as job:
        assert job.end() != 0
        assert not job.alive()
    ranks = [line for line in job.output.splitlines() if line.startswith(("[0]", "[1]"))]
    assert not any("Traceback" in line for line in ranks), job.output[-4000:]
    assert "after step 0; no checkpoint was written" in job.output
    assert not (run / "run.lock").exists()
    assert not list(run.glob("checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["NaiveEngine", "ThreadedEnginePerDevice"])
@pytest.mark.parametrize("operation", ["sum", "gather", "add_up", "broadcast", "step"])
def test_nobody_goes_on_with_what_a_lost_rank_leaves_behind(operation, engine, tmp_path):
    if operation in ("broadcast",) and engine != "NaiveEngine":
        pytest.skip("nothing is read here, so nothing is told: it is where the values are read")
    launcher = os.path.join(os.path.dirname(sys.executable), "horovodrun")
    done = subprocess.run(
        [launcher, "-np", "2", sys.executable, "tests/programs/lost_peer.py", operation],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
             "MXNET_ENGINE_TYPE": engine})
    assert "told: True" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "went on" not in done.stdout
