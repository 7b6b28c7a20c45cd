"""Networks that several threads call, all for the first time at once."""

from __future__ import annotations

import os
import threading
import time

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

import gluon_resnest
from gluon_resnest.classifier import load_classifier
from gluon_resnest.deploy import deployed
from gluon_resnest.deploy.exporting import Description, export
from gluon_resnest.layers import (
    SplitAttention,
    operators,
    portable_operators,
    without_dropblock,
)
from gluon_resnest.models import save_weights
from tests.conftest import randomize

THREADS, SIZE, CLASSES = 8, 32, 3
TIMES = int(os.environ.get("GLUON_THREAD_TIMES", 4))  # 20 before a release
SMALL = "resnest14_1s1x16d"


@pytest.fixture
def images(rng):
    """(THREADS, 1, 3, SIZE, SIZE), one for each thread."""
    return rng.standard_normal((THREADS, 1, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (THREADS, 1, SIZE, SIZE, 3), dtype=np.uint8)


def in_threads(action) -> list:
    """`action(number)` in each of THREADS threads, begun at once; the first error is raised."""
    barrier, results = threading.Barrier(THREADS), [None] * THREADS

    def run(number):
        barrier.wait(60)
        try:
            results[number] = action(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True)
               for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def random_network(**kwargs):
    net = gluon_resnest.get_model(SMALL, classes=CLASSES, **kwargs)
    net.initialize()
    randomize(net, 1)
    return net


def check_first_calls(make, inputs, expected, convert=mx.nd.array) -> None:
    """TIMES new callables give every thread what one thread got."""
    for _ in range(TIMES):
        call = make()
        found = in_threads(lambda number, call=call: call(convert(inputs[number])))
        for number in range(THREADS):
            np.testing.assert_allclose(found[number], expected[number], rtol=0,
                                       atol=1e-5 * np.abs(expected[number]).max())


@pytest.mark.parametrize("flags", [{}, {"static_alloc": True},
                                   {"static_alloc": True, "static_shape": True}])
def test_hybridized_networks(flags, images):
    net = random_network()
    expected = [net(mx.nd.array(image)).asnumpy() for image in images]

    def make():
        net.hybridize(**flags)  # forgets the graph
        return lambda image: net(image).asnumpy()

    check_first_calls(make, images, expected)


def test_hybridized_layer(rng):
    layer = SplitAttention(32, norm_layer=nn.BatchNorm)
    layer.initialize()
    maps = rng.standard_normal((THREADS, 1, 32, 5, 5)).astype(np.float32)
    expected = [layer(mx.nd.array(one)).asnumpy() for one in maps]

    def make():
        layer.hybridize()
        return lambda one: layer(one).asnumpy()

    check_first_calls(make, maps, expected)


def test_deployed_networks(images):
    net = random_network()
    expected = [net(mx.nd.array(image)).asnumpy() for image in images]

    def make():
        block = deployed(net)
        return lambda image: block(image).asnumpy()

    check_first_calls(make, images, expected)


@pytest.mark.parametrize("form", ["checkpoint", "symbol", "onnx"])
def test_classifiers(form, pixels, tmp_path):
    net = random_network()
    if form == "checkpoint":
        save_weights(net, tmp_path / "net.params")
        arguments = (SMALL, tmp_path / "net.params")
    else:
        pytest.importorskip("onnxruntime" if form == "onnx" else "mxnet")
        export(net, tmp_path, Description(SMALL, SIZE, 0.875), np.concatenate(pixels),
               form)
        arguments = (str(tmp_path),)
    one = load_classifier(*arguments)
    expected = [one(image) for image in pixels]
    check_first_calls(lambda: load_classifier(*arguments), pixels, expected, np.asarray)


def test_tracing_for_export_beside_calls(images):
    """One thread wants portable operators, the others the fast ones: each gets its own."""
    net, others = random_network(), random_network()
    expected = [net(mx.nd.array(image)).asnumpy() for image in images]
    for _ in range(TIMES):
        net.hybridize()
        others.hybridize()

        def act(number):
            image = mx.nd.array(images[number])
            if number % 4 == 0:
                with portable_operators(net):
                    logits = net(image).asnumpy()
                    assert "batch_dot" not in net._cached_graph[1].tojson()
                return logits
            return (net if number % 2 else others)(image).asnumpy()

        found = in_threads(act)
        for number in range(THREADS):
            np.testing.assert_allclose(found[number], expected[number], rtol=0,
                                       atol=1e-5 * np.abs(expected[number]).max())
        if operators._built_for_cpu():
            assert "batch_dot" in others._cached_graph[1].tojson()


def test_exports_in_turn_leave_dropblock_in():
    """A second export that begins during the first must not take its state for the usual one."""
    net = random_network(dropblock_prob=0.5)
    inside, waits = threading.Event(), threading.Event()

    def second():
        inside.wait(60)
        waits.set()
        with without_dropblock(net), portable_operators(net):
            pass

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    with without_dropblock(net), portable_operators(net):
        inside.set()
        waits.wait(60)
        time.sleep(0.2)  # until the other waits for this one to end
    thread.join(60)
    assert not thread.is_alive()
    blocks = [net.layer4[0].dropblock1, net.layer3[0].dropblock3]
    assert [block._left_out for block in blocks] == [False, False]
    with mx.autograd.record():
        assert (blocks[0](mx.nd.ones((2, 64, 7, 7))).asnumpy() == 0).any()
    assert not net.layer4[0].conv2.portable_only
