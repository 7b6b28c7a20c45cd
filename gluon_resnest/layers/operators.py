"""Which of several equal forms of an operation a network is traced with.

On a CPU, oneDNN runs convolution, normalisation, pooling and ReLU on blocked memory, and MXNet's
own operators run beside it on plain memory, some of them very slowly. The forms that are fast
there are not what a GPU wants (and one of them, normalisation with ReLU in one operator, it does
not have). A graph is traced once for both, so the build decides: :func:`traces_for_cpu` is asked
by each layer that has two forms, and nothing else chooses.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any, Callable, Iterator

import mxnet as mx
from mxnet.gluon import Block, HybridBlock

from gluon_resnest import runtime
from gluon_resnest.layers.one_at_a_time import without_other_calls

_thread = threading.local()  # a graph is traced by the thread that calls


def traces_for_cpu(F: Any) -> bool:
    """Whether a layer that is called with `F` may use operators that only a CPU has.

    They may not be in a symbol that is made for someone else, who may run it anywhere or hand it
    to a converter: ``net(mx.sym.var("data"))``, or whatever is traced within
    :func:`portable_operators`.
    """
    return (not _portable_only() and _built_for_cpu() and runtime.onednn_is_on()
            and not is_symbol_for_others(F))


def _portable_only() -> bool:
    return getattr(_thread, "portable_only", False)


@lru_cache(maxsize=None)
def _built_for_cpu() -> bool:
    # A network on a machine with a GPU can be moved to it after it was traced.
    features = mx.runtime.Features()
    return features.is_enabled("MKLDNN") and not features.is_enabled("CUDA")


def is_symbol_for_others(F: Any) -> bool:
    """Whether a layer is called with a symbol by anything but a network's own tracing."""
    return F is mx.symbol and not called_from(HybridBlock._get_graph)


@contextmanager
def portable_operators(net: Block) -> Iterator[Block]:
    """Within it, `net` is traced with operators that every build of MXNet has, and ONNX.

    Traced graphs are dropped on entry and exit, so run `net` once inside before ``net.export``.
    Calls by other threads wait. If `net` is part of a larger hybridized block, give that one: its
    graph is not known here.
    """
    with without_other_calls(net):
        before, _thread.portable_only = _portable_only(), True
        forget_graphs(net)
        try:
            yield net
        finally:
            _thread.portable_only = before
            forget_graphs(net)


def forget_graphs(net: Block) -> None:
    """Have `net` and the blocks in it traced again when they are next called."""
    net.apply(lambda block: block._clear_cached_op() if isinstance(block, HybridBlock) else None)


def called_from(function: Callable[..., Any]) -> bool:
    """Whether `function` is among the callers. MXNet does not tell a layer who traces it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False
