"""The deployment graph computes what the network computes, with fewer operators."""

from __future__ import annotations

import json
from collections import Counter

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize, run_tool
from mxnet import autograd

import gluon_resnest
from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.deploy.mxnet_graph import deployed, deployment_graph
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize, portable_operators
from gluon_resnest.layers.operators import BatchNormReLU
from gluon_resnest.models import save_weights

NETWORKS = [
    ("resnest14", {}),
    ("resnest26", {"output_stride": 8}),
    ("resnest14", {"final_drop": 0.2, "dropblock_prob": 0.1}),
    ("resnest14_fast_4s2x40d", {}),
    ("resnest14_1s4x24d", {}),
    ("resnest14_2s2x40d", {}),
    ("resnest14_fast_0s1x64d", {}),
    ("resnest14", {"norm_layer": mx.gluon.nn.GroupNorm}),
]


def network(name, **kwargs):
    net = gluon_resnest.get_model(name, classes=7, **kwargs)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    net.hybridize()
    return net


def assert_close(found, expected):
    """Within 1e-5 of the largest; 1e-4 is what the export allows."""
    scale = np.abs(expected.asnumpy()).max()
    np.testing.assert_allclose(found.asnumpy() / scale, expected.asnumpy() / scale, atol=1e-5,
                               rtol=0)


@pytest.mark.parametrize(("name", "kwargs"), NETWORKS)
def test_equals_the_network_on_noise_and_on_photographs(name, kwargs, photos):
    net = network(name, **kwargs)
    block = deployed(net)
    for shape in ((2, 3, 64, 64), (1, 3, 97, 80), (3, 3, 64, 64)):
        images = mx.nd.random.normal(shape=shape)
        assert_close(block(images), net(images))
    crops = np.stack([EvaluationTransform(96, 0.875)(photo) for photo in photos])
    images = Normalize()(mx.nd.array(crops, dtype=np.uint8))
    assert_close(block(images), net(images))


def test_equals_the_network_without_fusion():
    """The symbol alone, operator by operator, as any client runs it."""
    net = network("resnest14")
    symbol, parameters = deployment_graph(net)
    images = mx.nd.random.normal(shape=(2, 3, 64, 64))
    found, = symbol.eval(ctx=mx.cpu(), data=images, **parameters)
    assert_close(found, net(images))


def test_features():
    net = gluon_resnest.get_model("resnest14", features_only=True)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    images = mx.nd.random.normal(shape=(1, 3, 64, 64))
    for found, expected in zip(deployed(net)(images), net(images)):
        assert_close(found, expected)


def operators(symbol) -> Counter:
    return Counter(node["op"] for node in json.loads(symbol.tojson())["nodes"])


def test_operators_of_the_deployment_graph():
    """ResNeSt-50: 16 blocks, 4 of them with a projection, 3 convolutions in the stem."""
    symbol, parameters = deployment_graph(network("resnest50", dropblock_prob=0.1))
    found = operators(symbol)
    assert found["BatchNorm"] == found["Dropout"] == found["softmax"] == found["sum"] == 0
    assert found["Convolution"] == 3 + 16 * 5 + 4
    assert found["broadcast_mul"] == 16  # one product a block, on one split
    assert found["SliceChannel"] == 16
    # Stem, transitions and their shortcuts, attention, head.
    assert found["Pooling"] == 1 + 3 + 3 + 16 + 1
    assert sum(found.values()) - found["null"] == 276
    assert sum(value.size for value in parameters.values()) < gluon_resnest.summary(
        "resnest50").parameters + 2e6


def traced(net) -> Counter:
    return operators(net._cached_graph[1])


def test_operators_that_training_runs_on():
    """No operator whose gradient is slow on a CPU, and ReLU in the normalisation before it."""
    net = gluon_resnest.get_model("resnest50", classes=3)
    net.initialize()
    net.hybridize()
    images = mx.nd.zeros((2, 3, 32, 32))
    with autograd.record():
        net(images)
    found = traced(net)
    assert found["broadcast_mul"] == found["sum"] == found["_contrib_AdaptiveAvgPooling2D"] == 0
    assert found["_contrib_BatchNormWithReLU"] == 3 + 16 * 3
    assert found["Activation"] == 16  # behind the sums with the shortcuts
    assert found["batch_dot"] == 2 * 16  # to the mean over the pixels, and back
    assert found["Pooling"] == 1 + 3 + 3 + 1  # no pooling in the first shortcut, which is 1x1

    with portable_operators(net):
        net(images)
        portable = traced(net)
    assert portable["_contrib_BatchNormWithReLU"] == portable["batch_dot"] == 0
    assert portable["broadcast_mul"] == portable["_contrib_AdaptiveAvgPooling2D"] == 16
    assert portable == operators(net(mx.sym.var("data")))
    net(images)
    assert traced(net) == found


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["resnest14", "resnest14_fast_4s2x40d", "resnest14_1s4x24d"])
def test_both_forms_have_the_same_gradients(name, frozen):
    net = gluon_resnest.get_model(name, classes=3, use_global_stats=frozen)
    net.initialize()
    randomize(net, branch_gamma=(0.1, 0.3))
    net.hybridize()
    # Statistics of two or three values a channel, in the attention, would blow up rounding.
    images = mx.nd.random.normal(shape=(12, 3, 32, 32))
    images.attach_grad()
    # The normalisation behind fc1 cancels its bias: without frozen statistics that is all rounding.
    parameters = [p for key, p in net._collect_params_with_prefix().items()
                  if p.grad_req != "null" and (frozen or not key.endswith("fc1.bias"))]

    def gradients():
        with autograd.record():
            loss = (net(images) ** 2).sum()
        loss.backward()
        return [images.grad.copy(), *(p.grad().copy() for p in parameters)]

    found = gradients()
    with portable_operators(net):
        expected = gradients()
    for one, other in zip(found, expected):
        largest = np.abs(other.asnumpy()).max()
        assert largest > 0
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=2e-4 * largest + 1e-7,
                                   rtol=0)


# Widths that oneDNN lays out in different ways on the two sides of a normalisation. On some of
# them the operator with ReLU in it fails, so they must be made of two.
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2", "SSE41"])
def test_odd_widths_train_on_any_cpu(instructions, tmp_path, monkeypatch):
    names = ["2s1x24d", "2s1x20d", "2s2x8d", "1s4x24d", "fast_2s2x40d", "0s4x24d", "3s1x48d",
             "1s32x4d", "0s1x20d"]
    program = tmp_path / "train.py"
    program.write_text(f"""
import gluon_resnest, mxnet as mx
for name in {names}:
    net = gluon_resnest.get_model(f"resnest14_{{name}}", classes=3)
    net.initialize()
    net.hybridize()
    with mx.autograd.record():
        loss = (net(mx.nd.random.normal(shape=(2, 3, 32, 32))) ** 2).sum()
    loss.backward()
    mx.nd.waitall()
""", encoding="utf-8")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", instructions)
    run_tool(program)


def test_fused_normalisation_is_only_where_it_is_safe():
    first = gluon_resnest.get_model("resnest50_2s2x40d").layer1[0]
    assert not isinstance(first.bn1, BatchNormReLU)  # 80 channels, then 4 groups of 20
    assert isinstance(gluon_resnest.get_model("resnest50").layer1[0].bn1, BatchNormReLU)


def test_export_writes_either_graph(tmp_path):
    save_weights(network("resnest14"), tmp_path / "net.params")
    command = ["scripts/export_model.py", "--model", "resnest14", "--params",
               tmp_path / "net.params", "--test-size", "64", "--output"]
    run_tool(*command, tmp_path / "deployed")
    run_tool(*command, tmp_path / "plain", "--graph", "plain")
    for graph, normalisations in (("deployed", 0), ("plain", 23)):
        folder = tmp_path / graph
        assert json.loads((folder / "model.json").read_text())["graph"] == graph
        symbol = mx.sym.load(str(folder / "resnest14-symbol.json"))
        assert operators(symbol)["BatchNorm"] == normalisations
        assert not any(op.startswith(("_contrib_BatchNormWithReLU", "_sg_mkldnn"))
                       for op in operators(symbol))
    again = gluon_resnest.get_model("resnest14", classes=7,
                                    pretrained=tmp_path / "plain/resnest14-0000.params")
    assert again.classes == 7
    with pytest.raises(InputError, match=r"graph for inference.*or export with --graph plain"):
        gluon_resnest.get_model("resnest14", classes=7,
                                pretrained=tmp_path / "deployed/resnest14-0000.params")
