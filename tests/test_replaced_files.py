"""Files of a run that were replaced: by others, by links, folders and pipes; and cut ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_checkpoint import FILES, expect_newest, write

from gluon_resnest.checkpoints.checkpoint import Checkpoints
from gluon_resnest.errors import InputError
from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.runs.run_directory import RESULT, RunLock, read_result


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    return write(Checkpoints(tmp_path / "run" / "checkpoints", keep=3), 80, 100, 120)


REPLACEMENTS = {
    "a copy of another checkpoint's": lambda path, other: shutil.copy(other, path),
    "a link to another checkpoint's": lambda path, other: path.symlink_to(other),
    "a second name of another checkpoint's": lambda path, other: os.link(other, path),
    "a link to nothing": lambda path, other: path.symlink_to("nowhere"),
    "a link to itself": lambda path, other: path.symlink_to(path.name),
    "a device": lambda path, other: path.symlink_to("/dev/zero"),
    "a folder": lambda path, other: path.mkdir(),
    "a pipe": lambda path, other: os.mkfifo(path),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
@pytest.mark.parametrize("name", sorted(FILES - {"ema.params"}))  # that is alike in all
def test_a_file_of_a_checkpoint(name, how, three):
    path = three.path(120) / name
    path.unlink()
    REPLACEMENTS[how](path, three.path(100) / name)
    expect_newest(three, 100, f"step-00000120 is damaged ({name}: ")
    with pytest.raises(InputError, match=rf"step-00000120 is damaged \({name}: .*\): take ano"):
        three.read(120)


@pytest.mark.parametrize("how", ["a link to nothing", "a link to itself", "a device", "a pipe"])
def test_the_folder_of_a_checkpoint(how, three):
    shutil.rmtree(three.path(120))
    REPLACEMENTS[how](three.path(120), three.path(100))
    expect_newest(three, 100, "step-00000120 is damaged (manifest.json: ")
    write(three, 120)
    expect_newest(three, 120)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_cut_at_each_of_its_parts(name, three):
    path = three.path(120) / name
    content = path.read_bytes()
    for part in range(16):
        path.write_bytes(content[: len(content) * part // 16])
        expect_newest(three, 100, f"step-00000120 is damaged ({name}: ")
    path.write_bytes(content)
    expect_newest(three, 120)


def test_a_checkpoint_kept_elsewhere_behind_links(three, tmp_path):
    """It is whole; and weights get their second name from the file, not from the link."""
    elsewhere = tmp_path / "elsewhere.params"
    weights = three.path(120) / "weights.params"
    weights.rename(elsewhere)
    weights.symlink_to(os.path.relpath(elsewhere, weights.parent))
    expect_newest(three, 120)
    three.link_weights(120, tmp_path / "run" / "best.params")
    best = tmp_path / "run" / "best.params"
    assert not best.is_symlink()
    assert best.read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize(("target", "words"), [
    ("own.txt", "it is a link; delete it"), ("/dev/zero", "it is a link; delete it"),
    ("pipe", "it is not a regular file; delete it")])
@pytest.mark.parametrize("name", ["metrics.jsonl", "run.lock"])
def test_links_and_pipes_are_not_written_to(name, target, words, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("precious\n")
    if target == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(target)
    with pytest.raises(InputError) as caught:
        RunLock(tmp_path) if name == "run.lock" else MetricsLog(tmp_path, tensorboard=False)
    assert str(caught.value) == f"cannot write {tmp_path / name}: {words}"
    assert own.read_text() == "precious\n"


@pytest.mark.parametrize("put", [
    os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir(),
    lambda path: path.write_bytes(b"[" * 100_000), lambda path: path.write_bytes(b"\xff")])
def test_a_result_that_cannot_be_one_is_none(put, tmp_path):
    put(tmp_path / RESULT)
    assert read_result(tmp_path) is None
