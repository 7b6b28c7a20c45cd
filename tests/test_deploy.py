"""Exported files compute what the network computes, or are not written."""

from __future__ import annotations

import json
import warnings

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.deploy import symbol as deploy
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize
from gluon_resnest.models import save_weights

CARD = {"model": "resnest14", "classes": 4, "input_size": 64, "crop_ratio": 0.875,
        "class_names": ["a", "b", "c", "d"]}


@pytest.fixture(scope="module")
def net():
    net = gluon_resnest.get_model("resnest14", classes=4)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    return net


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    deploy.export_symbol(net, folder, "resnest14", 64, CARD)
    return folder


def test_files_and_card(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "model.json", "resnest14-0000.params", "resnest14-symbol.json"]
    card = json.loads((exported / "model.json").read_text())
    assert card["class_names"] == ["a", "b", "c", "d"]
    assert card["files"] == ["resnest14-symbol.json", "resnest14-0000.params"]
    assert 0 <= card["largest_relative_difference"] <= 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 64, 64), (2, 3, 97, 80)])
def test_logits_equal_the_networks(net, exported, shape, rng):
    """Read back by MXNet alone, as a user of the files would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MXNet itself, about operators that are not here
        symbol = mx.gluon.SymbolBlock.imports(str(exported / "resnest14-symbol.json"), ["data"],
                                              str(exported / "resnest14-0000.params"))
    images = mx.nd.array(rng.standard_normal(shape))
    np.testing.assert_allclose(symbol(images).asnumpy(), net(images).asnumpy(), atol=1e-5, rtol=0)


def test_classifier_from_symbol_equals_the_one_from_the_checkpoint(net, exported, photos, tmp_path):
    save_weights(net, tmp_path / "net.params")
    from_checkpoint = load_classifier("resnest14", tmp_path / "net.params", input_size=64)
    from_symbol = load_classifier(str(exported / "resnest14-symbol.json"))
    crops = np.stack([from_symbol.transform(photo) for photo in photos])
    assert crops.shape == (2, 64, 64, 3)
    found = from_symbol.probabilities(crops)
    np.testing.assert_allclose(found, from_checkpoint.probabilities(crops), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert from_symbol.class_names == ("a", "b", "c", "d")
    assert from_checkpoint.class_names is None
    assert from_checkpoint.class_name(3) == "class 3"


def test_a_second_model_wants_a_folder_of_its_own(net, exported, tmp_path):
    with pytest.raises(InputError, match="describes an export of resnest14: give resnest26"):
        deploy.export_symbol(net, exported, "resnest26", 64, CARD)
    for path in exported.iterdir():
        (tmp_path / path.name.replace("resnest14-", "other-")).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"describes resnest14-symbol.json, not other-symbol"):
        load_classifier(str(tmp_path / "other-symbol.json"))


def test_a_disagreement_leaves_no_file(net, tmp_path, monkeypatch):
    other = gluon_resnest.get_model("resnest14", classes=4)
    other.initialize()
    monkeypatch.setattr(deploy, "import_symbol", lambda *_: other)
    with pytest.raises(deploy.DisagreementError, match="nothing was written"):
        deploy.export_symbol(net, tmp_path / "out", "resnest14", 64, CARD)
    assert list((tmp_path / "out").iterdir()) == []


def test_broken_files_are_one_line(exported, tmp_path):
    for name in ("model.json", "resnest14-0000.params", "resnest14-symbol.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    symbol = tmp_path / "resnest14-symbol.json"
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model.json lacks classes, .*export the model again"):
        load_classifier(str(symbol))
    (tmp_path / "model.json").unlink()
    with pytest.raises(InputError, match=r"model.json, the card beside .*export the model again"):
        load_classifier(str(symbol))
    symbol.write_text("{")
    with pytest.raises(InputError, match="cannot be loaded together"):
        load_classifier(str(symbol))
    symbol.unlink()
    with pytest.raises(InputError, match=r"resnest14-symbol.json is missing"):
        load_classifier(str(symbol))


def test_normalisation_by_its_formula(rng):
    pixels = rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    found = Normalize()(mx.nd.array(pixels, dtype=np.uint8)).asnumpy()
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)
