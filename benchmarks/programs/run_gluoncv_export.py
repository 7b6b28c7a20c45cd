"""What GluonCV's users ship: `net.export()` of its network, read back by MXNet; forward only."""

from __future__ import annotations

import os
import platform
import warnings
from typing import Any

import mxnet as mx
import mxnet_calls
from contestant import Prepared
from run_gluoncv import network


def prepare(task: dict[str, Any]) -> Prepared:
    net, versions = network(task)
    side = task["input_size"]
    images = mx.nd.random.normal(shape=(task["batch_size"], 3, side, side))
    expected = net(images).asnumpy()
    prefix = os.path.join(task["scratch"], "exported")
    net.export(prefix)
    files = [f"{prefix}-symbol.json", f"{prefix}-0000.params"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = mx.gluon.SymbolBlock.imports(files[0], ["data"], files[1])
    mxnet_calls.hybridize(block)
    difference = abs(block(images).asnumpy() - expected).max() / abs(expected).max()
    return Prepared(lambda: block(images).wait_to_read(), {
        "versions": {"python": platform.python_version(), "mxnet": mx.__version__, **versions},
        "file_mb": sum(map(os.path.getsize, files)) / 1e6, "difference": float(difference)})
