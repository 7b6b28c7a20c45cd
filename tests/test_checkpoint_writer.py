"""The thread that writes checkpoints: beside the main one, with its failures and its end."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import expect_equal, leftovers, snapshot
from test_checkpoint_crashes import finished, program

from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.checkpoints.checkpoint_writer import CheckpointWriter
from gluon_resnest.errors import InputError


class HeldCheckpoints(Checkpoints):
    """Begin to write when `go` is set: as slow as a test wants it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go = threading.Event()
        self.threads: list[str] = []

    def write(self, snapshot: Snapshot) -> Path:
        assert self.go.wait(60)
        self.threads.append(threading.current_thread().name)
        return super().write(snapshot)


@pytest.fixture
def held(tmp_path: Path) -> HeldCheckpoints:
    return HeldCheckpoints(tmp_path / "checkpoints")


def test_begin_returns_before_anything_is_written(held: HeldCheckpoints) -> None:
    written: list[Path] = []
    writer = CheckpointWriter(held, on_written=written.append)
    assert writer.wait()
    writer.begin(snapshot(1))  # would never return if it waited
    assert not writer.wait(0)
    assert not writer.wait(0.01)
    assert (held.steps(), writer.last_step, written) == ([], None, [])
    held.go.set()
    assert writer.wait()
    assert (held.steps(), writer.last_step, written) == ([1], 1, [held.path(1)])
    assert (writer.failure, writer.failures_in_a_row) == (None, 0)
    assert writer.seconds > 0.01
    assert held.threads == ["checkpoint-1"]


def test_one_at_a_time_in_order(held: HeldCheckpoints) -> None:
    writer = CheckpointWriter(held)
    writer.begin(snapshot(1))
    threading.Timer(0.05, held.go.set).start()
    writer.begin(snapshot(2))  # waits for the first
    assert writer.last_step == 1
    for step in range(3, 8):
        writer.begin(snapshot(step))
    assert writer.wait()
    assert held.threads == [f"checkpoint-{step}" for step in range(1, 8)]
    assert held.steps() == [6, 7]
    expect_equal(held.read(7), 7)


def test_a_large_one_while_the_main_thread_goes_on(tmp_path: Path, rng) -> None:
    arrays = {"weights": {"a": rng.random((1 << 20, 12), np.float32)}}  # 48 MiB
    writer = CheckpointWriter(Checkpoints(tmp_path))
    writer.begin(Snapshot(1, arrays, {}))
    while not writer.wait(0.001):
        pass
    np.testing.assert_array_equal(Checkpoints(tmp_path).read(1).arrays["weights"]["a"],
                                  arrays["weights"]["a"])


def test_failures_are_collected(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(Checkpoints(folder))
    writer.begin(snapshot(1))
    assert writer.wait()
    aside = folder.rename(tmp_path / "aside")
    folder.write_text("a file")
    for count in (1, 2, 3):
        writer.begin(snapshot(1 + count))
        assert writer.wait()
        assert isinstance(writer.failure, InputError)
        assert f"cannot write {folder}/step-0000000{1 + count}: " in str(writer.failure)
        assert (writer.failures_in_a_row, writer.last_step) == (count, 1)
        assert writer.seconds > 0
    folder.unlink()
    aside.rename(folder)
    writer.begin(snapshot(5))
    assert writer.wait()
    assert (writer.failure, writer.failures_in_a_row, writer.last_step) == (None, 0, 5)
    assert Checkpoints(folder).steps() == [1, 5]


def test_what_follows_a_write_may_fail_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "last.params").mkdir()
    writer = CheckpointWriter(
        checkpoints, lambda path: checkpoints.link_weights(3, tmp_path / "last.params"))
    writer.begin(snapshot(3))
    assert writer.wait()
    assert "last.params: Is a directory" in str(writer.failure)
    assert (writer.last_step, writer.failures_in_a_row) == (3, 1)
    expect_equal(checkpoints.read(3), 3)


@pytest.mark.parametrize("raised_by", ["wait", "begin"])
def test_a_bug_is_raised_in_the_main_thread(tmp_path: Path, raised_by: str) -> None:
    writer = CheckpointWriter(Checkpoints(tmp_path))
    writer.begin(Snapshot(1, {}, {"loss": float("nan")}))
    with pytest.raises(ValueError, match="not JSON compliant") as caught:
        _ = writer.wait() if raised_by == "wait" else writer.begin(snapshot(2))
    names = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert {"write_folder", raised_by} <= set(names)  # of the thread, and of this one
    writer.begin(snapshot(3))  # once is enough
    assert writer.wait()
    assert Checkpoints(tmp_path).steps() == [3]


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "sys.stdout.flush(); os._exit(0)"])
def test_the_end_of_the_process_does_not_wait(tmp_path: Path, ending: str) -> None:
    code = f"""
held = threading.Event()
fsync = os.fsync
os.fsync = lambda descriptor: (held.set(), threading.Event().wait(600))
writer = CheckpointWriter(Checkpoints(sys.argv[1]))
writer.begin(snapshot(1))
held.wait()
print("writing", "mxnet" in sys.modules)
{ending}
"""
    assert finished(program(code, tmp_path)) == "writing False\n"
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest(pytest.fail) is None
    assert len(leftovers(tmp_path)) == 1
    checkpoints.clean()
    assert leftovers(tmp_path) == []


def test_the_end_of_the_process_in_the_middle_of_large_arrays(tmp_path: Path) -> None:
    """The interpreter ends while the thread digests and writes without its lock."""
    code = """
writer = CheckpointWriter(Checkpoints(sys.argv[1]))
writer.begin(Snapshot(2, {"weights": {"a": np.ones((1 << 20, 12), np.float32)}}, {}))
writer.wait(float(sys.argv[2]))
"""
    for seconds in (0, 0.01, 0.03, 0.05, 0.1):
        finished(program(code, tmp_path, seconds))
    Checkpoints(tmp_path).newest(pytest.fail)
