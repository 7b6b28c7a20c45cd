"""What a plan needs to know of a task: neither its data nor its devices."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Callable

from mxnet.gluon import HybridBlock

from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.training.task import Recipe, Schedule


@dataclass(frozen=True)
class Planned:
    """A task before its data is there.

    Attributes
    ----------
    recipe
        Of the run.
    sampling
        Of its training data.
    schedule
        Learning rate by update, for a number of workers.
    network
        What is trained, without weights; it is traced.
    sample
        Shape of one sample as the network takes it, such as (C, H, W).
    multiply_adds
        Of a forward pass of one sample.
    optimizer_arrays
        Arrays that the optimizer keeps for each parameter: 1 for momentum, 2 for Adam.
    teacher
        Network that is learned from, if there is one.
    """

    recipe: Recipe
    sampling: Sampling
    schedule: Callable[[int], Schedule]
    network: HybridBlock
    sample: tuple[int, ...]
    multiply_adds: int
    optimizer_arrays: int = 1
    teacher: HybridBlock | None = None

    @property
    def parameters(self) -> int:
        """Number of values that are trained."""
        return sum(prod(parameter.shape) for parameter in self.network.collect_params().values()
                   if parameter.grad_req != "null")
