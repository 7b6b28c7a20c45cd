"""Whose graph is traced: a block's own, or a symbol that somebody takes away."""

from __future__ import annotations

import threading

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from gluon_resnest.layers import DropBlock, SplitAttention, portable_operators, set_drop_prob
from gluon_resnest.layers.operators import TwoForms, _built_for_cpu
from gluon_resnest.layers.tracing import BUILDING, RUNNING, TRACING, traced_with

STEPS = (TRACING, BUILDING, RUNNING)


def around(*layers: nn.HybridBlock) -> nn.HybridSequential:
    """A block of MXNet's own, which knows nothing of this package."""
    net = nn.HybridSequential()
    net.add(*layers)
    net.initialize()
    return net


def operators(symbol: mx.sym.Symbol) -> str:
    return symbol.tojson()


class Witness(nn.HybridBlock):
    """Notes which steps are active whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, ...]] = []

    def hybrid_forward(self, F, x):
        self.seen.append(tuple(step.active for step in STEPS))
        return x + 1


def test_steps_of_a_block_that_is_not_ours() -> None:
    witness = Witness()
    net = around(witness)
    x = mx.nd.ones((1, 2))
    net(x)
    net(mx.sym.var("data"))
    assert witness.seen == [(False, False, False)] * 2
    net.hybridize()
    for _ in range(2):
        np.testing.assert_array_equal(net(x).asnumpy(), 2)
    assert witness.seen[2:] == [(True, True, True)]  # traced once
    net(mx.sym.var("data"))
    assert witness.seen[3:] == [(False, False, False)]


def test_an_error_ends_the_step() -> None:
    class Broken(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            raise KeyError("a bug")

    net = around(Broken())
    net.hybridize()
    with pytest.raises(KeyError, match="a bug"):
        net(mx.nd.ones((1, 2)))
    assert not any(step.active for step in STEPS)


def test_a_step_is_its_threads_own() -> None:
    seen = []

    class Asks(nn.HybridBlock):
        def hybrid_forward(self, F, x):
            thread = threading.Thread(target=lambda: seen.append(TRACING.active))
            thread.start()
            thread.join(60)
            seen.append(TRACING.active)
            return x + 1

    net = around(Asks())
    net.hybridize()
    net(mx.nd.ones((1, 2)))
    assert seen == [False, True]


@pytest.mark.skipif(not _built_for_cpu(), reason="a build with CUDA has the portable form alone")
def test_split_attention_in_a_block_that_is_not_ours() -> None:
    net = around(SplitAttention(32))
    net.hybridize()
    x = mx.nd.random.normal(shape=(2, 32, 5, 5))
    expected = net(x).asnumpy()
    fast = operators(net._cached_graph[1])
    assert "batch_dot" in fast
    assert "BatchNormWithReLU" in fast
    taken = operators(net(mx.sym.var("data")))
    with portable_operators(net):
        np.testing.assert_allclose(net(x).asnumpy(), expected, rtol=0, atol=1e-5)
        portable = operators(net._cached_graph[1])
    for symbol in (taken, portable):
        assert "batch_dot" not in symbol
        assert "BatchNormWithReLU" not in symbol
        assert "AdaptiveAvgPooling2D" in symbol
    net(x)
    assert operators(net._cached_graph[1]).count("batch_dot") == fast.count("batch_dot")


def test_portable_operators_within_themselves() -> None:
    net = around(SplitAttention(32))
    with portable_operators(net):
        with pytest.raises(KeyError), portable_operators(net):
            raise KeyError
        assert all(block.portable_only for block in net)
    assert not any(block.portable_only for block in net)


def test_only_the_given_block_is_portable() -> None:
    net, other = around(SplitAttention(32)), around(SplitAttention(32))
    with portable_operators(net):
        assert net[0].portable_only
        assert not other[0].portable_only
        assert other[0].is_fast(mx.nd) == _built_for_cpu()
        assert not net[0].is_fast(mx.nd)


def test_a_block_without_such_layers_keeps_its_graph() -> None:
    net = around(nn.Dense(3, in_units=2))
    net.hybridize()
    net(mx.nd.ones((1, 2)))
    graph = net._cached_op
    with traced_with(net, TwoForms, "portable_only"):
        assert net._cached_op is graph


def test_dropblock_in_a_block_that_is_not_ours_follows_its_probability() -> None:
    net = around(DropBlock(0.0))
    net.hybridize(static_alloc=True, static_shape=True)
    ones = mx.nd.ones((4, 64, 7, 7))
    with mx.autograd.record():
        assert net(ones).asnumpy().min() == 1
        set_drop_prob(net, 0.5)
        assert net(ones).asnumpy().min() == 0
    assert net(mx.sym.var("data")).list_inputs() == ["data"]
