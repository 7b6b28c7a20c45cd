"""Every kind of network, as a symbol and as ONNX, on photographs: the network's own logits."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize

import gluon_resnest
from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.deploy.comparison import compare
from gluon_resnest.deploy.exporting import Description, export, run_exported
from gluon_resnest.deploy.symbol import on_device

# Of the largest logit.
TOLERANCES = {"symbol": 1e-5, "onnx": 1e-4}
SIZE = 64


@pytest.fixture(scope="module")
def crops(photos):
    """Seven views (64, 64, 3) of two photographs: of each all, and parts."""
    transform = EvaluationTransform(SIZE)
    views = [photo[top:, left:] for photo in photos for top in (0, 200) for left in (0, 300)]
    return np.stack([transform(view) for view in views[:7]])


def check(name: str, form: str, pixels: bool, crops: np.ndarray, folder) -> None:
    net = gluon_resnest.get_model(name)
    net.initialize()
    randomize(net, branch_gamma=(0.05, 0.2))
    export(net, folder, Description(name, SIZE, 0.875), crops, form=form, pixels=pixels)
    _, forward = run_exported(folder)
    found = compare(on_device(net, mx.cpu()), forward, crops, any_size=form == "symbol")
    print(name, form, found)
    assert found.largest_relative_difference <= TOLERANCES[form]
    assert found.top1_agreement == 1


@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("name", [
    "resnest14", "resnest26", "resnest50", "resnest50_fast_4s2x40d", "resnest101",
    "resnest14_0s1x64d", "resnest14_fast_1s1x64d", "resnest14_1s4x24d", "resnest14_2s2x40d",
    "resnest14_fast_4s1x64d"])
def test_exports(name, form, crops, tmp_path):
    check(name, form, len(name) % 2 == 0, crops, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", TOLERANCES)
@pytest.mark.parametrize("name", ["resnest200", "resnest269"])
def test_deep_exports(name, form, crops, tmp_path):
    check(name, form, False, crops[:4], tmp_path)
