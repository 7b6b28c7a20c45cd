"""metrics.jsonl and TensorBoard's events: what is written, what survives, and what is cut."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gluon_resnest.errors import InputError
from gluon_resnest.runs import tensorboard
from gluon_resnest.runs.metrics import MetricsLog, read_metrics
from gluon_resnest.runs.steady_file import SteadyFile


def strict_lines(folder: Path) -> list[dict]:
    """Lines of metrics.jsonl, each strict JSON: without Python's NaN and Infinity."""
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text[:-1].split("\n")]


# ---- TensorFlow's records, read without tensorboardX's writer ----


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, bit by bit (RFC 3720, B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(file: Path) -> list[Event]:
    data, events = file.read_bytes(), []
    while data:
        (length, check) = struct.unpack("<QI", data[:12])
        assert check == masked(data[:8])
        message = data[12:12 + length]
        assert struct.unpack("<I", data[12 + length:16 + length]) == (masked(message),)
        events.append(Event.FromString(message))
        data = data[16 + length:]
    return events


def event_files(folder: Path) -> list[Path]:
    return sorted((folder / "tensorboard").iterdir())


def scalars(events: list[Event]) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value
            for event in events for value in event.summary.value}


def test_the_reader_here_knows_the_published_checksum():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


# ---- lines ----


def test_lines_are_strict_json_with_full_precision(tmp_path, rng):
    loss = rng.random()
    log = MetricsLog(tmp_path, tensorboard=False)
    before = time.time()
    log.write("start", step=0, model="resnest50", folder=tmp_path, device_gflops=None)
    log.write("step", step=np.int64(1), loss=np.float32(0.1), lr=loss, grad_norm=float("nan"),
              scales=[1, float("inf"), {"x": -np.inf}], done=True)
    log.close()
    start, step = strict_lines(tmp_path)
    assert before <= start.pop("time") <= step.pop("time") <= time.time()
    assert start == {"event": "start", "step": 0, "model": "resnest50", "folder": str(tmp_path),
                     "device_gflops": None}
    assert step == {"event": "step", "step": 1, "loss": float(np.float32(0.1)), "lr": loss,
                    "grad_norm": None, "scales": [1, None, {"x": None}], "done": True}
    assert log.lines == 2
    assert [record["event"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [
        "start", "step"]


def test_a_line_is_in_the_file_at_once(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    for step in range(3):
        log.write("step", step=step)
        assert len(strict_lines(tmp_path)) == step + 1
    log.close()


@pytest.mark.parametrize("tail", [b'{"event": "st', b"\0" * 64, b"{", b"7"])
def test_a_torn_last_line_does_not_count(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}\n{"event": "epoch", "step": 1}\n' + tail)
    assert read_metrics(path, "step") == [{"event": "step", "step": 1}]
    log = MetricsLog(tmp_path, tensorboard=False)
    assert log.lines == 2
    log.write("step", step=2)
    log.close()
    assert [record["step"] for record in strict_lines(tmp_path)] == [1, 1, 2]


def test_a_whole_last_line_without_its_end_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}')
    assert read_metrics(path, "step") == [{"event": "step", "step": 1}]
    MetricsLog(tmp_path, tensorboard=False).close()
    assert path.read_bytes() == b'{"event": "step", "step": 1}\n'


@pytest.mark.parametrize("line", [b'{"event": "st', b"\0\0", b"", b"7", b'{"step": 2}', b"\xff"])
def test_damage_elsewhere_is_named_by_the_reader_and_survives_a_resumption(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = b'{"event": "step", "step": 1}\n' + line + b'\n{"event": "step", "step": 3}\n'
    path.write_bytes(content)
    MetricsLog(tmp_path, tensorboard=False, resumed_at=3).close()  # a run must go on
    assert path.read_bytes() == content
    with pytest.raises(InputError, match=rf"^line 2 of {path} is damaged.*: delete that line"):
        read_metrics(path, "step")


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file"):
        read_metrics(tmp_path / "none.jsonl", "step")
    with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: No such file"):
        MetricsLog(tmp_path / "none", tensorboard=False)


@pytest.mark.parametrize("put", [
    os.mkfifo, lambda path: path.symlink_to("/dev/null"), lambda path: path.mkdir()])
def test_what_is_not_a_regular_file_is_not_waited_for(put, tmp_path):
    path = tmp_path / "metrics.jsonl"
    put(path)
    with pytest.raises(InputError) as caught:
        read_metrics(path)
    assert str(caught.value) == f"cannot read {path}: it is not a regular file"


# ---- going on from a checkpoint ----


def run_until(folder: Path, last: int, **resumed) -> MetricsLog:
    log = MetricsLog(folder, tensorboard=True, **resumed)
    begin = resumed.get("resumed_at", 0)
    log.write("start", step=begin)
    for step in range(begin + 1, last + 1):
        log.write("step", step=step, loss=last + step / 100)
    return log


def test_what_came_after_the_checkpoint_is_removed(tmp_path):
    log = run_until(tmp_path, 6)
    log.write("epoch", epoch=1, step=6)
    lines = log.lines  # a checkpoint of step 6
    log.write("validation", epoch=1, step=6, top1=10.0)
    log.write("checkpoint", step=6, seconds=0.1, reason="epoch")
    log.write("step", step=7, loss=9.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "st')

    log = run_until(tmp_path, 8, resumed_at=6, lines=lines)
    log.write("validation", epoch=1, step=6, top1=20.0)
    log.close()
    assert [(record["event"], record["step"]) for record in strict_lines(tmp_path)] == [
        ("start", 0), *(("step", step) for step in range(1, 7)), ("epoch", 6),
        ("start", 6), ("step", 7), ("step", 8), ("validation", 6)]
    assert [record["top1"] for record in read_metrics(tmp_path / "metrics.jsonl", "validation")
            ] == [20]
    assert log.lines == 12

    first, second = (read_events(file) for file in event_files(tmp_path))
    assert scalars(first)["train/loss", 7] == 9
    assert [event.step for event in second
            if event.session_log.status == SessionLog.START] == [6]  # all from there on is void
    assert second[1].session_log.status == SessionLog.START
    # TensorBoard shows what metrics.jsonl has, so the validation of step 6 once.
    shown = [(value.tag, event.step) for event in [
        *(event for event in first if event.step < 6), *second] for value in event.summary.value]
    assert len(shown) == len(set(shown))
    assert scalars(second) == {
        ("train/loss", 6): pytest.approx(6.06), ("epoch/epoch", 6): 1,
        ("train/loss", 7): pytest.approx(8.07), ("train/loss", 8): pytest.approx(8.08),
        ("validation/epoch", 6): 1, ("validation/top1", 6): 20}


def test_steps_alone_cut_too_and_the_validation_of_the_step_stays(tmp_path):
    log = run_until(tmp_path, 5)
    log.write("validation", epoch=1, step=3, top1=10.0)
    log.close()
    run_until(tmp_path, 3, resumed_at=3).close()
    assert [(record["event"], record["step"]) for record in strict_lines(tmp_path)] == [
        ("start", 0), ("step", 1), ("step", 2), ("step", 3), ("validation", 3), ("start", 3)]


def test_a_cut_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    run_until(tmp_path, 5).close()
    content = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"metrics\.jsonl: No space left"):
        MetricsLog(tmp_path, resumed_at=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


# ---- TensorBoard ----


def test_tensorboard_has_the_numbers_of_four_events(tmp_path):
    log = MetricsLog(tmp_path)  # tensorboardX is there: by default too
    log.write("start", step=0, peak_lr=0.1)
    log.write("step", step=50, epoch=0.5, loss=2.5, lr=np.float64(0.05), peak_share=None,
              grad_norm=float("nan"))
    log.write("epoch", epoch=1, step=100, loss=2.25, lr=0.1)
    log.write("validation", epoch=1, step=100, images=61, top1=12.5, top5=50.0, loss=3.0)
    log.write("validation_ema", epoch=1, step=100, images=61, top1=13.5)
    log.write("checkpoint", step=100, seconds=3.0, reason="epoch")
    log.write("skipped_step", step=101, tensor="fc.weight")
    log.write("rollback", step=102, to_step=100)
    log.close()
    (file,) = event_files(tmp_path)
    assert "tfevents" in file.name
    events = read_events(file)
    assert events[0].file_version == "brain.Event:2"
    assert not any(event.HasField("session_log") for event in events)
    assert scalars(events) == pytest.approx({
        ("train/epoch", 50): 0.5, ("train/loss", 50): 2.5, ("train/lr", 50): 0.05,
        ("epoch/epoch", 100): 1, ("epoch/loss", 100): 2.25, ("epoch/lr", 100): 0.1,
        ("validation/epoch", 100): 1, ("validation/images", 100): 61,
        ("validation/top1", 100): 12.5, ("validation/top5", 100): 50, ("validation/loss", 100): 3,
        ("validation_ema/epoch", 100): 1, ("validation_ema/images", 100): 61,
        ("validation_ema/top1", 100): 13.5})
    written = [record["time"] for record in strict_lines(tmp_path)[1:5]]
    assert [event.wall_time for event in events[1:]] == written


@pytest.fixture
def without_tensorboardx(monkeypatch):
    for name in [*sys.modules, "tensorboardX"]:
        if name.split(".")[0] == "tensorboardX":
            monkeypatch.setitem(sys.modules, name, None)  # an import of it now fails


@pytest.mark.usefixtures("without_tensorboardx")
def test_without_tensorboardx(tmp_path):
    with pytest.raises(InputError, match=r"^--tensorboard needs tensorboardX .*: "
                                         r"`pip install gluon-resnest\[tensorboard\]`$"):
        MetricsLog(tmp_path, tensorboard=True)
    for wanted in (None, False):
        log = MetricsLog(tmp_path, tensorboard=wanted)
        log.write("step", step=1, loss=1.0)
        log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_tensorboardx_that_is_broken_is_said_and_not_used(tmp_path, monkeypatch, capsys):
    def broken():
        raise TypeError("Descriptors cannot be created directly.\nDowngrade protobuf")

    monkeypatch.setattr(tensorboard, "_messages", broken)
    MetricsLog(tmp_path).close()
    assert capsys.readouterr().err == (
        "warning: no TensorBoard events, as tensorboardX cannot be imported: Descriptors cannot "
        "be created directly. Downgrade protobuf\n")
    with pytest.raises(InputError, match="Downgrade protobuf"):
        MetricsLog(tmp_path, tensorboard=True)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_it_is_not_wanted(tmp_path):
    MetricsLog(tmp_path, tensorboard=False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# ---- disks that fail ----


def test_a_disk_that_stays_full_is_said_once_and_does_not_raise(tmp_path, capsys):
    path = tmp_path / "file"
    file = SteadyFile(path)
    soft, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, most))  # bytes a file
    try:
        for _ in range(5):
            file.append(b"line\n")
        during = capsys.readouterr().err
        file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, most))
    assert during == (f"warning: cannot write {path}: File too large; "
                      "the run goes on and tries again\n")
    assert "lacks what was written last" in capsys.readouterr().err
    assert path.read_bytes() == b"line\n"


def test_after_a_failure_in_the_middle_of_a_line_nothing_is_torn_and_nothing_is_missing(
        tmp_path, monkeypatch, capsys):
    write, outage = os.write, iter([3, -1, -1, *[10 ** 6] * 3, 2, -1])

    def failing(descriptor, data):
        room = next(outage, 10 ** 6)
        if room < 0:
            raise OSError(5, "Input/output error")
        return write(descriptor, bytes(data)[:room])

    file = SteadyFile(tmp_path / "file")
    monkeypatch.setattr(os, "write", failing)
    file.append(b"first\n")  # three bytes, then an error
    assert (tmp_path / "file").read_bytes() == b""
    file.append(b"second\n")  # again
    file.append(b"third\n")  # all three
    file.append(b"fourth\n")  # two bytes, then an error
    file.append(b"fifth\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"first\nsecond\nthird\nfourth\nfifth\n"
    assert capsys.readouterr().err.count("Input/output error") == 2  # once an outage


def test_a_file_that_was_taken_away_and_a_folder_that_came_back(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    file = SteadyFile(folder / "file")
    file._let_go()
    (folder / "file").unlink()
    folder.rmdir()
    file.append(b"one\n")
    assert "No such file or directory" in capsys.readouterr().err
    folder.mkdir()
    file.append(b"two\n")
    file.close()
    assert (folder / "file").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_files_whose_folder_is_taken_away_are_written_again(how, tmp_path, capsys):
    """As a person does who tidies up; nothing is missing, and it is said once."""
    folder = tmp_path / "run"
    folder.mkdir()
    log = run_until(folder, 5)
    if how == "deleted":
        shutil.rmtree(folder)
    else:
        folder.rename(tmp_path / "elsewhere")
    for step in (6, 7):
        log.write("step", step=step, loss=step / 100)
    log.close()
    assert [record["step"] for record in strict_lines(folder)] == [0, 1, 2, 3, 4, 5, 6, 7]
    (file,) = event_files(folder)
    assert set(scalars(read_events(file))) == {("train/loss", step) for step in range(1, 8)}
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" was deleted or moved while the run goes on")[0] for line in said] == [
        f"warning: {folder / 'metrics.jsonl'}", f"warning: {file}"]
    if how == "moved":  # what went away is left as it was
        assert len(read_metrics(tmp_path / "elsewhere" / "metrics.jsonl")) == 6


def test_a_file_that_an_editor_has_saved_is_gone_on_with(tmp_path, capsys):
    file = SteadyFile(tmp_path / "file")
    file.append(b"one\ntwo\n")
    (tmp_path / "new").write_bytes(b"two\n")  # editors rename what they have written
    os.replace(tmp_path / "new", tmp_path / "file")
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"two\nthree\n"
    assert capsys.readouterr().err == ""


def program(code: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_disk_that_is_full_for_a_while(tmp_path):
    """As far as a process can have one: a limit on the size of files, lifted later."""
    child = program("""
import resource, sys
from pathlib import Path
from gluon_resnest.runs.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]), tensorboard=True)
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, most))
for step in range(100):
    log.write("step", step=step, loss=1 / 3)
print(Path(sys.argv[1], "metrics.jsonl").stat().st_size, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
log.write("step", step=100, loss=1 / 3)
log.close()
""", tmp_path)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert 2300 < int(out) <= 2500
    assert err.count("\n") == err.count("File too large; the run goes on and tries again") == 2
    assert [record["step"] for record in strict_lines(tmp_path)] == list(range(101))
    (file,) = event_files(tmp_path)
    assert len(scalars(read_events(file))) == 101


def test_kill_9_leaves_whole_lines(tmp_path):
    child = program("""
import sys
from pathlib import Path
from gluon_resnest.runs.metrics import MetricsLog
log, step = MetricsLog(Path(sys.argv[1]), tensorboard=True), 0
while True:
    step += 1
    log.write("step", step=step, loss=1 / 3)
    if step == 200:
        print("going", flush=True)
""", tmp_path)
    assert child.stdout.readline() == "going\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl", "step")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 200
    log = run_until(tmp_path, 151, resumed_at=150)
    log.close()
    assert log.lines == 150 + 2
