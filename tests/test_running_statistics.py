"""Running statistics read right after a training step are those of that step."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon.contrib.nn import SyncBatchNorm

import gluon_resnest
from gluon_resnest.layers import declared_writes
from gluon_resnest.layers.operators import BatchNormReLU
from gluon_resnest.models import save_weights

MODES = [None, {}, {"static_alloc": True}, {"static_alloc": True, "static_shape": True}]
STATISTICS = ("running_mean", "running_var")


@pytest.fixture
def net():
    net = gluon_resnest.get_model("resnest14", classes=4)
    net.initialize()
    assert isinstance(net.conv1[1], BatchNormReLU)
    return net


@pytest.fixture
def step_of(rng):
    """Makes a step of plain Gluon, whose backward pass still computes when it returns."""
    # The gradient of a batch of this size takes a hundred times as long as what follows it here.
    images = mx.nd.array(rng.standard_normal((4, 3, 64, 64)))
    labels = mx.nd.array(rng.integers(0, 4, 4))
    loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()

    def step_of(net):
        trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.01})

        def step():
            with autograd.record():
                loss = loss_of(net(images), labels)
            loss.backward()
            trainer.step(4)
            loss.asnumpy()

        return step

    return step_of


@pytest.fixture
def step(net, step_of):
    return step_of(net)


def saved(net, tmp_path):
    net.save_parameters(str(tmp_path / "net.params"))
    return mx.nd.load(str(tmp_path / "net.params"))


def saved_by_collect_params(net, tmp_path):
    net.collect_params().save(str(tmp_path / "net.params"))
    return mx.nd.load(str(tmp_path / "net.params"))


def saved_weights(net, tmp_path):
    save_weights(net, tmp_path / "net.params")
    return mx.nd.load(str(tmp_path / "net.params"))


def read(net, tmp_path):
    return {key: parameter.data() for key, parameter in _statistics(net).items()}


def copied(net, tmp_path):
    return {key: parameter.data().copy() for key, parameter in _statistics(net).items()}


def copied_into_another(net, tmp_path):
    other = gluon_resnest.get_model("resnest14", classes=4)
    other.initialize()
    targets = other._collect_params_with_prefix()
    for key, parameter in net._collect_params_with_prefix().items():
        targets[key].set_data(parameter.data())
    return read(other, tmp_path)


def exported(net, tmp_path):
    net.export(str(tmp_path / "net"))
    return mx.nd.load(str(tmp_path / "net-0000.params"))


def cast(net, tmp_path):
    net.cast("float64")
    values = {key: parameter.data().astype("float64")
              for key, parameter in _statistics(net).items()}
    net.cast("float32")
    return values


def evaluated(net, tmp_path):
    return {"logits": net(mx.nd.ones((1, 3, 64, 64)))}


def _statistics(net):
    return {key: parameter for key, parameter in net._collect_params_with_prefix().items()
            if key.endswith(STATISTICS)}


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_reading_waits_for_the_step(mode, net, step, tmp_path):
    ways = [saved, saved_by_collect_params, saved_weights, read, copied, copied_into_another,
            cast, evaluated]
    if mode is not None:
        net.hybridize(**mode)
        ways.append(exported)
    for way in ways:
        step()
        first = {key: array.asnumpy() for key, array in way(net, tmp_path).items()}
        mx.nd.waitall()
        second = {key: array.asnumpy() for key, array in way(net, tmp_path).items()}
        assert len(first) == len(second) > 0
        for key, value in second.items():
            np.testing.assert_array_equal(first[key], value, err_msg=f"{way.__name__}: {key}")


@pytest.mark.parametrize("static_shape", [False, True])
def test_other_norms_and_a_network_within_a_block(static_shape, step_of, rng):
    """MXNet's own layers as `norm_layer`, and a graph that is not the network's."""
    class Squared(mx.gluon.HybridBlock):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def hybrid_forward(self, F, x):
            return self.net(x) ** 2

    net = gluon_resnest.get_model("resnest14", classes=4, norm_layer=SyncBatchNorm,
                                  norm_kwargs={"num_devices": 1})
    net.initialize()
    outer = Squared(net)
    outer.hybridize(static_alloc=True, static_shape=static_shape)
    for _ in range(2):
        step_of(outer)()
        first = {key: parameter.data().asnumpy() for key, parameter in _statistics(net).items()}
        mx.nd.waitall()
        for key, parameter in _statistics(net).items():
            np.testing.assert_array_equal(first[key], parameter.data().asnumpy(), err_msg=key)


@pytest.mark.parametrize("frozen", ["gamma|.*beta", "gamma|.*beta|.*weight|.*bias"])
def test_arrays_taken_before_the_step_and_frozen_layers(frozen, net, step_of):
    """What an average of the weights holds; a gradient that ends below, or passes through."""
    net.collect_params(f".*{frozen}").setattr("grad_req", "null")
    net.conv1[0].weight.grad_req = "write"
    net.hybridize()
    held = {key: parameter.data() for key, parameter in _statistics(net).items()}
    step = step_of(net)
    for _ in range(2):
        before = {key: array.asnumpy() for key, array in held.items()}
        step()
        first = {key: array.asnumpy() for key, array in held.items()}
        mx.nd.waitall()
        for key, array in held.items():
            np.testing.assert_array_equal(first[key], array.asnumpy(), err_msg=key)
            assert not np.array_equal(before[key], first[key]), key


def test_builds_whose_tables_are_not_known_take_two_operators(net, step, monkeypatch):
    declared_writes.writes_are_declared.cache_clear()
    with monkeypatch.context() as build:
        build.setattr(mx, "__version__", "1.9.2")
        assert not declared_writes.writes_are_declared()
        net.hybridize()
        step()
        first = {key: parameter.data().asnumpy() for key, parameter in _statistics(net).items()}
        mx.nd.waitall()
        for key, parameter in _statistics(net).items():
            np.testing.assert_array_equal(first[key], parameter.data().asnumpy(), err_msg=key)
        assert "BatchNormWithReLU" not in net._cached_graph[1].tojson()
    declared_writes.writes_are_declared.cache_clear()
    assert declared_writes.writes_are_declared()
