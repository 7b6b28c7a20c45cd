"""The demo: its split, from a package of the same layout with tiny photos, and its picture."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter

import cv2
import numpy as np
import pytest
import yaml
from conftest import randomize
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.data.images.image_files import read_image
from gluon_resnest.models import save_weights
from tests.conftest import ROOT, run_process

TOOL = ROOT / "demo/solar_cells.py"
THIRD, TWO_THIRDS = "0.3333333333333333", "0.6666666666666666"
# Runs of one crystal type in the package's list.
RUNS = [("mono", 60), ("poly", 300), ("mono", 180), ("poly", 360), ("mono", 714), ("poly", 530),
        ("mono", 72), ("poly", 180), ("mono", 48), ("poly", 180)]


def defect(number):
    """A label for each cell by its number: of ten cells, six functional and two defective."""
    return ("0.0", "1.0", "0.0", THIRD, "0.0", "0.0", TWO_THIRDS, "0.0", "1.0", "0.0")[number % 10]


@pytest.fixture
def package(tmp_path, rng, monkeypatch):
    """An importable `elpv_dataset` as the wheel has it: data/labels.csv and data/images/*.png."""
    folder = tmp_path / "site" / "elpv_dataset"
    (folder / "data/images").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('only its files are needed')\n")
    crystals = [crystal for crystal, count in RUNS for _ in range(count)]
    lines = []
    for number, crystal in enumerate(crystals, start=1):
        name = f"images/cell{number:04d}.png"
        cv2.imwrite(str(folder / "data" / name), rng.integers(0, 256, (8, 8), dtype=np.uint8))
        lines.append(f"{name}  {defect(number)}                 {crystal}\n")
    (folder / "data/labels.csv").write_text("".join(lines))
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}{os.pathsep}{ROOT}")
    return folder


def prepare(output, code=0):
    return run_process(sys.executable, TOOL, "prepare", output, code=code, timeout=120)


def number_of(file):
    return int(file.stem.removeprefix("cell"))


def test_each_cell_is_in_the_folder_of_its_label_and_no_doubtful_one_is_trained_on(
        package, tmp_path):
    output = tmp_path / "photos"
    shown = prepare(output).stdout
    files = sorted(output.rglob("*.png"))
    folders = {"functional": "0.0", "defective": "1.0", "one_third": THIRD,
               "two_thirds": TWO_THIRDS}
    for file in files:
        assert folders[file.parent.name] == defect(number_of(file))
        assert file.read_bytes() == (package / "data/images" / file.name).read_bytes()
    assert len({file.name for file in files}) == len(files)
    found = Counter(str(file.parent.relative_to(output)) for file in files)
    assert set(found) == {"train/functional", "train/defective", "val/functional",
                          "val/defective", "doubtful/one_third", "doubtful/two_thirds"}
    sure = sum(count for folder, count in found.items() if not folder.startswith("doubtful"))
    assert sure == sum(defect(number) in ("0.0", "1.0") for number in range(1, 2625))
    assert f"{output / 'val/functional'}: {found['val/functional']} cells (" in shown
    manifest = json.loads((output / "split.json").read_text())
    assert manifest["license"] == "CC BY-NC-SA 4.0"
    assert {folder: sum(counts.values()) for folder, counts in manifest["counts"].items()} == found


def test_held_out_are_whole_modules_of_both_types(package, tmp_path):
    """A module is 60 cells of a run of one crystal type, counted from the run's either end."""
    prepare(tmp_path / "photos")
    held_out = {number_of(file) for part in ("val", "doubtful")
                for file in (tmp_path / "photos" / part).rglob("*.png")}
    trained_on = {number_of(file) for file in (tmp_path / "photos/train").rglob("*.png")}
    assert not held_out & trained_on
    modules = []
    start = 1
    for crystal, count in RUNS:
        ends = {start + count} if count < 60 else {
            *range(start + 60, start + count + 1, 60), *range(start + count, start + 59, -60)}
        modules += [(crystal, range(max(start, end - 60), end)) for end in ends]
        start += count
    whole = [(crystal, cells) for crystal, cells in modules if held_out.issuperset(cells)]
    assert Counter(crystal for crystal, _ in whole) == {"mono": 4, "poly": 5}
    assert held_out == {number for _, cells in whole for number in cells}
    assert len(held_out) == pytest.approx(2624 / 5, rel=0.02)


def test_split_is_the_same_each_time(package, tmp_path):
    def held_out(name):
        prepare(tmp_path / name)
        return sorted(file.name for file in (tmp_path / name / "val").rglob("*.png"))

    first = held_out("a")
    assert held_out("b") == first
    assert held_out("a") == first  # over what is there


def test_a_folder_of_the_user_is_left_alone(package, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    done = prepare(tmp_path / "mine", code=2)
    assert done.stderr == (f"error: {tmp_path / 'mine'} exists and was not made by this command; "
                           "name another folder\n")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "elpv_dataset.py").write_text("")  # first on the path, and without photographs
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    done = prepare(tmp_path / "photos", code=2)
    assert done.stderr == ("error: the photographs are not installed: pip install --no-deps "
                           "--ignore-requires-python elpv-dataset==1.0.0.post1\n")
    assert not (tmp_path / "photos").exists()


# ---- the picture ----


@pytest.fixture
def trained(tmp_path, rng):
    """A run directory with a random network, and prepared photos of any content."""
    run, photos = tmp_path / "run", tmp_path / "photos"
    run.mkdir()
    net = gluon_resnest.get_model("resnest14_fast_2s1x8d", classes=2)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    save_weights(net, run / "last.params")
    (run / "classes.txt").write_text("defective\nfunctional\n")
    (run / "config.yaml").write_text(yaml.safe_dump({"recipe": {
        "model": "resnest14_fast_2s1x8d", "test_size": 64, "crop_ratio": 1.0}}))
    records = [{"event": "epoch", "step": 9, "epoch": 1, "loss": 0.5, "lr": 0.01},
               {"event": "validation", "step": 9, "epoch": 1, "top1": 70.0, "loss": 0.6}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for folder, count in (("val/defective", 9), ("val/functional", 12), ("doubtful/one_third", 3),
                          ("doubtful/two_thirds", 1)):
        (photos / folder).mkdir(parents=True)
        for number in range(count):
            base = rng.integers(0, 256, (6, 6), dtype=np.uint8)
            cv2.imwrite(str(photos / folder / f"{number}.png"), cv2.resize(base, (80, 80)))
    return run, photos


def draw(run, photos, output, code=0):
    return run_process(sys.executable, ROOT / "demo/picture.py", run, photos, output, code=code,
                       timeout=240)


def test_picture_and_figures(trained, tmp_path):
    run, photos = trained
    shown = draw(run, photos, tmp_path / "demo.png").stdout.splitlines()
    assert cv2.imread(str(tmp_path / "demo.png")).shape == (1240, 1340, 3)
    found = re.fullmatch(r"21 cells of modules that were not trained on: accuracy ([\d.]+) %, "
                         r"balanced accuracy ([\d.]+) %, ROC AUC ([\d.]+)", shown[-1])
    classifier = load_classifier("resnest14_fast_2s1x8d", run / "last.params", input_size=64,
                                 crop_ratio=1.0)
    files = sorted((photos / "val").rglob("*.png"))
    labels = [file.parent.name == "defective" for file in files]
    chances = classifier.probabilities(np.stack(
        [classifier.transform(read_image(file)) for file in files]))[:, 0]
    assert float(found[1]) == pytest.approx(100 * np.mean((chances > 0.5) == labels), abs=0.06)
    assert float(found[2]) == pytest.approx(
        100 * balanced_accuracy_score(labels, chances > 0.5), abs=0.06)
    assert float(found[3]) == pytest.approx(roc_auc_score(labels, chances), abs=0.0006)


def test_a_run_of_other_classes_is_refused(trained, tmp_path):
    run, photos = trained
    (run / "classes.txt").write_text("cat\ndog\n")
    done = draw(run, photos, tmp_path / "demo.png", code=2)
    assert done.stderr == (f"error: {run} was not trained to find defective cells: run "
                           "`make demo`\n")
