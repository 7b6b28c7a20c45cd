"""The contract between the engine and what it trains.

A task is one object that :class:`~gluon_resnest.training.trainer.Trainer` calls. The engine knows
no task: neither what is in a batch nor what its figures mean. There are no hooks: what is called
when is written in the trainer's loop, and a run goes on exactly because that order is fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import mxnet as mx
from mxnet.gluon import HybridBlock

from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Leg, Sampling
from gluon_resnest.data.records.bad_records import BadRecords
from gluon_resnest.workers import Workers

Batch = TypeVar("Batch")
Figures = Mapping[str, float]
Arrays = Sequence[mx.nd.NDArray]


class Recipe(Protocol):
    """What the result of a run depends on, but for its data and its number of workers.

    Attributes
    ----------
    epochs
        Number of epochs of the schedule.
    batch_size
        Samples a worker and step.
    seed
        Of everything random.
    ema
        Decay of the moving average of the weights; 0 for none.
    accumulate
        Parts in which a worker computes a batch.
    clip_norm
        Largest norm of the gradient of the global batch; 0 for any.
    fp16_allreduce, amp
        Send gradients as float16; compute in float16 where that is safe.
    """

    epochs: int
    batch_size: int
    seed: int
    ema: float
    accumulate: int
    clip_norm: float
    fp16_allreduce: bool
    amp: bool

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name: single values that JSON and YAML can hold."""

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """The settings in which `saved`, of :meth:`as_dict`, is another recipe, in words."""


class Schedule(Protocol):
    """Learning rate by update, counted from 1; 0 is before the first.

    Attributes
    ----------
    peak_lr
        Its largest value.
    warmup_steps, total_steps
        Updates until it is reached, and in all.
    """

    peak_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        """Learning rate of the update number `step`."""


class Batches(Protocol[Batch]):
    """Batches of an epoch, made ahead; closing it ends its threads."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class TrainingData(Protocol[Batch]):
    """This worker's part of the training data.

    Attributes
    ----------
    sampling
        Which sample comes when; all ranks have the same.
    bad_records
        What could not be used until now; None where everything can.
    """

    sampling: Sampling
    bad_records: BadRecords | None

    def __len__(self) -> int:
        """Steps in an epoch, the same for every worker."""

    def epoch(self, epoch: int, legs: Sequence[Leg] = ()) -> Batches[Batch]:
        """Batches of an epoch that has taken `legs` already."""


class ValidationData(Protocol[Batch]):
    """This worker's part of the validation data; every sample once over all workers."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Evaluator(Protocol[Batch]):
    """Gathers what the figures of a validation follow from."""

    def add(self, batch: Batch) -> None:
        """Run the network on a batch and take in what it answers."""

    def result(self, workers: Workers) -> dict[str, float]:
        """Figures over all workers' batches, the same on each; every worker must call it."""


@dataclass(frozen=True)
class Description:
    """What logs and files say of a task.

    Attributes
    ----------
    title
        Of the run, for pictures.
    operations
        Floating-point operations of a training step for one sample, 2 a multiply-add.
    facts
        Of the run, for the metrics' ``start`` line.
    source
        Where the run reads and what it starts from, for ``config.yaml``.
    sizes
        What all ranks must have alike, in words, such as the number of training samples.
    files
        Texts that belong beside the weights, by file name.
    """

    title: str
    operations: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Task(ABC, Generic[Batch]):
    """What is trained: data, network, loss, optimizer and figures.

    Attributes
    ----------
    recipe
        What the result depends on; saved with every checkpoint.
    device
        Where this worker computes.
    network
        With its first weights, hybridized. All its parameters are saved.
    optimizer
        Its learning rate is set by the engine before each update.
    schedule
        Learning rate by update.
    training, validation
        Data of this worker; `validation` may be None.
    score
        The figure that the best weights have most of.
    description
        For logs and files.
    parts
        Names of what :meth:`losses` gives beside ``"loss"``, in the order in which they are logged.
    draws_on_device
        Whether a step draws random numbers on the device, as dropout does.
    """

    recipe: Recipe
    device: mx.Context
    network: HybridBlock
    optimizer: mx.optimizer.Optimizer
    schedule: Schedule
    training: TrainingData[Batch]
    validation: ValidationData[Batch] | None
    score: str
    description: Description
    parts: Sequence[str] = ()
    draws_on_device: bool = False

    @abstractmethod
    def prepare(self, batch: Batch, position: Position, rank: int) -> tuple[Arrays, Arrays]:
        """Inputs and targets of a training batch on the device.

        Their first axis is that of the samples. What is random is drawn from the seed, the
        position of the batch in the run, and the rank.
        """

    @abstractmethod
    def losses(self, inputs: Arrays, targets: Arrays) -> Mapping[str, mx.nd.NDArray]:
        """Run the network in training; ``"loss"`` (N,) has one loss a sample.

        Gradients are those of its sum. Further entries, each (N,), are logged: see :attr:`parts`.
        Every rank calls it equally often.
        """

    @abstractmethod
    def evaluator(self) -> Evaluator[Batch]:
        """A new one for each validation."""

    @abstractmethod
    def summary(self, figures: Figures) -> str:
        """The figures of a validation in a line, such as ``loss 0.0258, 525 images``."""

    def before_step(self, scheduled: int) -> None:
        """Set what changes with time, for update number `scheduled` of the schedule."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """Entered for each validation."""
        return nullcontext()

    def upgraded(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Figures of a checkpoint, also one that an earlier version wrote in another form."""
        return figures
