"""MXNet's product of two square float32 matrices: the rate that networks are compared with."""

from __future__ import annotations

import platform
import time
from typing import Any, Callable

# First: it prepares NumPy and the number of threads before MXNet is imported.
import gluon_resnest  # noqa: F401

# isort: split
import mxnet as mx
from contestant import Prepared


def prepare(task: dict[str, Any]) -> Prepared:
    """The fastest of both operators on matrices of the sides ``task["sizes"]``."""
    candidates = [(name, size) for size in task["sizes"] for name in _OPERATORS]
    calls = {candidate: _product(*candidate) for candidate in candidates}
    rates = {(name, size): 2 * size**3 / min(_seconds(call), _seconds(call))
             for (name, size), call in calls.items()}
    name, size = max(candidates, key=rates.__getitem__)
    facts = {"versions": {"python": platform.python_version(), "mxnet": mx.__version__},
             "operator": name, "size": size, "flop": 2 * size**3}
    return Prepared(calls[name, size], facts)


def _dense(left: mx.nd.NDArray, right: mx.nd.NDArray) -> mx.nd.NDArray:
    return mx.nd.FullyConnected(left, right, no_bias=True, num_hidden=right.shape[0])


_OPERATORS = {"dot": mx.nd.dot, "FullyConnected": _dense}


def _product(name: str, size: int) -> Callable[[], None]:
    left, right = (mx.nd.random.normal(shape=(size, size)) for _ in range(2))
    operator = _OPERATORS[name]
    return lambda: operator(left, right).wait_to_read()


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
