"""How far a task is: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT, run_tool
from jobs import run_to_end

from gluon_resnest import progress_bar as module
from gluon_resnest.plain_text import duration
from gluon_resnest.progress_bar import ProgressLines, progress_bar

LINE = re.compile(r"epoch (\d)/2: step (\d+)/15, loss (\d+\.\d{3}), lr ([\d.e-]+), "
                  r"([\d.]+) images/s, data \d+%, (.+) left")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_line_each_half_minute(clock, capsys):
    with ProgressLines(None, 100, "pack", "image", leave=True) as bar:
        for _ in range(100):
            clock.now += 1.5
            bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "pack: image 20/100, 0.667 images/s, 2 min 0 s left",
        "pack: image 40/100, 0.667 images/s, 1 min 30 s left",
        "pack: image 60/100, 0.667 images/s, 1 min 0 s left",
        "pack: image 80/100, 0.667 images/s, 30.0 s left",
        "pack: image 100/100, 0.667 images/s"]


def test_short_tasks_say_nothing_unless_told_to(clock, capsys):
    assert list(progress_bar("abc", desc="comparing", unit="batch")) == ["a", "b", "c"]
    assert list(progress_bar("abc", enabled=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    clock.now += 5
    list(progress_bar("abc", desc="ranges", unit="batch", leave=True))
    assert capsys.readouterr().err == "ranges: batch 3/3\n"


def test_what_is_counted(clock, capsys):
    for count, words in ((1_000_000_000, (None, 4_000_000_000, "scan a.rec", "B")),
                         (2, (None, None, "", "batch")),
                         (2, (None, 10, "epoch 1/2", "step", 5))):
        bar = ProgressLines(*words)
        clock.now += 40
        bar.update(count)
        bar.say()  # nothing new
    assert capsys.readouterr().err.splitlines() == [
        "scan a.rec: MB 1,000/4,000, 25 MB/s, 2 min 0 s left",
        "batch 2, 0.05 batches/s",
        "epoch 1/2: step 7/10, 0.05 steps/s, 1 min 0 s left"]


@pytest.mark.parametrize(("seconds", "words"), [
    (0, "0.0 s"), (59.4, "59.4 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"),
    (3600, "1 h 0 min"), (86399, "23 h 59 min"), (90000, "1 d 1 h")])
def test_durations(seconds, words):
    assert duration(seconds) == words


def train(digits, save_dir, *more) -> list:
    return ["train_imagenet.py", "--model", "resnest14", "--no-cuda", "--input-size", 32,
            "--no-auto-aug", "--rec-train", digits / "train.rec", "--rec-val", digits / "val.rec",
            "--batch-size", 16, "--num-epochs", 2, "--warmup-epochs", 0, "--save-dir", save_dir,
            *more]


@pytest.mark.slow
def test_the_log_of_a_run_has_plain_lines(digits, tmp_path):
    """One at each --log-interval, one at the end of an epoch, none torn."""
    job = run_to_end(*train(digits, tmp_path / "run", "--log-interval", 6), OMP_NUM_THREADS="2")
    text = job.log.read_bytes()
    assert b"\r" not in text
    assert b"\x1b" not in text
    lines = job.output.splitlines()
    found = [LINE.fullmatch(line) for line in lines if line.startswith("epoch") and "step" in line]
    assert [(match[1], match[2]) for match in found] == [
        ("1", "6"), ("1", "12"), ("1", "15"), ("2", "3"), ("2", "9"), ("2", "15")]
    assert found[-1][6] == "0.0 s"
    assert sum(": validation top-1" in line for line in lines) == 2


def test_a_line_comes_by_the_clock_too(digits, tmp_path):
    program = tmp_path / "often.py"
    program.write_text(
        "import runpy\n"
        "from gluon_resnest import progress_bar\n"
        "progress_bar.EVERY = 0\n"
        f"runpy.run_path({str(ROOT / 'train_imagenet.py')!r}, run_name='__main__')\n")
    job = run_to_end(program, *train(digits, tmp_path / "run", "--steps", 4)[1:],
                     PYTHONPATH=str(ROOT), OMP_NUM_THREADS="2")
    assert re.findall(r"^epoch 1/2: step (\d+)/15", job.output, re.M) == list("1234")
    assert "validation: batch 4/4, " in job.output


def test_tools_draw_no_bar_in_a_log(digits, tmp_path):
    done = run_tool("scripts/pack_records.py", digits / "val", tmp_path / "val")
    assert re.fullmatch(r"pack: image 61/61, [\d.,]+ images/s\n", done.stderr)
    done = run_tool("scripts/pack_records.py", "--verify", tmp_path / "val.rec")
    assert re.fullmatch(r"verify: record 61/61, [\d.,]+ records/s\n", done.stderr)


@pytest.mark.slow
def test_a_terminal_has_a_bar(digits, tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 150, 0, 0))  # rows, columns
    command = [sys.executable, *map(str, train(digits, tmp_path / "run", "--steps", 3))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=theirs) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux's word for the end of a terminal
                part = b""
            if not part:
                break
            text += part
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\repoch 1/2: +20%\|.* 3/15 .*<.*loss \d.* left", text)
