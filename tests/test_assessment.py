"""Classes, confusions and calibration: against plain loops; and evaluate.py that shows them."""

from __future__ import annotations

import json
import re
import runpy
import sys
import warnings

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import DIGIT_CLASSES, ROOT, randomize
from scipy.special import softmax
from sklearn import metrics
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

import gluon_resnest
from gluon_resnest.drawing.calibration_picture import draw_calibration
from gluon_resnest.drawing.confusion_picture import draw_confusion
from gluon_resnest.models import save_weights
from gluon_resnest.tasks.classification import assessment
from gluon_resnest.tasks.classification.assessment import Assessor
from gluon_resnest.tasks.classification.evaluation import label_ranks
from gluon_resnest.tasks.classification.roc import roc_auc, roc_curve


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
                                               "hits": 0, "accuracy": None, "roc_auc": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        balanced = balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy == pytest.approx(100 * balanced)


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


# ---- balanced accuracy and ROC AUC ----


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("grid", [None, 0.5, 4.0])
def test_auc_is_scikit_learns(classes, grid, rng):
    """On a grid many images have the same probabilities, and a tie counts one half."""
    logits, labels = drawn(rng, 400, classes, skill=1.0)
    if grid is not None:
        logits = np.round(logits / grid) * grid
    found = assess(logits, labels)
    # Rounded, or the order in which a softmax sums would break ties.
    probabilities = softmax(logits.astype(np.float64), axis=1).round(12)
    reference = (roc_auc_score(labels, probabilities[:, 1]) if classes == 2 else
                 roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"))
    assert found.roc_auc == pytest.approx(reference, abs=1e-6)
    for label in range(classes):
        assert found.as_dict()["per_class"][label]["roc_auc"] == pytest.approx(
            roc_auc_score(labels == label, probabilities[:, label]), abs=1e-6)


def test_auc_of_a_network_that_is_sure(rng):
    """Probabilities that all round to 1 in float32 still have an order."""
    logits = np.stack([np.zeros(200), rng.uniform(18, 30, 200)], axis=1).astype(np.float32)
    labels = (logits[:, 1] + rng.normal(0, 3, 200) > 24).astype(int)
    assert (softmax(logits, axis=1)[:, 1] == 1).all()
    assert assess(logits, labels).roc_auc == pytest.approx(
        roc_auc_score(labels, logits[:, 1]), abs=1e-6)


def test_auc_where_classes_have_no_images(rng):
    logits, labels = drawn(rng, 200, 4)
    labels[labels == 2] = 0
    found = assess(logits, labels)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    assert found.roc_auc == pytest.approx(np.mean(
        [roc_auc_score(labels == label, probabilities[:, label]) for label in (0, 1, 3)]), abs=1e-6)
    assert found.as_text()[0].endswith("(3 of 4 classes have images)")


@pytest.mark.parametrize(("logits", "labels", "words"), [
    ([[1, 0], [0, 1]], [1, 1], "ROC AUC undefined: all images are of one class"),
    ([[1, 0, 0], [0, 1, 0]], [2, 2], "ROC AUC undefined: all images are of one class"),
    ([[1, 0], [np.nan, 1]], [0, 1], "ROC AUC undefined: the network gives NaN")])
def test_undefined_auc_is_said_and_is_null_in_json(logits, labels, words):
    found = assess(np.array(logits, float), np.array(labels))
    assert found.as_text()[0].endswith(words)
    figures = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert figures["roc_auc"] is None
    assert figures["balanced_accuracy"] == found.balanced_accuracy


def test_auc_is_left_out_where_it_would_take_too_much_memory(monkeypatch, rng):
    logits, labels = drawn(rng, 100, 20)
    monkeypatch.setattr(assessment, "_MOST_SCORES", 1999)
    found = assess(logits, labels)
    assert found.as_dict()["roc_auc"] is None
    assert "not computed: more than 1,999 images x classes" in found.as_text()[0]
    assert not np.isnan(assess(logits[:99], labels[:99]).roc_auc)


@pytest.mark.parametrize("grid", [None, 1.0])
def test_curve_is_scikit_learns(grid, rng):
    scores, positive = rng.standard_normal(300), rng.random(300) < 0.3
    scores += positive
    if grid is not None:
        scores = np.round(scores)
    false, true = roc_curve(scores, positive)
    expected_false, expected_true, _ = metrics.roc_curve(positive, scores,
                                                         drop_intermediate=False)
    np.testing.assert_allclose(false, expected_false, atol=1e-12)
    np.testing.assert_allclose(true, expected_true, atol=1e-12)
    assert metrics.auc(false, true) == pytest.approx(roc_auc(scores, positive), abs=1e-12)


def test_text(rng):
    two = assess(*drawn(rng, 100, 2)).as_text()
    assert len(two) == 2
    assert re.fullmatch(r"balanced accuracy [\d.]+ %, ROC AUC 0\.\d{4}", two[0])
    assert two[1].startswith("calibration: expected error ")
    logits = np.eye(3)[[0, 0, 0, 1, 1, 2, 0]] * 9
    lines = assess(logits, np.array([0, 0, 1, 1, 1, 2, 1]), names=["cat", "$dog$", "犬"]).as_text()
    assert lines[0] == ("balanced accuracy 83.33 %, ROC AUC 0.8500, mean of each class against "
                        "the rest")
    assert lines[2:] == ["worst classes: $dog$ 50.0 % of 4; cat 100.0 % of 2; 犬 100.0 % of 1",
                         "most confused: $dog$ for cat 2×"]
    assert "overconfident by 28.5" in lines[1]


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
        "resnest14 at 32 px on 61 images", lines[1], "calibration", "worst classes",
        "most confused"]
    assert lines[1].startswith("balanced accuracy ")


def test_a_network_without_finite_logits_gives_json_without_nan(
        digits, tmp_path, capsys, monkeypatch):
    net = gluon_resnest.get_model("resnest14", classes=DIGIT_CLASSES)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    net.fc.weight.set_data(mx.nd.full(net.fc.weight.shape, 3e38))
    save_weights(net, tmp_path / "w.params")
    monkeypatch.setattr(sys, "argv", list(map(str, (
        "scripts/evaluate.py", *flags(tmp_path / "w.params", digits), "--json"))))
    runpy.run_path(str(ROOT / "scripts/evaluate.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["loss"] is None
    assert found["roc_auc"] is None
    assert found["expected_calibration_error"] is None
    assert found["top1"] == found["balanced_accuracy"] == 0


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
