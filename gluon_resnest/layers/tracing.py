"""What Gluon is doing when it calls a layer: tracing a graph, building it, or running it.

A layer is called with symbols in two cases. Either a hybridized block traces its graph, to run it
in this process; or somebody calls ``net(mx.sym.var("data"))`` and takes the symbol away, to any
machine or into a converter. Some layers must act differently in the two, and Gluon does not say
which it is. The outermost block knows, but it may be of any class (an ``nn.HybridSequential`` of a
user's around a layer of ours), so no class of this package can pass it on.

Therefore three methods of ``HybridBlock`` are wrapped here, when this module is imported: while
one of them runs, its step is `active` in the thread that called it. They do what they did.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import wraps
from typing import Any, Iterator

import mxnet as mx
from mxnet.gluon import Block, HybridBlock

from gluon_resnest.layers.one_at_a_time import without_other_calls


class Step(threading.local):
    """A method of ``HybridBlock``, of whichever block."""

    _depth = 0

    @property
    def active(self) -> bool:
        """Whether this thread is inside the method."""
        return self._depth > 0

    @classmethod
    def of(cls, method_name: str) -> Step:
        """Wrap the method of that name."""
        step, method = cls(), getattr(HybridBlock, method_name)

        @wraps(method)
        def noted(block: HybridBlock, *args: Any) -> Any:
            step._depth += 1
            try:
                return method(block, *args)
            finally:
                step._depth -= 1

        setattr(HybridBlock, method_name, noted)
        return step


TRACING = Step.of("_get_graph")  # a block calls its hybrid_forward with symbols, for itself
BUILDING = Step.of("_build_cache")  # it looks for the values of the variables in its graph
RUNNING = Step.of("_call_cached_op")  # it fetches those values and runs the graph


def is_symbol_for_others(F: Any) -> bool:
    """Whether a layer that is called with `F` makes a symbol that somebody takes away.

    `F` is what Gluon gives to ``hybrid_forward``: ``mx.symbol`` or ``mx.ndarray``.
    """
    return F is mx.symbol and not TRACING.active


def forget_graphs(net: Block) -> None:
    """Have `net` and the blocks in it traced again when they are next called."""
    net.apply(lambda block: block._clear_cached_op() if isinstance(block, HybridBlock) else None)


def blocks_of(net: Block, kind: type) -> list[Any]:
    """Blocks in `net`, itself included, of the class `kind`."""
    found: list[Any] = []
    net.apply(lambda block: found.append(block) if isinstance(block, kind) else None)
    return found


@contextmanager
def traced_with(net: Block, kind: type, mark: str) -> Iterator[Block]:
    """Within it, `net` is traced with the attribute `mark` of its blocks of class `kind` True.

    Where there are such blocks, traced graphs are dropped on entry and exit, and calls by other
    threads wait.
    """
    blocks = blocks_of(net, kind)
    if not blocks:
        yield net
        return
    with without_other_calls(net):
        before = [getattr(block, mark) for block in blocks]
        for block in blocks:
            setattr(block, mark, True)
        forget_graphs(net)
        try:
            yield net
        finally:
            for block, value in zip(blocks, before):
                setattr(block, mark, value)
            forget_graphs(net)
