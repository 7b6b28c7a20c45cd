"""Trainers in this process, for tests that look into a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Callable

from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.resume import begin_or_resume
from gluon_resnest.training.run import MakeTrainer, assemble, running
from gluon_resnest.training.signals import Wishes
from gluon_resnest.training.task import Task
from gluon_resnest.training.trainer import Trainer
from gluon_resnest.workers import Workers


@contextmanager
def begun(task: Task, options: RunOptions, workers: Workers | None = None,
          make_trainer: MakeTrainer = Trainer) -> Iterator[Trainer]:
    """The trainer of a run before its first step; what :func:`~.run.train` does around it."""
    with Wishes() as wishes:
        parts = assemble(task, options, workers or Workers())
        with running(parts, begin_or_resume(parts), wishes, make_trainer) as trainer:
            yield trainer


def train_with(context: AbstractContextManager[Trainer],
               change: Callable[[Trainer], object]) -> Trainer:
    """Train a run to its end after a `change` of its trainer."""
    with context as trainer:
        change(trainer)
        trainer.train()
    return trainer
