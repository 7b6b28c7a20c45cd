"""A network of gluon_resnest: hybridized, or in its form for deployment."""

from __future__ import annotations

from typing import Any

# First: it prepares NumPy and the number of threads before MXNet is imported.
import gluon_resnest

# isort: split
import mxnet_calls
import numpy as np
from contestant import Prepared


def prepare(task: dict[str, Any]) -> Prepared:
    net = gluon_resnest.get_model(task["network"])
    mxnet_calls.initialize(net)
    if task["form"] == "deployed":
        # The other form must be timed without what this one imports.
        from gluon_resnest.deploy.mxnet_graph import deployed
        net = deployed(net)
    else:
        mxnet_calls.hybridize(net)
    return mxnet_calls.prepared(net, task, {"numpy": np.__version__})
