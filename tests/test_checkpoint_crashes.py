"""Checkpoints of processes that are killed at any moment, of two at a time, and on a full disk."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_checkpoint import FILES, expect_equal, expect_newest, leftovers, snapshot, write

from gluon_resnest.checkpoints.checkpoint import Checkpoints
from gluon_resnest.errors import InputError

# Without MXNet: the modules must not need it, and it takes seconds to import.
WITHOUT_MXNET = f"""
from __future__ import annotations
import json, os, resource, shutil, signal, subprocess, sys, threading, types
package = types.ModuleType("gluon_resnest")
package.__path__ = [{str(ROOT / "gluon_resnest")!r}]
sys.modules["gluon_resnest"] = package
import numpy as np
from gluon_resnest.errors import InputError
from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.checkpoints.checkpoint_writer import CheckpointWriter
assert "mxnet" not in sys.modules
{inspect.getsource(snapshot)}
"""


def program(code: str, *arguments, prefix: tuple[str, ...] = (), **options) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-c", WITHOUT_MXNET + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **options)


def finished(process: subprocess.Popen, code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return out


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=3)


@pytest.fixture
def three(checkpoints: Checkpoints) -> Checkpoints:
    return write(checkpoints, 80, 100, 120)


class TestKilled:
    def test_at_random_moments(self, checkpoints: Checkpoints, rng) -> None:
        """What a process said to be written is there, and what is there is whole."""
        code = """
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.clean()
found = checkpoints.newest(sys.exit)
step = found.step if found else 0
while True:
    step += 1
    path = checkpoints.write(snapshot(step, 50_000))
    checkpoints.link_weights(step, path.parent.parent / "last.params")
    print(step, flush=True)
"""
        before = 0
        for _ in range(16):
            process = program(code, checkpoints.folder)
            said = process.stdout.readline()  # so the moment is one of writing, not of importing
            time.sleep(rng.uniform(0, 0.12))
            process.kill()
            out, err = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, err
            written = int((said + out).split()[-1])
            newest = checkpoints.newest(pytest.fail)
            assert before < written <= newest.step <= written + 1
            expect_equal(newest, newest.step, 50_000)
            before = newest.step
        checkpoints.clean()
        assert leftovers(checkpoints.folder) == []

    def test_before_every_call_that_changes_the_disk(self, checkpoints: Checkpoints) -> None:
        """Killed at the first, the second, ... until one write gets through."""
        code = """
folder, base = sys.argv[1:]
events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "shutil.rmtree"}
fsync = os.fsync
for limit in range(1, 1000):
    shutil.rmtree(folder)
    shutil.copytree(base, folder)
    child = os.fork()
    if child == 0:
        calls = 0
        def hook(event, arguments):
            global calls
            calls += event in events
            if event in events and calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = lambda descriptor: (hook("open", ()), fsync(descriptor))
        sys.addaudithook(hook)
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.write(snapshot(120))
        checkpoints.link_weights(120, folder + "/../last.params")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    lines = []
    newest = Checkpoints(folder).newest(lines.append)
    expected = snapshot(newest.step)
    assert newest.state == expected.state
    for group, arrays in expected.arrays.items():
        for name, array in arrays.items():
            assert np.array_equal(newest.arrays[group][name], array)
    assert all("step-00000120 is damaged" in line for line in lines)
    Checkpoints(folder).clean()
    assert all(name.startswith("step-") for name in os.listdir(folder)), os.listdir(folder)
    assert Checkpoints(folder).newest(lines.append).step == newest.step
    print(newest.step)
    if status == 0:
        break
    assert status == signal.SIGKILL, status
"""
        write(checkpoints, 80, 100, 120)
        (checkpoints.path(120) / "weights.params").write_bytes(b"damaged")
        base = shutil.copytree(checkpoints.folder, checkpoints.folder.parent / "base")
        steps = finished(program(code, checkpoints.folder, base)).split()
        first = steps.index("120")
        assert steps == ["100"] * first + ["120"] * (len(steps) - first)
        assert first > 15  # six files, their folder, two renamings
        assert len(steps) - first > 15  # the deletion of two, and the link

    def test_all_is_on_disk_before_the_name(
        self, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the name before anything else is deleted, for power may fail at any time."""
        synced, events = set(), []
        fsync, rename, unlink = os.fsync, os.rename, os.unlink

        def watch_fsync(descriptor):
            fsync(descriptor)
            synced.add(os.fstat(descriptor).st_ino)
            events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))

        def watch_rename(source, target):
            if str(target).endswith("step-00000002"):
                inodes = {path.stat().st_ino for path in (source, *source.iterdir())}
                assert len(inodes) == len(FILES) + 1
                assert inodes <= synced
            events.append(("rename", Path(target).name))
            rename(source, target)

        one = Checkpoints(checkpoints.folder, keep=1)
        one.write(snapshot(1))
        monkeypatch.setattr(os, "fsync", watch_fsync)
        monkeypatch.setattr(os, "rename", watch_rename)
        monkeypatch.setattr(os, "unlink", lambda *path, **at: (
            events.append(("unlink", Path(path[0]).name)), unlink(*path, **at)))
        one.write(snapshot(2))
        in_folder = ("fsync", str(checkpoints.folder))
        start = events.index(("rename", "step-00000002"))
        old = f".step-00000001.{os.getpid()}.old.tmp"
        unlinked = [event for event in events if event[0] == "unlink" and event[1] in FILES]
        assert len(unlinked) == len(FILES)
        assert events.index(unlinked[0]) > start + 3
        assert [event for event in events[start:] if event[0] != "unlink"] == [
            ("rename", "step-00000002"), in_folder, ("rename", old), in_folder]

    def test_cleaning_spares_what_is_being_written(self, three: Checkpoints) -> None:
        code = """
def fsync(_):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = fsync
Checkpoints(sys.argv[1]).write(snapshot(140))
"""
        (three.folder / ".last.params.1.tmp").write_bytes(b"x")
        shutil.copytree(three.path(80), three.folder / ".step-00000080.1.old.tmp")
        process = program(code, three.folder, stdin=subprocess.PIPE)
        assert process.stdout.readline() == "writing\n", process.stderr.read()
        three.clean()
        assert leftovers(three.folder) == [f".step-00000140.{process.pid}.tmp"]
        process.kill()
        process.communicate()
        three.clean()
        assert leftovers(three.folder) == []
        expect_newest(three, 120)

    def test_a_leftover_with_our_number_is_no_hindrance(self, three: Checkpoints) -> None:
        for name in (f".step-00000140.{os.getpid()}.tmp", f".step-00000080.{os.getpid()}.old.tmp"):
            shutil.copytree(three.path(80), three.folder / name)
        three.write(snapshot(140))
        assert three.steps() == [100, 120, 140]
        assert leftovers(three.folder) == []


def test_two_processes_write_and_a_third_reads(checkpoints: Checkpoints) -> None:
    code = """
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(1, 41):
    checkpoints.write(snapshot(step))
"""
    processes = [program(code, checkpoints.folder) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        newest = checkpoints.newest(pytest.fail)
        if newest is not None:
            expect_equal(newest, newest.step)
    for process in processes:
        finished(process)
    assert checkpoints.steps()[-2:] == [39, 40]
    expect_newest(checkpoints, 40)
    assert leftovers(checkpoints.folder) == []


class TestDiskThatRefuses:
    """One line with path, reason and remedy; nothing is left of it, the others are as before."""

    def expect(self, text: str, reason: str) -> None:
        assert "\n" not in text
        assert "cannot write " in text
        assert "/step-00000140: " in text
        assert reason in text
        assert "--save-dir" in text

    @pytest.mark.parametrize("group", ["weights", "state"])
    def test_files_that_grow_too_large(self, three: Checkpoints, group: str) -> None:
        code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
checkpoints = Checkpoints(sys.argv[1])
try:
    checkpoints.write(snapshot(140, 50_000) if sys.argv[2] == "weights" else
                      Snapshot(140, {}, {"text": "x" * 400_000}))
except InputError as error:
    print(error)
"""
        self.expect(finished(program(code, three.folder, group)).strip(), "File too large; ")
        assert leftovers(three.folder) == []
        expect_newest(three, 120)

    def test_no_room_is_seen_before(
        self, three: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(three.folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_050_000))
        with pytest.raises(InputError) as caught:
            three.write(snapshot(140))
        self.expect(str(caught.value), "it needs 1,088,656 bytes, and 1,050,000 are free; make")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0, total=0))
        three.write(snapshot(140))
        expect_newest(three, 140)

    def test_a_disk_of_four_megabytes(self, tmp_path: Path) -> None:
        mount = ("unshare", "-rm", "sh", "-c",
                 'mount -t tmpfs -o size=4m none "$1" && shift && exec "$@"', "sh", str(tmp_path))
        try:
            subprocess.run([*mount, "true"], check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        code = """
checkpoints = Checkpoints(sys.argv[1] + "/checkpoints")
checkpoints.write(snapshot(120))
def attempt(size):
    try:
        checkpoints.write(snapshot(140, size))
    except InputError as error:
        errors.append(str(error))
    assert os.listdir(checkpoints.folder) == ["step-00000120"]
    assert checkpoints.newest(sys.exit).step == 120
errors, usage = [], shutil.disk_usage
attempt(150_000)
shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 40)
attempt(150_000)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
attempt(10)
print(json.dumps(errors))
"""
        early, full, read_only = json.loads(finished(program(code, tmp_path, prefix=mount)))
        self.expect(early, "it needs 7,0")
        self.expect(full, "No space left on device; make room on that disk")
        self.expect(read_only, "Read-only file system; choose a --save-dir")

    def test_a_file_in_place_of_the_folder(self, checkpoints: Checkpoints) -> None:
        checkpoints.folder.parent.mkdir()
        checkpoints.folder.write_text("a file")
        with pytest.raises(InputError) as caught:
            checkpoints.write(snapshot(140))
        self.expect(str(caught.value), "File exists")
        with pytest.raises(InputError, match=r"cannot read .*: Not a directory"):
            checkpoints.newest(pytest.fail)
        checkpoints.clean()

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
    def test_a_folder_that_is_read_only(self, three: Checkpoints) -> None:
        three.folder.chmod(0o500)
        with pytest.raises(InputError) as caught:
            three.write(snapshot(140))
        three.folder.chmod(0o700)
        self.expect(str(caught.value), "Permission denied")
        expect_newest(three, 120)
