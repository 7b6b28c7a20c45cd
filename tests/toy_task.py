"""A regression on synthetic arrays: the smallest task, and all that the engine needs of one."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import mxnet as mx
import numpy as np

from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.training.schedules import Schedule
from gluon_resnest.training.task import Description, Task


@dataclass(frozen=True)
class Recipe:
    epochs: int
    batch_size: int = 4
    seed: int = 3
    ema: float = 0.9
    accumulate: int = 2
    clip_norm: float = 0.0
    fp16_allreduce: bool = False
    amp: bool = False
    as_dict = asdict

    def differences(self, saved):
        return [name for name in vars(self) if saved.get(name) != getattr(self, name)]


class Data:
    bad_records = None

    def __init__(self, seed, count, *part):
        self.x = np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)
        self.y = self.x @ np.arange(1, 6, dtype=np.float32)[:, None]
        self.sampling, self.part = Sampling(count, seed), part  # batch size, rank, ranks

    def __len__(self):
        return self.sampling.steps(self.part[0], self.part[2])

    def epoch(self, epoch, legs=()):
        for rows in self.sampling.batches(epoch, *self.part, legs):
            time.sleep(0.02)  # time for a signal
            yield self.x[rows], self.y[rows]


class Regression(Task):
    score, parts = "negative_error", ("absolute",)

    def __init__(self, recipe, workers):
        self.recipe, self.device = recipe, mx.cpu()
        self.training = Data(0, 90, recipe.batch_size, workers.rank, workers.size)
        self.validation = list(Data(1, 16, 4, workers.rank, workers.size).epoch(0))
        self.network = mx.gluon.nn.Dense(1, in_units=5)
        self.network.initialize()
        self.optimizer = mx.optimizer.Adam()
        self.schedule = Schedule(0.3, recipe.epochs * len(self.training), warmup_steps=3)
        self.description = Description("a regression", operations=3 * 2 * 5)

    def prepare(self, batch, position, rank):
        return [mx.nd.array(batch[0])], [mx.nd.array(batch[1])]

    def losses(self, inputs, targets):
        error = (self.network(*inputs) - targets[0]).reshape(-1)
        return {"loss": error.square(), "absolute": error.abs()}

    def evaluator(self):
        self.sums = np.zeros(2)
        return self

    def add(self, batch):
        self.sums += np.sum((self.network(mx.nd.array(batch[0])).asnumpy() - batch[1])**2), 1

    def result(self, workers):
        return {"negative_error": -np.divide(*workers.sum(self.sums))}

    summary = "error {0[negative_error]:.4f}".format
