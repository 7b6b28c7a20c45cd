"""Gradients over real Horovod ranks equal those of one worker with the whole batch."""

from __future__ import annotations

import sys

import mxnet as mx
import numpy as np
import pytest
from conftest import randomize, run_horovod, run_process

import gluon_resnest
from gluon_resnest import workers as distributed
from gluon_resnest.errors import InputError

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


def compare_gradients(inputs, alone, found, scale: float, tolerance: float) -> float:
    """Assert that the update of `found` is `scale` times that of `alone`; its largest element."""
    start = mx.nd.load(str(inputs / "start.params"))
    ranks = mx.nd.load(str(found))
    largest = 0.0
    for name, value in ranks.items():
        if name.endswith(("running_mean", "running_var")):
            continue
        gradient = scale * (start[name].asnumpy() - alone[name].asnumpy())
        np.testing.assert_allclose(start[name].asnumpy() - value.asnumpy(), gradient,
                                   atol=tolerance, rtol=0, err_msg=name)
        largest = max(largest, float(np.abs(gradient).max()))
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["2,2", "3,1"])
def test_two_ranks_make_the_gradients_of_one(inputs, alone, sizes):
    run_horovod(PROGRAM, inputs / "start.params", inputs / "batch.npz",
                inputs / "ranks.params", sizes, timeout=180)
    # There was something to compare.
    assert compare_gradients(inputs, alone, inputs / "ranks.params", 1, 1e-5) > 1e-2
    statistics = mx.nd.load(str(inputs / "ranks.params"))["bn1.running_mean"]
    np.testing.assert_allclose(statistics.asnumpy(), 1.5)


@pytest.fixture(scope="module")
def norm(inputs, alone) -> float:
    """Of the gradient of the whole batch, in float64 by NumPy."""
    start = mx.nd.load(str(inputs / "start.params"))
    learnt = [name for name in start if "running" not in name]
    return float(np.sqrt(sum(np.square(start[name].asnumpy().astype(np.float64)
                                       - alone[name].asnumpy()).sum() for name in learnt)))


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "tolerance"), [
    (("3", "0"), 1e-5), (("1", "half"), 0.01), (("2", "half"), 0.01), (("1", "double"), 1e-5),
    (("1", "0", "fp16"), 0.01),
], ids=["in parts", "clipped", "in parts, clipped", "below the norm", "float16"])
def test_flags_of_an_update_on_two_ranks(inputs, alone, norm, flags, tolerance):
    """Parts of 1 or 2 images, the norm of the mean gradient of all four, 11 bits of it.

    MXNet adds up the squares in float32, one after the other: a norm is right to 0.1 %.
    """
    limits = {"half": (norm / 2, 0.5), "double": (norm * 2, 1.0), "0": (0, 1.0)}
    limit, scale = limits[flags[1]]
    found = inputs / "flags.params"
    done = run_horovod(PROGRAM, inputs / "start.params", inputs / "batch.npz", found, "3,1",
                       flags[0], limit, *flags[2:], timeout=180)
    largest = compare_gradients(inputs, alone, found, scale, tolerance)
    assert largest > 100 * tolerance
    told = float(done.stdout.split("norm")[1].split()[0])
    assert told == pytest.approx(norm, rel=1e-3)
    if flags[2:]:  # it was float16 indeed
        with pytest.raises(AssertionError):
            compare_gradients(inputs, alone, found, scale, 1e-7)


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
