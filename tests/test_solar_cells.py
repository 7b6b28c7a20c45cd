"""demo/solar_cells.py: the split, from a package of the same layout with a few small photos."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT, run_process

TOOL = ROOT / "demo/solar_cells.py"
CELLS = [("mono", "0.0", 20), ("mono", "1.0", 10), ("poly", "0.0", 30), ("poly", "0.3333", 5)]


@pytest.fixture
def package(tmp_path, rng, monkeypatch):
    """An importable `elpv_dataset` as the wheel has it: data/labels.csv and data/images/*.png."""
    folder = tmp_path / "site" / "elpv_dataset"
    (folder / "data/images").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('only its files are needed')\n")
    kinds = [(kind, defect) for kind, defect, count in CELLS for _ in range(count)]
    lines = []
    for number, (kind, defect) in enumerate(kinds, start=1):
        name = f"images/cell{number:04d}.png"
        cv2.imwrite(str(folder / "data" / name), rng.integers(0, 256, (8, 8), dtype=np.uint8))
        lines.append(f"{name}  {defect}                 {kind}\n")
    (folder / "data/labels.csv").write_text("".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def prepare(output, *options, code=0):
    return run_process(sys.executable, TOOL, "prepare", output, *options, code=code, timeout=120)


def test_split_is_80_to_20_in_every_class_and_of_every_defect(package, tmp_path):
    output = tmp_path / "photos"
    shown = prepare(output).stdout
    files = {part: sorted((output / part).rglob("*.png")) for part in ("train", "val")}
    assert Counter(file.parent.name for file in files["val"]) == {
        "monocrystalline": 6, "polycrystalline": 7}
    assert Counter(file.parent.name for file in files["train"]) == {
        "monocrystalline": 24, "polycrystalline": 28}
    assert f"{output / 'val'}: 6 monocrystalline, 7 polycrystalline" in shown
    defects = {line.split()[0][7:]: tuple(line.split()[:0:-1])
               for line in (package / "data/labels.csv").read_text().splitlines()}
    assert Counter(defects[file.name] for file in files["val"]) == {
        ("mono", "0.0"): 4, ("mono", "1.0"): 2, ("poly", "0.0"): 6, ("poly", "0.3333"): 1}
    # Every photograph once, in the folder of its class, byte for byte.
    assert sorted(f.name for part in files.values() for f in part) == sorted(defects)
    for file in (*files["train"], *files["val"]):
        assert file.parent.name.startswith(defects[file.name][0])
        assert file.read_bytes() == (package / "data/images" / file.name).read_bytes()
    manifest = json.loads((output / "split.json").read_text())
    assert manifest["license"] == "CC BY-NC-SA 4.0"
    assert manifest["counts"]["val"] == {"monocrystalline": 6, "polycrystalline": 7}


def test_split_is_the_same_each_time_and_another_with_another_seed(package, tmp_path):
    def held_out(name, *options):
        prepare(tmp_path / name, *options)
        return sorted(file.name for file in (tmp_path / name / "val").rglob("*.png"))

    first = held_out("a")
    assert held_out("b") == first
    assert held_out("a") == first  # over what is there
    assert held_out("c", "--seed", "1") != first


def test_a_folder_of_the_user_is_left_alone(package, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    done = prepare(tmp_path / "mine", code=2)
    assert done.stderr == (f"error: {tmp_path / 'mine'} exists and was not made by this command; "
                           "name another folder\n")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "elpv_dataset.py").write_text("")  # first on the path, and without photographs
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = prepare(tmp_path / "photos", code=2)
    assert done.stderr == ("error: the photographs are not installed: pip install --no-deps "
                           "--ignore-requires-python elpv-dataset==1.0.0.post1\n")
    assert not (tmp_path / "photos").exists()
