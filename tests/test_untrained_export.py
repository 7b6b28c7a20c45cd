"""Untrained networks, which amplify rounding, are exported; a wrong weight is found even so."""

from __future__ import annotations

import json

import mxnet as mx
import numpy as np
import onnx
import pytest
from conftest import ROOT, randomize, run_tool
from onnx import numpy_helper

import gluon_resnest
from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.images.made_photographs import photographs
from gluon_resnest.deploy import Description, deployed, export, exporting
from gluon_resnest.deploy.check_images import drawn_crops
from gluon_resnest.deploy.comparison import DisagreementError
from gluon_resnest.deploy.rounding import ROUNDING_MULTIPLE, rounding_of
from gluon_resnest.errors import InputError
from gluon_resnest.models import save_weights

SIZE = 96
DESCRIPTION = Description("resnest50", SIZE, 0.875)


@pytest.fixture(scope="module")
def crops():
    return drawn_crops(list(photographs(4)), EvaluationTransform(SIZE, 0.875))


@pytest.fixture(scope="module")
def untrained():
    """Its exports differ by 1e-4 to 1e-3 of the largest logit, which was refused."""
    mx.random.seed(2)
    net = gluon_resnest.get_model("resnest50", classes=10)
    net.initialize()
    net.hybridize(static_alloc=True)
    return net


def break_symbol(files) -> None:
    arrays = mx.nd.load(str(files[1]))
    name = "arg:layer3_2_conv2_fc2_weight"
    weight = arrays[name].asnumpy()
    weight[:8] *= -1  # of 256 channels
    arrays[name] = mx.nd.array(weight)
    mx.nd.save(str(files[1]), arrays)


def break_onnx(files) -> None:
    model = onnx.load(str(files[0]))
    weight, = (one for one in model.graph.initializer if one.name == "layer3_2_conv2_fc2_weight")
    value = numpy_helper.to_array(weight).copy()
    value[:8] *= -1
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    onnx.save(model, str(files[0]))


@pytest.fixture
def wrong_export(monkeypatch):
    """Files are written with a wrong sign in one layer, as by a bug."""
    right = exporting._write

    def write(net, prefix, size, form, *settings):
        files = right(net, prefix, size, form, *settings)
        (break_onnx if form == "onnx" else break_symbol)(files)
        return files

    monkeypatch.setattr(exporting, "_write", write)


@pytest.mark.parametrize(("form", "graph"), [
    ("symbol", "deployed"), ("symbol", "plain"), ("onnx", "deployed"),
    pytest.param("int8", "deployed", marks=pytest.mark.slow),
    pytest.param("onnx-int8", "deployed", marks=pytest.mark.slow)])
def test_is_exported(form, graph, untrained, crops, tmp_path):
    export(untrained, tmp_path, DESCRIPTION, crops, form, graph, calibration=crops)
    agreement = json.loads((tmp_path / "model.json").read_text())["agreement"]
    found = agreement["largest_relative_difference"]
    if "int8" in form:
        assert agreement["top1_agreement"] >= 0.9
        assert "rounding_alone" not in agreement
    elif found > (1e-5 if graph == "plain" else 1e-4):
        # The card says why so much was allowed.
        alone = agreement["rounding_alone"]["largest_relative_difference"]
        assert 1e-5 < alone < 1e-2
        assert found <= ROUNDING_MULTIPLE * alone


@pytest.mark.parametrize("form", ["symbol", "onnx"])
def test_a_wrong_weight_is_found(form, untrained, crops, tmp_path, wrong_export):
    with pytest.raises(DisagreementError, match=r"of the images; allowed: .* rounding alone does"):
        export(untrained, tmp_path, DESCRIPTION, crops, form)
    assert list(tmp_path.iterdir()) == []


def test_deployed_in_this_process(untrained, crops):
    images = mx.nd.array(np.float32(crops.transpose(0, 3, 1, 2)) / 128 - 1)
    expected = untrained(images).asnumpy()
    np.testing.assert_allclose(deployed(untrained)(images).asnumpy(), expected, rtol=0,
                               atol=0.02 * np.abs(expected).max())


def test_trained_networks_get_no_more_than_before(crops, tmp_path, monkeypatch):
    """Their rounding is far below the tolerance, so it decides, as it always did."""
    net = gluon_resnest.get_model("resnest14", classes=4)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    net.hybridize(static_alloc=True)
    alone = rounding_of(net, crops)
    assert 0 < alone.median_relative_difference <= alone.largest_relative_difference < 1e-6
    assert alone.top1_agreement == 1
    right = exporting.run_exported
    monkeypatch.setattr(exporting, "run_exported", lambda path: (
        None, lambda pixels: right(path)[1](pixels) * np.float32(1.00015)))
    with pytest.raises(DisagreementError, match=r"by 0.00015 .* allowed: 0.0001, rounding alone"):
        export(net, tmp_path, DESCRIPTION, crops)


@pytest.mark.slow
def test_by_the_command_line(untrained, tmp_path, tool, request):
    """Exit code 0; and for files that are wrong, one line and 2."""
    save_weights(untrained, tmp_path / "fresh.params")
    command = [ROOT / "scripts/export_model.py", "--model", "resnest50", "--params",
               tmp_path / "fresh.params", "--test-size", SIZE, "--image-count", 3,
               "--output", tmp_path / "out"]
    assert "agrees with the network on 3 drawn pictures" in run_tool(*command).stderr
    request.getfixturevalue("wrong_export")
    code, stderr = tool(*command)
    assert code == 2
    assert stderr.splitlines()[-1].startswith("error: exported logits differ from the network's")
    assert "Traceback" not in stderr


def test_without_weights(crops, tmp_path):
    net = gluon_resnest.get_model("resnest14", classes=4)
    with pytest.raises(InputError, match=r"no weights yet: call net.initialize\(\)"):
        export(net, tmp_path / "out", DESCRIPTION, crops)
    with pytest.raises(InputError, match="no weights yet"):
        deployed(net)
    assert not (tmp_path / "out").exists()


def test_weights_that_give_no_numbers(crops, tmp_path):
    net = gluon_resnest.get_model("resnest14", classes=4)
    net.initialize()
    net.fc.bias.set_data(mx.nd.array([0, np.inf, 0, 0]))
    with pytest.raises(InputError, match="own logits are NaN or infinite: its weights are"):
        export(net, tmp_path, DESCRIPTION, crops[:2])
