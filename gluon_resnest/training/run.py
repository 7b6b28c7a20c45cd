"""A whole run: from a task and its options to its last checkpoint, and what may end it before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import mxnet as mx

from gluon_resnest.errors import InputError
from gluon_resnest.runs import run_directory as files
from gluon_resnest.training.console import Console
from gluon_resnest.training.ema import MovingAverage
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.resume import Complete, Draw, Parts, Started, begin_or_resume
from gluon_resnest.training.run_arrays import RunArrays
from gluon_resnest.training.signals import Stopped, Wishes
from gluon_resnest.training.task import Task
from gluon_resnest.training.trainer import Trainer
from gluon_resnest.training.updater import Updater
from gluon_resnest.training.watchdog import Watchdog
from gluon_resnest.workers import Abandoned, SharedFault, Workers, check_alike

MakeTrainer = Callable[[Parts, Started, Wishes, Watchdog], Trainer]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    save_dir
        The run directory.
    best, best_ema
        Figures of the best validation of the weights and of their moving average, or None.
    """

    save_dir: Path
    best: dict[str, float] | None
    best_ema: dict[str, float] | None


def train(task: Task, options: RunOptions, workers: Workers, draw: Draw | None = None,
          make_trainer: MakeTrainer = Trainer) -> Outcome:
    """Train all epochs that are left of a run; every worker calls it.

    `draw` makes the picture of the run's course: the engine knows no pictures.

    Raises
    ------
    Stopped
        A signal asked for the end; a checkpoint is written.
    InputError
        Data that cannot be read, a loss that is NaN or infinite, a disk that is full.
    """
    # First: a signal must not end the process once the run directory is locked.
    with Wishes() as wishes:
        parts = assemble(task, options, workers, draw)
        started = begin_or_resume(parts)
        if isinstance(started, Complete):
            parts.console.say(f"the run in {parts.save_dir} is complete: nothing is left to do")
        else:
            with running(parts, started, wishes, make_trainer) as trainer:
                trainer.train()
    progress = started.progress
    return Outcome(parts.save_dir, progress.best, progress.best_ema)


def assemble(task: Task, options: RunOptions, workers: Workers,
             draw: Draw | None = None) -> Parts:
    """Give all workers rank 0's weights, and put together what a run is made of."""
    recipe = task.recipe
    save_dir = workers.gather(options.save_dir)[0]  # its default holds the time
    check_alike(workers, {**task.description.sizes, **recipe.as_dict()})
    weights = task.network.collect_params()
    workers.broadcast(weights)
    task.optimizer.set_learning_rate(task.schedule(0))
    optimizer = workers.trainer(weights, task.optimizer, recipe.fp16_allreduce)
    if recipe.amp:
        from mxnet.contrib import amp

        amp.init_trainer(optimizer)
    updater = Updater(task.network, task.losses, optimizer, recipe.accumulate, recipe.clip_norm,
                      recipe.amp)
    average = MovingAverage(task.network, recipe.ema) if recipe.ema else None
    return Parts(task, options, workers, Console(workers.rank), save_dir, updater, average,
                 RunArrays(updater, average, workers), draw)


@contextmanager
def running(parts: Parts, started: Started, wishes: Wishes,
            make_trainer: MakeTrainer) -> Iterator[Trainer]:
    """A trainer whose steps are watched, and whose files are closed however it ends."""
    workers = parts.workers
    who = f"rank {workers.rank} of {workers.size}" if workers.size > 1 else "the run"
    watchdog = Watchdog(parts.options.hang_timeout, who)
    with closing(started):
        trainer = make_trainer(parts, started, wishes, watchdog)
        try:
            with watchdog:
                yield trainer
        except Stopped:
            trainer.bad_records.give_up(trainer.progress.position.epoch)
            raise
        except SharedFault:
            _give_up(trainer, discard=workers.rank == 0)
            raise
        except InputError as error:
            # Here, whatever the rank: rank 0 waits for this one, and will not outlive it for long.
            _give_up(trainer, discard=True)
            raise InputError(str(error), only_here=True) from error
        except mx.MXNetError as error:
            if not workers.was_abandoned(error):
                raise
            _give_up(trainer, discard=True)
            if wishes.stop:
                raise trainer.stopped(together=False) from None
            raise Abandoned("another worker stopped: its own line says why") from None
        finally:
            trainer.upcoming.close()
            trainer.saver.settle()


def _give_up(trainer: Trainer, discard: bool) -> None:
    trainer.bad_records.give_up(trainer.progress.position.epoch)
    trainer.saver.settle()
    if discard and trainer.saver.last_step is None and not trainer.directory.displaced:
        files.discard_unless_trained(trainer.directory.path)
