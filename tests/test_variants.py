"""Variants by name and keyword, in every mode: against GluonCV, and against themselves traced."""

from __future__ import annotations

import json
import warnings

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize
from mxnet import autograd

import gluon_resnest
from gluon_resnest.deploy.symbol import import_symbol, write_symbol
from gluon_resnest.errors import InputError
from gluon_resnest.layers import DropBlock, GroupNorm
from gluon_resnest.models import (
    VARIANTS,
    Publication,
    ResNeSt,
    ResNeStFeatures,
    Variant,
    find_variant,
)
from gluon_resnest.tasks.classification.recipe import recipe_of

SMALL = "resnest14_2s2x40d"  # R > 1 and K > 1, at the least depth


def test_names_by_rule():
    variant = find_variant("resnest101_fast_4s2x40d")
    assert (variant.radix, variant.cardinality, variant.width) == (4, 2, 40)
    assert (variant.layers, variant.stem_width, variant.avd_first) == ((3, 4, 23, 3), 64, True)
    published = variant.published
    assert (published.test_size, published.top1, published.sha1) == (256, None, None)
    assert find_variant("ResNeSt26_1s1x64d").avd_first is False
    assert find_variant("resnest200_fast").radix == 2


def test_a_variant_is_a_row(monkeypatch):
    row = Variant("resnest20", (1, 2, 2, 1), cardinality=2, width=32,
                  published=Publication(test_size=256, batch_size=96))
    monkeypatch.setitem(VARIANTS, row.name, row)
    net = gluon_resnest.get_model("resnest20", classes=3)
    assert [len(layer) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)] == [
        1, 2, 2, 1]
    assert net.layer2[1].conv2.cardinality == 2
    assert (row.depth, gluon_resnest.list_models()[-1]) == (20, "resnest20")
    recipe = recipe_of("resnest20")
    assert (recipe.train_size, recipe.test_size, recipe.batch_size) == (224, 256, 96)
    assert find_variant("resnest20_fast_4s1x64d").radix == 4


@pytest.mark.parametrize(("name", "keywords", "words"), [
    ("resnest50_3s1x64d", {}, "width 64 of resnest50_3s1x64d must be divisible by radix 3"),
    ("resnest50", {"radix": -1}, "radix -1 of resnest50 must be at least 0"),
    ("resnest50_1s0x64d", {}, "cardinality 0 of resnest50_1s0x64d must be at least 1"),
    ("resnest50_2s3x10d", {}, "cardinality 3 of resnest50_2s3x10d must divide the attention's"),
    ("resnest50", {"output_stride": 4}, "output_stride 4 of resnest50 must be 8, 16 or 32"),
    ("resnest50", {"final_drop": 1.0}, "final_drop 1.0 of resnest50 must be below 1"),
    ("resnest50", {"layers": (3, 4, 6)}, "layers .* must be four numbers"),
    ("resnest50", {"in_channels": 0}, "in_channels 0 of resnest50 must be at least 1"),
    ("resnest50", {"test_size": 64}, "unknown keyword test_size for model resnest50; known: avd_f"),
    ("resnest50", {"published": None}, "unknown keyword published for model resnest50"),
    ("resnest38_2s1x64d", {}, "unknown model 'resnest38_2s1x64d'"),
])
def test_nonsense_names_the_field_and_why(name, keywords, words):
    with pytest.raises(InputError, match=words):
        gluon_resnest.get_model(name, **keywords)


def gluoncv_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn; nothing of ours
        from gluoncv.model_zoo import get_model
        from gluoncv.model_zoo.resnetv1b import resnet50_v1d
    return get_model, resnet50_v1d


@pytest.mark.parametrize(("ours", "keywords", "theirs"), [
    ("resnest50_fast_0s1x64d", {}, lambda get, v1d: v1d()),
    ("resnest50_fast_0s1x64d", {"dilated": True}, lambda get, v1d: v1d(dilated=True)),
    ("resnest50", {"dilated": True}, lambda get, v1d: get("resnest50", dilated=True)),
    ("resnest26", {"output_stride": 16}, lambda get, v1d: get("resnest26", dilation=2)),
], ids=["ResNet-D", "ResNet-D dilated", "dilated", "output stride 16"])
def test_equals_gluoncv(ours, keywords, theirs, rng, tmp_path):
    theirs = theirs(*gluoncv_networks())
    theirs.initialize()
    theirs(mx.nd.zeros((1, 3, 64, 64)))  # some of its shapes are found by the first call only
    randomize(theirs, rng, branch_gamma=(0.1, 0.3))
    theirs.fc.weight.set_data(theirs.fc.weight.data() / 25)
    theirs.save_parameters(str(tmp_path / "theirs.params"))
    net = gluon_resnest.get_model(ours, pretrained=tmp_path / "theirs.params", **keywords)
    images = mx.nd.array(rng.standard_normal((2, 3, 97, 97)))
    expected = theirs(images).asnumpy()
    assert 0.5 < np.abs(expected).max() < 20
    np.testing.assert_allclose(net(images).asnumpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [64, 97])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_have_the_promised_shapes(output_stride, size, tmp_path):
    net = gluon_resnest.get_model("resnest14", features_only=True, in_channels=4,
                                  output_stride=output_stride)
    net.initialize()
    net.hybridize()
    images = mx.nd.random.normal(shape=(1, 4, size, size + 2))
    maps = net(images)
    assert [m.shape for m in maps] == [
        (1, channels, -(-size // stride), -(-(size + 2) // stride))
        for channels, stride in zip(net.channels, net.strides)]
    assert net.strides[-1] == output_stride
    net.export(str(tmp_path / "features"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MXNet itself, about operators that are not here
        again = mx.gluon.SymbolBlock.imports(
            str(tmp_path / "features-symbol.json"), ["data"],
            str(tmp_path / "features-0000.params"))
    for found, expected in zip(again(images), maps):  # other operators, the same values
        np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-4)


def test_features_are_those_of_the_classifier(rng):
    classifier = gluon_resnest.get_model("resnest14", classes=3)
    classifier.initialize()
    randomize(classifier, rng)
    features = gluon_resnest.get_model("resnest14", features_only=True)
    for key, parameter in features._collect_params_with_prefix().items():
        parameter.initialize()
        parameter.set_data(classifier._collect_params_with_prefix()[key].data())
    images = mx.nd.array(rng.standard_normal((1, 3, 64, 64)))
    pooled = features(images)[-1].mean(axis=(2, 3))
    np.testing.assert_allclose(classifier.fc(pooled).asnumpy(), classifier(images).asnumpy(),
                               rtol=1e-4, atol=1e-4)


def test_a_head_on_the_features_is_one_graph_with_them(rng):
    """As a detector's: a block of its own around the stages, hybridized as a whole."""
    class TopDown(mx.gluon.HybridBlock):
        def __init__(self, features):
            super().__init__()
            self.features = features
            self.lateral = mx.gluon.nn.HybridSequential()
            for channels in features.channels:
                self.lateral.add(mx.gluon.nn.Conv2D(8, 1, in_channels=channels))

        def hybrid_forward(self, F, x):
            return [conv(c) for conv, c in zip(self.lateral._children.values(), self.features(x))]

    features = gluon_resnest.get_model("resnest14", features_only=True)
    assert type(features) is ResNeStFeatures
    assert (features.strides, features.channels) == ((4, 8, 16, 32), (256, 512, 1024, 2048))
    net = TopDown(features)
    net.initialize()
    images = mx.nd.array(rng.standard_normal((2, 3, 64, 96)))
    expected = [found.asnumpy() for found in net(images)]
    net.hybridize()
    for found, value, stride in zip(net(images), expected, features.strides):
        assert found.shape == (2, 8, 64 // stride, 96 // stride)
        np.testing.assert_allclose(found.asnumpy(), value, rtol=0, atol=1e-5 * np.abs(value).max())
    with autograd.record():
        loss = sum((found ** 2).sum() for found in net(images))
    loss.backward()
    assert np.abs(features.conv1[0].weight.grad().asnumpy()).max() > 0


def test_a_classifiers_stages_are_the_features(rng, tmp_path):
    classifier = gluon_resnest.get_model("resnest14", classes=3)
    assert type(classifier) is ResNeSt
    classifier.initialize()
    classifier.save_parameters(str(tmp_path / "net.params"))
    features = gluon_resnest.get_model("resnest14", features_only=True,
                                       pretrained=tmp_path / "net.params")
    images = mx.nd.array(rng.standard_normal((1, 3, 64, 64)))
    for found, expected in zip(classifier.stages(images), features(images)):
        np.testing.assert_array_equal(found.asnumpy(), expected.asnumpy())


NORMS = {
    "SyncBatchNorm": (mx.gluon.contrib.nn.SyncBatchNorm, {"num_devices": 1}),
    "GroupNorm": (GroupNorm, {}),
    "MXNet's GroupNorm": (mx.gluon.nn.GroupNorm, {"num_groups": 16}),
    "frozen": (mx.gluon.nn.BatchNorm, {"use_global_stats": True}),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_can_be_injected_everywhere(kind, rng):
    norm_layer, norm_kwargs = NORMS[kind]
    given = dict(norm_kwargs)
    net = gluon_resnest.get_model("resnest14", norm_layer=norm_layer, norm_kwargs=given,
                                  classes=3, last_gamma=True)
    assert given == norm_kwargs
    net.initialize()
    randomize(net, rng)
    net.hybridize()
    with autograd.record():
        loss = (net(mx.nd.array(rng.standard_normal((2, 3, 64, 64)))) ** 2).sum()
    loss.backward()
    for key, parameter in net._collect_params_with_prefix().items():
        if key.endswith("weight"):
            gradient = parameter.grad().asnumpy()
            assert np.isfinite(gradient).all(), key
            assert np.abs(gradient).max() > 0, key


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_group_norm_by_its_formula(groups, rng):
    norm = GroupNorm(in_channels=16, num_groups=groups)
    norm.initialize()
    gamma, beta = rng.standard_normal(16), rng.standard_normal(16)
    norm.gamma.set_data(mx.nd.array(gamma))
    norm.beta.set_data(mx.nd.array(beta))
    x = rng.standard_normal((3, 16, 5, 4))
    rows = x.reshape(3, groups, -1)
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    expected = rows.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    np.testing.assert_allclose(norm(mx.nd.array(x)).asnumpy(), expected, atol=1e-5)


@pytest.mark.parametrize("hybridized", [False, True])
def test_one_image_cannot_train_the_attention(hybridized):
    net = gluon_resnest.get_model("resnest14", classes=3)
    net.initialize()
    if hybridized:
        net.hybridize(static_alloc=True)
    one = mx.nd.ones((1, 3, 64, 64))
    net(one)  # inference is fine
    with autograd.record(), pytest.raises(InputError, match="batch of 1 image a device"):
        net(one)
    with autograd.record():
        net(mx.nd.ones((2, 3, 64, 64)))  # and the network still trains
    for keywords in ({"use_global_stats": True}, {"norm_layer": GroupNorm}):
        other = gluon_resnest.get_model("resnest14", classes=3, **keywords)
        other.initialize()
        with autograd.record():
            other(one)


def dropblocks(net) -> list[str]:
    found = []

    def visit(block, path):
        if isinstance(block, DropBlock):
            found.append(path)
        for name, child in block._children.items():
            visit(child, f"{path}.{name}" if path else name)

    visit(net, "")
    return found


@pytest.mark.parametrize("name", [SMALL, "resnest14_0s1x64d"])
def test_dropblock_stands_in_the_last_two_stages_and_nowhere_in_files(name, tmp_path):
    net = gluon_resnest.get_model(name, classes=3, dropblock_prob=0.2)
    plain = gluon_resnest.get_model(name, classes=3)
    assert dropblocks(plain) == []
    assert dropblocks(net) == [f"layer{stage}.0.dropblock{i}" for stage in (3, 4)
                               for i in (1, 2, 3)]
    assert list(net._collect_params_with_prefix()) == list(plain._collect_params_with_prefix())
    assert list(net.collect_params()) == list(plain.collect_params())
    net.initialize()
    net.save_parameters(str(tmp_path / "net.params"))
    plain.load_parameters(str(tmp_path / "net.params"))
    without = [node["op"] for node in json.loads(plain(mx.sym.var("data")).tojson())["nodes"]]
    (tmp_path / "out").mkdir()
    write_symbol(net, tmp_path / "out" / "resnest14", graph="plain")
    net.export(str(tmp_path / "own"))  # what users of Gluon call
    for path in (tmp_path / "out" / "resnest14-symbol.json", tmp_path / "own-symbol.json"):
        operators = [node["op"] for node in json.loads(path.read_text())["nodes"]]
        assert sorted(operators) == sorted(without)
    again = import_symbol(tmp_path / "own-symbol.json", tmp_path / "own-0000.params")
    image = mx.nd.ones((1, 3, 64, 64))
    np.testing.assert_allclose(again(image).asnumpy(), net(image).asnumpy(), atol=1e-5, rtol=0)
    with autograd.record():  # and it still drops in training
        first, second = net(mx.nd.ones((2, 3, 64, 64))), net(mx.nd.ones((2, 3, 64, 64)))
    assert np.abs((first - second).asnumpy()).max() > 0


@pytest.mark.parametrize("training_first", [True, False])
def test_dropblock_is_on_in_training_only_whichever_came_first(training_first, rng):
    net = gluon_resnest.get_model(SMALL, classes=3, dropblock_prob=0.3)
    plain = gluon_resnest.get_model(SMALL, classes=3, use_global_stats=True)
    net.initialize()
    plain.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    images = mx.nd.array(rng.standard_normal((4, 3, 64, 64)))
    for turn in range(4):
        if (turn % 2 == 0) == training_first:
            with autograd.record():
                net(images)
        else:
            for key, parameter in net._collect_params_with_prefix().items():
                plain._collect_params_with_prefix()[key].set_data(parameter.data())
            np.testing.assert_array_equal(net(images).asnumpy(), net(images).asnumpy())
            expected = plain(images).asnumpy()
            np.testing.assert_allclose(net(images).asnumpy(), expected, rtol=0,
                                       atol=1e-5 * np.abs(expected).max())
    with autograd.record():
        first, second = net(images).asnumpy(), net(images).asnumpy()
    assert np.abs(first - second).max() > 1e-3  # fresh masks


@pytest.mark.parametrize("name", [SMALL, "resnest26"])
def test_traced_or_not_is_the_same(name, rng, tmp_path):
    net = gluon_resnest.get_model(name, classes=5)
    net.initialize()
    randomize(net, rng, branch_gamma=(0.1, 0.3))
    images = mx.nd.array(rng.standard_normal((2, 3, 65, 65)))
    plain = net(images).asnumpy()
    for flags in ({}, {"static_alloc": True}, {"static_alloc": True, "static_shape": True}):
        net.hybridize(**flags)
        for _ in range(2):
            np.testing.assert_allclose(net(images).asnumpy(), plain, rtol=0,
                                       atol=1e-6 * np.abs(plain).max())
    traced = net(images).asnumpy()
    net.save_parameters(str(tmp_path / "net.params"))
    again = gluon_resnest.get_model(name, classes=5, pretrained=tmp_path / "net.params")
    again.hybridize(static_alloc=True, static_shape=True)
    np.testing.assert_array_equal(again(images).asnumpy(), traced)


def test_train_and_evaluate_in_turns_on_one_graph(rng):
    """After each update the traced network gives the logits of a plain one with its weights."""
    net = gluon_resnest.get_model(SMALL, classes=5)
    plain = gluon_resnest.get_model(SMALL, classes=5)
    for network in (net, plain):
        network.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01})
    images = mx.nd.array(rng.standard_normal((4, 3, 64, 64)))
    seen = []
    for _ in range(3):
        with autograd.record():
            loss = (net(images) ** 2).sum()
        loss.backward()
        trainer.step(4)
        for key, parameter in net._collect_params_with_prefix().items():
            plain._collect_params_with_prefix()[key].set_data(parameter.data())
        logits = net(images).asnumpy()
        expected = plain(images).asnumpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        seen.append(logits)
    assert np.abs(seen[0] - seen[-1]).max() > 1e-3  # the updates did something
