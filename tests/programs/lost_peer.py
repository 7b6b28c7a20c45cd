"""Two ranks, of which the second goes while the first waits for it: what the first is told.

    horovodrun -np 2 python lost_peer.py OPERATION
"""

from __future__ import annotations

import os
import sys
import time

import gluon_resnest  # noqa: F401 (prepares NumPy and threads before MXNet is imported)

# isort: split
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

from gluon_resnest.workers import connect

workers = connect()
net = gluon.nn.Dense(3, in_units=2)
net.initialize()
workers.broadcast(net.collect_params())
optimizer = workers.trainer(net.collect_params(), mx.optimizer.SGD(learning_rate=1.0))


def backward() -> None:
    with autograd.record():
        loss = net(mx.nd.ones((4, 2))).sum()
    loss.backward()


def step() -> None:
    optimizer.allreduce_grads()
    optimizer.update(4)
    net.weight.data().asnumpy()


OPERATIONS = {
    "sum": lambda: workers.sum(np.arange(5.0)),
    "gather": lambda: workers.gather({"rank": workers.rank}),
    "add_up": lambda: workers.add_up(mx.nd.ones(5), name="agreement").asnumpy(),
    "broadcast": lambda: workers.broadcast({"a": mx.nd.ones(5)}),
    "step": step,
}
operation = OPERATIONS[sys.argv[1]]

# First with both.
assert workers.sum(np.array([1.0, 2.0])).tolist() == [2, 4]
assert workers.gather(("rank", workers.rank)) == [("rank", 0), ("rank", 1)]
backward()
before = net.weight.data().asnumpy()
operation()
backward()
changed = net.weight.data().asnumpy()
assert (np.abs(changed - before).max() > 0.1) == (sys.argv[1] == "step")

if workers.rank == 1:
    time.sleep(1)
    os._exit(0)
try:
    operation()
except mx.MXNetError as error:
    print("told:", workers.was_abandoned(error), type(error).__name__, flush=True)
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine":
        np.testing.assert_array_equal(net.weight.data().asnumpy(), changed)  # no step was taken
else:
    print("went on", flush=True)
os._exit(0)
