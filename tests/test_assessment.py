"""Classes, confusions and calibration: against plain loops; and evaluate.py that shows them."""

from __future__ import annotations

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
from conftest import DIGIT_CLASSES, ROOT, randomize
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

import gluon_resnest
from gluon_resnest.drawing.calibration_picture import draw_calibration
from gluon_resnest.drawing.confusion_picture import draw_confusion
from gluon_resnest.models import save_weights
from gluon_resnest.tasks.classification.assessment import Assessor
from gluon_resnest.tasks.classification.evaluation import label_ranks


def assess(logits, labels, size=17, names=None):
    assessor = Assessor(names or [f"class {label}" for label in range(logits.shape[1])])
    for start in range(0, len(labels), size):
        assessor.observe(logits[start:start + size], labels[start:start + size])
    return assessor.assessment()


def drawn(rng, images, classes, skill=2.0):
    labels = rng.integers(0, classes, images)
    logits = rng.standard_normal((images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += skill
    return logits, labels


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_classes_and_confusions(classes, rng):
    logits, labels = drawn(rng, 300, classes)
    labels[labels == 1] = 0  # a class without images
    found = assess(logits, labels)
    predicted = logits.argmax(axis=1)
    np.testing.assert_array_equal(
        found.matrix(), confusion_matrix(labels, predicted, labels=range(classes)))
    for label in range(classes):
        there = labels == label
        assert found.images[label] == there.sum()
        assert found.hits[label] == (predicted[there] == label).sum()
        if there.any():
            assert found.accuracy[label] == pytest.approx(100 * (predicted[there] == label).mean())
    assert np.isnan(found.accuracy[1])
    assert 1 not in found.worst(classes)
    assert found.worst(classes) == sorted(found.worst(classes), key=lambda k: found.accuracy[k])
    assert (np.diff(found.pairs[:, 2]) <= 0).all()
    assert found.as_dict()["per_class"][1] == {"label": 1, "class": "class 1", "images": 0,
                                               "hits": 0, "accuracy": None}


@pytest.mark.parametrize(("classes", "skill"), [(2, 1.0), (10, 3.0), (200, 8.0)])
def test_calibration_error_by_a_loop(classes, skill, rng):
    logits, labels = drawn(rng, 1000, classes, skill)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    total = 0.0
    for number in range(15):
        hits, confidences = [], []
        for row, label in zip(probabilities, labels):
            if number / 15 < row.max() <= (number + 1) / 15:
                hits.append(row.argmax() == label)
                confidences.append(row.max())
        if hits:
            total += len(hits) / 1000 * abs(np.mean(hits) - np.mean(confidences))
    found = assess(logits, labels)
    assert found.calibration_error == pytest.approx(100 * total, abs=1e-9)
    assert found.confidence == pytest.approx(100 * probabilities.max(axis=1).mean())
    bins = found.as_dict()["calibration"]
    assert len(bins) == 15
    assert sum(one["images"] for one in bins) == 1000
    assert all((one["accuracy"] is None) == (one["images"] == 0) for one in bins)


def test_known_calibration():
    """Four images at a confidence of 0.8 each, three of them hits: 5 points off."""
    logits = np.log(np.array([[0.8, 0.2]] * 4))
    assert assess(logits, np.array([0, 0, 0, 1])).calibration_error == pytest.approx(5)
    certain = np.array([[1000.0, 0.0]])
    assert assess(certain, np.array([0])).calibration_error == 0
    assert assess(certain, np.array([1])).calibration_error == 100


@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [np.nan] * 3,
                                 [1.0, np.nan, 0.0]])
def test_ties_and_nan_are_errors_as_in_the_accuracy(row):
    """The diagonal is what top-1 counts, also of a broken network."""
    logits, labels = np.array([row] * 3), np.arange(3)
    found = assess(logits, labels)
    assert found.hits.sum() == (label_ranks(logits, labels) < 1).sum()
    assert found.matrix().sum() == 3
    assert np.trace(found.matrix()) == found.hits.sum()
    assert np.isnan(found.calibration_error) == np.isnan(row).any()


def test_text(rng):
    two = assess(*drawn(rng, 100, 2)).as_text()
    assert len(two) == 1
    assert two[0].startswith("calibration: expected error ")
    logits = np.eye(3)[[0, 0, 0, 1, 1, 2, 0]] * 9
    lines = assess(logits, np.array([0, 0, 1, 1, 1, 2, 1]), names=["cat", "$dog$", "犬"]).as_text()
    assert lines[1:] == ["worst classes: $dog$ 50.0 % of 4; cat 100.0 % of 2; 犬 100.0 % of 1",
                         "most confused: $dog$ for cat 2×"]
    assert "overconfident by 28.5" in lines[0]


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 1000, 1500])
def test_pictures(classes, rng, tmp_path):
    names = [f"Siberian $husky$, {'very ' * 30} 犬 {label}" for label in range(classes)]
    logits, labels = drawn(rng, 200, classes)
    found = assess(logits, labels, names=names)
    draw_confusion(found, tmp_path / "a.png", "a network on $x$.rec")
    draw_calibration(found, tmp_path / "b.png", "a network on $x$.rec")
    page, other = (cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE)
                   for name in ("a.png", "b.png"))
    height, width = page.shape
    assert 600 < width < 3200
    assert 350 < height < 2000
    assert other.shape[0] > 500
    if classes == 1000:  # at least one pixel a class
        assert ((page < 250).sum(axis=0) > 1000).sum() >= 1000


# ---- the command line ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.params"
    net = gluon_resnest.get_model("resnest14", classes=DIGIT_CLASSES)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    save_weights(net, path)
    return path


def flags(weights, digits):
    return ("--model", "resnest14", "--params", weights, "--rec-val", digits / "val.rec",
            "--test-size", 32, "--no-cuda")


def test_evaluate_writes_figures_and_pictures(weights, digits, tmp_path, capsys, monkeypatch):
    pictures = (tmp_path / "new" / "c.png", tmp_path / "r.png")
    command = ("scripts/evaluate.py", *flags(weights, digits), "--confusion", pictures[0],
               "--calibration", pictures[1])
    monkeypatch.setattr(sys, "argv", list(map(str, (*command, "--json"))))
    runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert [one["class"] for one in found["per_class"]] == ["digit0", "digit1", "digit2", "digit3"]
    assert sum(one["images"] for one in found["per_class"]) == found["images"] == 61
    hits = sum(one["hits"] for one in found["per_class"])
    assert 100 * hits / 61 == pytest.approx(found["top1"])
    assert sum(pair["images"] for pair in found["confusions"]) == 61 - hits
    assert 0 <= found["expected_calibration_error"] <= 100
    assert found["images_per_second"] > 0
    for path in pictures:
        assert path.read_bytes()[:4] == b"\x89PNG"

    monkeypatch.setattr(sys, "argv", list(map(str, command[:-4])))
    runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "resnest14 at 32 px on 61 images", "calibration", "worst classes", "most confused"]


@pytest.mark.parametrize(("flag", "name", "words"), [
    ("--confusion", "c.jpg", "must be a file that ends in .png"),
    ("--calibration", "folder.png", "must be a file that ends in .png"),
    ("--calibration", "file/c.png", "cannot be written")])
def test_pictures_that_cannot_be_written(flag, name, words, weights, digits, tmp_path, tool):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    code, err = tool("scripts/evaluate.py", *flags(weights, digits), flag, tmp_path / name)
    assert code == 2
    assert err.startswith(f"error: {flag} {tmp_path / name} ")
    assert words in err
    assert err.count("\n") == 0
