"""Every variant: sizes from the published table, gradients, and GluonCV's logits."""

from __future__ import annotations

import re
import warnings
from math import prod

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize
from mxnet import autograd

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.models import VARIANTS, check_input_size, find_variant
from gluon_resnest.models.bottleneck import BlockSettings, Bottleneck

# Trainable parameters, running statistics, and arrays in a .params file: read off GluonCV's and
# the ResNeSt repository's networks, 1000 classes.
SIZES = {
    "resnest14": (10_611_688, 22_336, 129),
    "resnest26": (17_069_448, 36_736, 221),
    "resnest50": (27_483_240, 64_576, 405),
    "resnest101": (48_275_016, 130_112, 796),
    "resnest200": (70_201_544, 218_432, 1555),
    "resnest269": (110_929_480, 314_432, 2084),
    "resnest50_fast_1s1x64d": (26_217_896, 55_232, 405),
    "resnest50_fast_2s1x64d": (27_483_240, 64_576, 405),
    "resnest50_fast_4s1x64d": (31_912_712, 83_456, 405),
    "resnest50_fast_1s2x40d": (25_946_680, 59_456, 405),
    "resnest50_fast_2s2x40d": (26_943_792, 71_184, 405),
    "resnest50_fast_4s2x40d": (30_417_592, 94_784, 405),
    "resnest50_fast_1s4x24d": (25_677_000, 63_680, 405),
}


def test_every_variant_is_in_the_table():
    assert set(gluon_resnest.list_models()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name):
    net = gluon_resnest.get_model(name)
    parameters = net._collect_params_with_prefix().values()
    trainable = sum(prod(p.shape) for p in parameters if p.grad_req != "null")
    statistics = sum(prod(p.shape) for p in parameters if p.grad_req == "null")
    assert (trainable, statistics, len(parameters)) == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_name_agrees_with_architecture(name):
    variant = VARIANTS[name]
    assert variant.depth == int(re.match(r"resnest(\d+)", name)[1])
    assert variant.avd_first == ("_fast_" in name)
    if setting := re.search(r"(\d+)s(\d+)x(\d+)d", name):
        assert (variant.radix, variant.cardinality, variant.width) == tuple(
            map(int, setting.groups()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_gradients_reach_every_weight(name, rng):
    net = gluon_resnest.get_model(name, classes=10)
    net.initialize()
    randomize(net, rng)
    net.hybridize()
    data = mx.nd.array(rng.standard_normal((4, 3, 64, 64)))
    with autograd.record():
        loss = (net(data) * mx.nd.array(rng.standard_normal((4, 10)))).sum()
    loss.backward()
    for key, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req == "null":
            continue
        gradient = parameter.grad().asnumpy()
        assert np.isfinite(gradient).all(), key
        if key.endswith("weight"):
            assert np.abs(gradient).max() > 0, key


@pytest.mark.parametrize("name", ["resnest14", "resnest50", "resnest101"])
def test_logits_and_names_equal_gluoncv(name, rng, tmp_path):
    theirs = gluoncv_model(name)
    theirs.initialize()
    randomize(theirs, rng, branch_gamma=(0.1, 0.3))
    # Logits of a few units, as trained networks give; 1e-5 is then near fp32's rounding.
    theirs.fc.weight.set_data(theirs.fc.weight.data() / 25)
    theirs.save_parameters(str(tmp_path / "theirs.params"))
    ours = gluon_resnest.get_model(name, pretrained=tmp_path / "theirs.params")
    assert list(ours._collect_params_with_prefix()) == list(theirs._collect_params_with_prefix())
    # Names in symbols, which feature taps and --no-wd patterns of users go by.
    assert ([key[len(ours.prefix):] for key in ours.collect_params()]
            == [key[len(theirs.prefix):] for key in theirs.collect_params()])
    images = mx.nd.array(rng.standard_normal((2, 3, 224, 224)))
    expected = theirs(images).asnumpy()
    assert 0.5 < np.abs(expected).max() < 10
    np.testing.assert_allclose(ours(images).asnumpy(), expected, atol=1e-5, rtol=0)


def gluoncv_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn; nothing of ours
        from gluoncv.model_zoo import get_model
    return get_model(name)


@pytest.mark.parametrize("size", [32, 33, 65, 97])
@pytest.mark.parametrize("name", ["resnest14", "resnest50_fast_1s4x24d"])
def test_any_size_works(name, size):
    net = gluon_resnest.get_model(name, classes=3)
    net.initialize()
    assert net(mx.nd.ones((1, 3, size, size - size % 2))).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnest50", "resnest50_fast_2s1x64d"])
def test_pooling_stands_where_the_name_says(name):
    """At stride 2 the attention sees the large map, in the fast networks the small one."""
    seen = []
    block = Bottleneck(64, 32, BlockSettings(find_variant(name)), strides=2, pool=True)
    block.initialize()
    block.conv2.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[2]))
    block.conv3.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[2]))
    block.downsample = lambda x: mx.nd.zeros((1, 256, 8, 8))
    block(mx.nd.ones((1, 32, 16, 16)))
    assert seen == ([8, 8] if "fast" in name else [16, 8])


def test_last_gamma_makes_blocks_their_shortcut():
    net = gluon_resnest.get_model("resnest26", last_gamma=True, classes=2)
    net.initialize()
    gammas = {key: parameter.data().asnumpy() for key, parameter
              in net._collect_params_with_prefix().items() if key.endswith("gamma")}
    zero = {key for key, value in gammas.items() if not value.any()}
    assert zero == {f"layer{s}.{b}.bn3.gamma" for s in (1, 2, 3, 4) for b in (0, 1)}


def test_default_initialisation_is_kaimings():
    net = gluon_resnest.get_model("resnest14")
    net.initialize()
    weight = net.layer4[0].conv3.weight.data().asnumpy()
    assert weight.std() == pytest.approx(np.sqrt(2 / 512), rel=0.01)
    assert abs(weight.mean()) < 1e-3
    grouped = net.layer3[0].conv2.conv.weight.data().asnumpy()
    assert grouped.std() == pytest.approx(np.sqrt(2 / (256 / 2 * 9)), rel=0.01)
    assert not net.fc.bias.data().asnumpy().any()


def test_an_initializer_that_is_given_is_used():
    net = gluon_resnest.get_model("resnest14")
    net.initialize(mx.init.Constant(0.25))
    assert (net.fc.weight.data().asnumpy() == 0.25).all()


def test_dropout_of_the_deep_networks():
    assert [name for name in SIZES if gluon_resnest.get_model(name).drop is not None] == [
        "resnest200", "resnest269"]
    assert VARIANTS["resnest200"].final_drop == VARIANTS["resnest269"].final_drop == 0.2
    assert gluon_resnest.get_model("resnest14", final_drop=0.5).drop._rate == 0.5


def test_unknown_model_lists_the_near_names():
    with pytest.raises(InputError, match="unknown model 'resnest51': did you mean resnest50") as e:
        gluon_resnest.get_model("resnest51")
    assert "resnest101" in str(e.value) or "resnest14" in str(e.value)
    with pytest.raises(InputError, match=r"known: resnest14, resnest26, .*resnest50_fast_1s4x24d"):
        gluon_resnest.get_model("vgg")


def test_unknown_keyword_and_impossible_classes_are_named():
    with pytest.raises(InputError, match=r"unknown keyword dropblok .*; known: .*final_drop"):
        gluon_resnest.get_model("resnest14", dropblok=0.1)
    with pytest.raises(InputError, match="classes 0 must be a whole number of at least 1"):
        gluon_resnest.get_model("resnest14", classes=0)


def test_callers_dictionaries_are_left_alone():
    given = {"epsilon": 1e-3}
    gluon_resnest.get_model("resnest14", norm_kwargs=given, last_gamma=True)
    assert given == {"epsilon": 1e-3}


def test_smallest_input_size():
    check_input_size(32, "--input-size")
    with pytest.raises(InputError, match="--input-size 31 is too small"):
        check_input_size(31, "--input-size")
