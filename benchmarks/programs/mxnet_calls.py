"""Forward and training step of a Gluon network, and MXNet's profile of them."""

from __future__ import annotations

import json
import os
import platform
from typing import Any, Callable

import mxnet as mx
from contestant import Prepared
from mxnet import autograd, gluon

_CLASSES = 1000


def prepared(net: gluon.HybridBlock, task: dict[str, Any], versions: dict[str, str]) -> Prepared:
    """The call that `task` asks for, on random images.

    Parameters
    ----------
    net
        Initialised, hybridized, (N, 3, S, S) -> (N, 1000).
    task
        ``mode``: "forward" or "training"; ``batch_size`` N; ``input_size`` S; ``scratch``: a
        folder for files.
    versions
        Of the libraries beside MXNet.
    """
    side = task["input_size"]
    images = mx.nd.random.normal(shape=(task["batch_size"], 3, side, side))
    images.wait_to_read()
    call = {"forward": _forward, "training": _training_step}[task["mode"]](net, images)
    profile = os.path.join(task["scratch"], "profile.json")
    facts = {"versions": {"python": platform.python_version(), "mxnet": mx.__version__,
                          **versions}}
    return Prepared(call, facts, lambda calls: _profile(call, calls, profile))


def initialize(net: gluon.HybridBlock) -> None:
    """Random weights under which activations neither fade away nor grow from block to block.

    The default ones do the first. Without the small factor on each residual branch they grow, and
    then softmax saturates and rounding errors do too: equal graphs differ in the second digit.
    """
    for name, parameter in net._collect_params_with_prefix().items():
        if name.endswith("bn3.gamma"):
            parameter.init = mx.init.Constant(0.2)
    net.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2))


def hybridize(net: gluon.HybridBlock) -> None:
    net.hybridize(static_alloc=True, static_shape=True)


def _forward(net: gluon.HybridBlock, images: mx.nd.NDArray) -> Callable[[], None]:
    return lambda: net(images).wait_to_read()


def _training_step(net: gluon.HybridBlock, images: mx.nd.NDArray) -> Callable[[], None]:
    batch_size = images.shape[0]
    labels = mx.nd.random.randint(0, _CLASSES, shape=(batch_size,)).astype("float32")
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    loss_of.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), "sgd",
                            {"learning_rate": 0.01, "momentum": 0.9, "wd": 1e-4})

    def step() -> None:
        with autograd.record():
            loss = loss_of(net(images), labels)
        loss.backward()
        trainer.step(batch_size)
        mx.nd.waitall()

    return step


def _profile(call: Callable[[], None], calls: int, file: str) -> list[dict[str, Any]]:
    """Time of each operator in `calls` calls; needs MXNet's bulk execution to be off."""
    mx.profiler.set_config(profile_all=False, profile_imperative=True, profile_symbolic=True,
                           aggregate_stats=True, filename=file)
    mx.profiler.set_state("run")
    for _ in range(calls):
        call()
    mx.nd.waitall()
    mx.profiler.set_state("stop")
    operators = json.loads(mx.profiler.dumps(format="json", reset=True))["Time"]["operator"]
    return [{"operator": name, "ms": row["Total"], "count": row["Count"]}
            for name, row in operators.items()]
