"""Checkpoints: what is read is what was written, and only as many stay as should."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from gluon_resnest.checkpoints import checkpoint, checkpoint_folder
from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.errors import InputError


def snapshot(step: int, size: int = 1000) -> Snapshot:
    """What a run has after `step` updates, so it can be told from any other."""
    rng = np.random.default_rng(step)
    return Snapshot(step, {
        "weights": {"conv.weight": rng.random((size, 5), np.float32), "b": np.full(3, step)},
        "momentum": {"conv.weight": rng.random((size, 5), np.float32)},
        "statistics": {"mean": rng.random(7)}, "ema": {},
    }, {"step": step, "order": list(range(step % 50)), "best": step / 3, "name": "größe"})


FILES = {"weights.params", "momentum.params", "statistics.params", "ema.params", "state.json",
         "manifest.json"}


def expect_equal(found: Snapshot, step: int, size: int = 1000) -> None:
    expected = snapshot(step, size)
    assert (found.step, found.state) == (step, expected.state)
    assert found.arrays.keys() == expected.arrays.keys()
    for group, arrays in expected.arrays.items():
        assert list(found.arrays[group]) == list(arrays)
        for name, array in arrays.items():
            assert found.arrays[group][name].dtype == array.dtype
            np.testing.assert_array_equal(found.arrays[group][name], array)


def expect_newest(checkpoints: Checkpoints, step: int, *said: str, size: int = 1000) -> None:
    """`said`: what the lines about damaged ones hold, in this order."""
    lines: list[str] = []
    expect_equal(checkpoints.newest(lines.append), step, size)
    assert len(lines) == len(said), lines
    for line, part in zip(lines, said):
        assert part in line
        assert line.endswith("): the one before is taken")
        assert "\n" not in line


def write(checkpoints: Checkpoints, *steps: int) -> Checkpoints:
    for step in steps:
        checkpoints.write(snapshot(step))
    return checkpoints


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith("step-")]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=3)


@pytest.fixture
def three(checkpoints: Checkpoints) -> Checkpoints:
    return write(checkpoints, 80, 100, 120)


def test_what_goes_in_comes_out(checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == []
    assert checkpoints.newest(pytest.fail) is None
    path = checkpoints.write(snapshot(7))
    assert path == checkpoints.folder / "step-00000007"
    assert {file.name for file in path.iterdir()} == FILES
    assert checkpoints.steps() == [7]
    expect_equal(checkpoints.read(7), 7)
    expect_newest(checkpoints, 7)
    with pytest.raises(InputError, match=r"has no checkpoint of step 8: there are 7$"):
        checkpoints.read(8)
    checkpoints.write(Snapshot(1_234_567_890, {}, {}))
    assert checkpoints.steps() == [7, 1_234_567_890]
    assert checkpoints.read(1_234_567_890).arrays == {}
    assert leftovers(checkpoints.folder) == []


def test_steps_go_by_exact_names(three: Checkpoints) -> None:
    for name in ("step-1", "step-000000100", "step-", "step-00000140.tmp", ".step-00000140.1.tmp",
                 "step-٠٠٠٠٠١٤٠", "other"):
        (three.folder / name).mkdir()
    assert three.steps() == [80, 100, 120]


@pytest.mark.parametrize(("wrong", "message"), [
    (Snapshot(5, {}, {"loss": float("nan")}), "not JSON compliant"),
    (Snapshot(5, {"../weights": {}}, {}), "no name for a file"),
    (Snapshot(5, {"weights": {"a": np.float32(1)}}, {}), "0 dimensions"),
])
def test_a_snapshot_that_files_cannot_hold_is_a_bug(
    checkpoints: Checkpoints, wrong: Snapshot, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.write(wrong)
    assert not isinstance(caught.value, InputError)
    assert list(checkpoints.folder.iterdir()) == []
    with pytest.raises(ValueError, match="snapshot of step -1"):
        Snapshot(-1, {}, {})
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpoints(checkpoints.folder, keep=0)


class TestDamage:
    """Always seen, said with the file's name, and the one before is taken."""

    def test_bytes_at_random_places(self, three: Checkpoints, rng) -> None:
        for _ in range(200):
            path = three.path(120) / rng.choice(sorted(FILES))
            content = path.read_bytes()
            damaged = bytearray(content)
            damaged[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            expect_newest(three, 100, f"step-00000120 is damaged ({path.name}: ")
            path.write_bytes(content)
        expect_newest(three, 120)

    def test_every_byte_of_the_manifest(self, three: Checkpoints, rng) -> None:
        path = three.path(120) / "manifest.json"
        content = path.read_bytes()
        for place in range(len(content)):
            damaged = bytearray(content)
            # Also one that leaves the meaning of a text as it is, such as a space for a line.
            damaged[place] = ord("\n") if damaged[place] == ord(" ") else ord(" ")
            path.write_bytes(damaged)
            expect_newest(three, 100, "(manifest.json: ")

    @pytest.mark.parametrize("name", sorted(FILES))
    def test_files_cut_extended_and_missing(self, three: Checkpoints, rng, name: str) -> None:
        path = three.path(120) / name
        content = path.read_bytes()
        cuts = [0, 1, len(content) - 1, *map(int, rng.integers(0, len(content), 5))]
        for other in [*(content[:cut] for cut in cuts), content + b"\n", content + content]:
            path.write_bytes(other)
            expect_newest(three, 100, f"({name}: ")
        path.unlink()
        expect_newest(three, 100, f"({name}: ")
        path.mkdir()
        expect_newest(three, 100, f"({name}: ")

    @pytest.mark.parametrize("name", sorted(FILES - {"ema.params"}))  # that is alike in all
    def test_files_swapped_between_two(self, three: Checkpoints, name: str) -> None:
        one, other, aside = (folder / name for folder in (
            three.path(120), three.path(100), three.folder))
        one.rename(aside)
        other.rename(one)
        aside.rename(other)
        expect_newest(three, 80, f"step-00000120 is damaged ({name}: ",
                      f"step-00000100 is damaged ({name}: ")

    def test_checkpoints_under_another_name(self, three: Checkpoints) -> None:
        shutil.copytree(three.path(80), three.path(140))
        expect_newest(three, 120, "step-00000140 is damaged (manifest.json: of step 80)")
        shutil.rmtree(three.path(140))
        three.path(140).write_text("no folder")
        three.path(150).symlink_to("nowhere")
        expect_newest(three, 120, "step-00000150 is damaged", "step-00000140 is damaged")

    def test_all_of_them(self, three: Checkpoints) -> None:
        for step in three.steps():
            (three.path(step) / "weights.params").unlink()
        lines: list[str] = []
        with pytest.raises(InputError, match=(
                r"none of 3 in .*/run/checkpoints can be used: checkpoint .*/step-00000080 is "
                r"damaged \(weights.params: .*\); copy the folder again .* --overwrite")) as caught:
            three.newest(lines.append)
        assert "\n" not in str(caught.value)
        assert len(lines) == 2
        with pytest.raises(InputError, match=r"step-00000080 is damaged \(weights.params: "):
            three.read(80)

    def test_one_that_is_deleted_while_it_is_read_is_not_damaged(
        self, three: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a run that goes on meanwhile, and has newer ones."""
        def read_late(folder: Path, step: int) -> Snapshot:
            if step == 120:
                shutil.rmtree(folder)
                write(three, 140)
            return checkpoint_folder.read_folder(folder, step)

        monkeypatch.setattr(checkpoint, "read_folder", read_late)
        expect_newest(three, 140)

    def forge(self, three: Checkpoints, name: str, content: bytes) -> None:
        """CheckpointDamage that someone made on purpose, with a manifest that agrees."""
        path = three.path(120)
        (path / name).write_bytes(content)
        files = json.loads((path / "manifest.json").read_text())["files"]
        files[name] = {"size": len(content),
                       "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_bytes(checkpoint_folder._manifest(120, files))

    def test_a_pickle_is_not_loaded(self, three: Checkpoints, tmp_path: Path) -> None:
        class Harm:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        for name in ("weights.params", "state.json"):
            self.forge(three, name, pickle.dumps(Harm()))
            expect_newest(three, 100, f"({name}: ")
        assert not (tmp_path / "harm").exists()

    def test_a_file_elsewhere_is_not_read(self, three: Checkpoints) -> None:
        self.forge(three, "../weights.params", (three.path(100) / "weights.params").read_bytes())
        expect_newest(three, 100, "(manifest.json: not what was written)")

    def test_json_without_end(self, three: Checkpoints) -> None:
        self.forge(three, "state.json", b"[" * 100_000)
        expect_newest(three, 100, "(state.json: ")
        (three.path(120) / "manifest.json").write_bytes(b'{"a":' * 100_000)
        expect_newest(three, 100, "(manifest.json: ")

    def test_another_format(self, checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoints.write(snapshot(1))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_folder, "FORMAT", 2)
            checkpoints.write(snapshot(2))
        expect_newest(checkpoints, 1, "(manifest.json: format 2 instead of 1)")


class TestRotation:
    def write(self, checkpoints: Checkpoints, *steps: int) -> list[int]:
        write(checkpoints, *steps)
        assert leftovers(checkpoints.folder) == []
        return checkpoints.steps()

    def test_the_newest_and_the_protected_stay(self, tmp_path: Path) -> None:
        two = Checkpoints(tmp_path, keep=2)
        assert self.write(two, 1, 2, 3) == [2, 3]
        two.protected = {2}
        assert self.write(two, 4, 5, 6) == [2, 5, 6]
        two.protected = ()
        assert self.write(two, 7) == [6, 7]
        assert self.write(Checkpoints(tmp_path, keep=1), 8) == [8]

    def test_damaged_ones_do_not_count(self, checkpoints: Checkpoints) -> None:
        self.write(checkpoints, 1, 2, 3)
        (checkpoints.path(3) / "momentum.params").write_bytes(b"short")
        assert self.write(checkpoints, 4) == [1, 2, 3, 4]
        assert self.write(checkpoints, 5) == [2, 3, 4, 5]
        assert self.write(checkpoints, 6) == [4, 5, 6]

    def test_later_ones_are_left_alone(self, checkpoints: Checkpoints) -> None:
        """A run went back to step 2; what it writes must not be the oldest, and deleted."""
        self.write(checkpoints, 1, 2, 10, 11)
        assert self.write(checkpoints, 3, 4) == [2, 3, 4, 10, 11]

    def test_one_that_is_there_is_left_as_it_is(self, three: Checkpoints) -> None:
        def files():
            return {path: path.stat().st_ino for path in three.path(120).iterdir()}

        before = files()
        three.write(snapshot(120))
        assert files() == before

    @pytest.mark.parametrize("damage", [
        lambda path: (path / "weights.params").write_bytes(b"x"),
        lambda path: (path / "extra").mkdir() or (path / "manifest.json").unlink(),
        lambda path: shutil.rmtree(path) or path.write_text("no folder"),
        lambda path: shutil.rmtree(path) or path.mkdir(),
    ])
    def test_a_damaged_one_is_replaced(self, three: Checkpoints, damage) -> None:
        damage(three.path(120))
        expect_newest(three, 100, "step-00000120")
        three.write(snapshot(120))
        expect_newest(three, 120)
        assert {path.name for path in three.path(120).iterdir()} == FILES
        assert leftovers(three.folder) == []


class TestWeightsUnderAnotherName:
    def test_are_one_file(self, three: Checkpoints, tmp_path: Path) -> None:
        last = tmp_path / "run" / "last.params"
        for step in (80, 120, 120):
            three.link_weights(step, last)
            assert last.samefile(three.path(step) / "weights.params")
        three.link_weights(100, last, "momentum")
        assert last.samefile(three.path(100) / "momentum.params")
        assert leftovers(three.folder) == []
        assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "last.params"]
        shutil.rmtree(three.path(100))
        assert last.stat().st_size > 20_000

    def test_are_a_copy_where_there_are_no_links(
        self, three: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        three.link_weights(120, tmp_path / "last.params")
        assert not (tmp_path / "last.params").samefile(three.path(120) / "weights.params")
        assert ((tmp_path / "last.params").read_bytes()
                == (three.path(120) / "weights.params").read_bytes())
        assert sorted(os.listdir(tmp_path)) == ["last.params", "run"]

    def test_errors(self, three: Checkpoints, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"last.params: there is no .*step-00000090/weights"):
            three.link_weights(90, tmp_path / "last.params")
        (tmp_path / "last.params").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*last.params: Is a directory"):
            three.link_weights(120, tmp_path / "last.params")
        assert leftovers(three.folder) == []
