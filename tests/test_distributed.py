"""Gradients over real Horovod ranks equal those of one worker with the whole batch."""

from __future__ import annotations

import sys

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize, run_horovod, run_process

import gluon_resnest
from gluon_resnest.errors import InputError
from gluon_resnest.training import distributed

PROGRAM = "tests/programs/one_update.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    rng = np.random.default_rng(7)
    net = gluon_resnest.get_model("resnest14", classes=5)
    net.initialize()
    randomize(net, rng, branch_gamma=(0.1, 0.3))
    net.save_parameters(str(folder / "start.params"))
    np.savez(folder / "batch.npz", images=rng.standard_normal((4, 3, 64, 64)),
             labels=rng.integers(0, 5, 4))
    return folder


@pytest.fixture(scope="module")
def alone(inputs):
    """Parameters after one update of one worker with all four images."""
    run_process(sys.executable, PROGRAM, inputs / "start.params", inputs / "batch.npz",
                inputs / "alone.params", "4", code=0, timeout=120)
    return mx.nd.load(str(inputs / "alone.params"))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["2,2", "3,1"])
def test_two_ranks_make_the_gradients_of_one(inputs, alone, sizes):
    run_horovod(PROGRAM, inputs / "start.params", inputs / "batch.npz",
                inputs / "ranks.params", sizes, timeout=180)
    start = mx.nd.load(str(inputs / "start.params"))
    ranks = mx.nd.load(str(inputs / "ranks.params"))
    largest = 0.0
    for name, value in ranks.items():
        if name.endswith(("running_mean", "running_var")):
            continue
        gradient = start[name].asnumpy() - alone[name].asnumpy()
        found = start[name].asnumpy() - value.asnumpy()
        np.testing.assert_allclose(found, gradient, atol=1e-5, rtol=0, err_msg=name)
        largest = max(largest, float(np.abs(gradient).max()))
    assert largest > 1e-2  # there was something to compare
    np.testing.assert_allclose(ranks["bn1.running_mean"].asnumpy(), 1.5)


def test_a_worker_alone():
    workers = distributed.Workers()
    assert workers.together(lambda: 42) == 42
    with pytest.raises(InputError, match=r"^no disk$"):
        workers.together(lambda: (_ for _ in ()).throw(InputError("no disk")))


def test_a_fault_of_one_rank_is_said_by_all(monkeypatch):
    workers = distributed.Workers()
    workers.size = 3
    monkeypatch.setattr(workers, "gather", lambda fault: [fault, "none.rec is missing", None])
    with pytest.raises(InputError, match=r"^none.rec is missing \(on rank 1 of 3\)$"):
        workers.together(lambda: 42)
    monkeypatch.setattr(workers, "gather", lambda _: ["none.rec is missing"] * 3)
    with pytest.raises(InputError, match=r"^none.rec is missing$"):
        workers.together(lambda: 42)


def test_launched_without_horovod_names_the_remedy(monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "horovod.mxnet", None)
    with pytest.raises(InputError, match=r"Horovod cannot be imported .*horovodrun --check-build"):
        distributed.connect()


def test_more_ranks_than_gpus_is_named(monkeypatch):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    workers = distributed.Workers()
    assert distributed.device(workers) == mx.gpu(0)
    assert distributed.device(workers, no_cuda=True) == mx.cpu()
    workers.local_rank = 1
    with pytest.raises(InputError, match="local rank 1 has no GPU of its own: this host has 1"):
        distributed.device(workers)
