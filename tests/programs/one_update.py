"""One update of resnest14 on a part of a batch, by the trainer's own way over the workers.

Usage: one_update.py WEIGHTS BATCH OUTPUT SIZES [ACCUMULATE CLIP FP16]; SIZES: images of each
rank: "3,2". Plain gradient descent at rate 1, so that the weights' difference is the gradient;
batch normalisation by its running statistics, so that images do not see each other.
"""

from __future__ import annotations

import sys

import gluon_resnest
from gluon_resnest.training.updater import Updater
from gluon_resnest.workers import connect

# isort: split
import mxnet as mx
import numpy as np


def main(weights: str, batch: str, output: str, sizes: str, accumulate: str = "1",
         clip: str = "0", fp16: str = "") -> None:
    workers = connect()
    ends = np.cumsum([int(size) for size in sizes.split(",")])
    assert workers.size == len(ends)
    stored = np.load(batch)
    part = slice(ends[workers.rank] - int(sizes.split(",")[workers.rank]), ends[workers.rank])
    net = gluon_resnest.get_model("resnest14", classes=5, norm_kwargs={"use_global_stats": True})
    net.initialize()  # differs by rank until rank 0's weights are broadcast
    if workers.rank == 0:
        net.load_parameters(weights)
    params = net.collect_params()
    workers.broadcast(params)
    optimizer = workers.trainer(params, mx.optimizer.SGD(learning_rate=1.0), bool(fp16))
    loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    updater = Updater(net, lambda inputs, targets: {"loss": loss(net(*inputs), *targets)},
                      optimizer, accumulate=int(accumulate), clip_norm=float(clip))
    losses, backward = updater.forward(
        [mx.nd.array(stored["images"][part])], [mx.nd.array(stored["labels"][part])],
        smallest_batch=min(map(int, sizes.split(","))))
    assert losses["loss"].shape == (len(stored["labels"][part]),)
    backward()
    share = ends[-1] / workers.size
    updater.exchange()
    if workers.rank == 0:
        print("norm", updater.gradient_norm(share).asscalar())
    updater.update(1.0, share)

    # Each rank pretends to have met other statistics; afterwards all have the mean.
    running = net.bn1.running_mean
    running.set_data(mx.nd.full(running.shape, 1.0 + workers.rank))
    workers.average([running.data()])
    total = workers.sum(np.array([1.0 + workers.rank, len(stored["labels"][part])]))
    assert total.tolist() == [sum(range(1, workers.size + 1)), ends[-1]]
    assert workers.gather(f"rank {workers.rank}") == [f"rank {r}" for r in range(workers.size)]
    if workers.rank == workers.size - 1:  # not the one that had the weights
        net.save_parameters(output)
    workers.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
