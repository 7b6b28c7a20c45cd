"""The beginning of a run: a new run directory, or one that goes on from its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from gluon_resnest.checkpoints.checkpoint import Snapshot
from gluon_resnest.data.loading.position import Position
from gluon_resnest.errors import InputError
from gluon_resnest.runs import run_directory as files
from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.training.console import Console
from gluon_resnest.training.ema import MovingAverage
from gluon_resnest.training.held_directory import HeldDirectory
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.run_arrays import RunArrays
from gluon_resnest.training.run_state import EpochSums, Progress
from gluon_resnest.training.saved_state import check_progress, check_state
from gluon_resnest.training.saving import Saver
from gluon_resnest.training.step_log import StepLog
from gluon_resnest.training.task import Task
from gluon_resnest.training.throughput import peak_gflops
from gluon_resnest.training.updater import Updater
from gluon_resnest.workers import Workers

Draw = Callable[[Path, Path, str], None]


@dataclass(frozen=True)
class Parts:
    """What a run is made of before it has a directory.

    Attributes
    ----------
    save_dir
        The same on every worker.
    average
        Of the weights, if there is one.
    draw
        Draws the course of the run after each validation, of its metrics, the picture to write
        and a title; None for no picture.
    """

    task: Task
    options: RunOptions
    workers: Workers
    console: Console
    save_dir: Path
    updater: Updater
    average: MovingAverage | None
    arrays: RunArrays
    draw: Draw | None = None


@dataclass(frozen=True)
class Started:
    """What a run has once it begins, or goes on.

    Attributes
    ----------
    metrics
        On rank 0 alone.
    """

    progress: Progress
    saver: Saver
    directory: HeldDirectory
    metrics: MetricsLog | None
    step_log: StepLog

    def close(self) -> None:
        """Close the files, on rank 0."""
        if self.metrics is not None:
            self.metrics.close()
        self.directory.release()


@dataclass(frozen=True)
class Complete:
    """A run that has nothing left to do."""

    progress: Progress


@dataclass(frozen=True)
class _Found:
    """What rank 0 sees in the run directory."""

    lock: files.RunLock | None = None
    snapshot: Snapshot | None = None
    result: dict[str, Any] | None = None  # of a run that is complete


def begin_or_resume(parts: Parts) -> Started | Complete:
    """Set up the run directory, and give the arrays what the newest checkpoint holds.

    Every worker calls it; rank 0 alone needs to see the directory.

    Raises
    ------
    InputError
        The directory cannot be written to, is another run's, or its checkpoints are all damaged.
    """
    workers, options, recipe = parts.workers, parts.options, parts.task.recipe
    saver = Saver(parts.save_dir, workers, recipe, options.keep, options.checkpoint_minutes,
                  options.checkpoint_steps, parts.console.warn)
    found = workers.together(lambda: _look(parts, saver) if workers.rank == 0 else _Found())
    try:
        state, result = workers.gather(
            (found.snapshot.state if found.snapshot else None, found.result))[0]
        if result is not None:  # its last validation came after its last checkpoint
            state = {**state, "progress": result}
        progress = workers.together(lambda: _progress(parts, saver, state))
        if result is None:
            return _start(parts, saver, found, state, progress)
    except BaseException:
        if found.lock is not None:
            found.lock.release()
        raise
    if found.lock is not None:
        found.lock.release()
    return Complete(progress)


def _look(parts: Parts, saver: Saver) -> _Found:
    """Lock the run directory and read it; clear it where a run begins anew."""
    directory, options = parts.save_dir, parts.options
    lock = files.RunLock(directory)
    try:
        if options.overwrite:
            files.clear_run_directory(directory)
        if options.resume == "never":
            files.refuse_a_run(directory)
        snapshot = saver.found()
        if snapshot is None:
            if files.holds_weights(directory) or not files.was_begun(directory):
                files.refuse_a_run(directory)
            files.clear_run_directory(directory)  # of what ended before its first checkpoint
            return _Found(lock)
        source = saver.checkpoints.path(snapshot.step)
        check_state(snapshot.state, snapshot.step, f"{source}/state.json")
        saver.check(snapshot.state, options.override)
        parts.arrays.check(snapshot.arrays, source)
        saver.checkpoints.set_aside_later(snapshot.step)
        result = files.read_result(directory)
        same = not parts.task.recipe.differences(snapshot.state["recipe"])
        complete = (same and result is not None and result.get("complete") is True
                    and result.get("step") == snapshot.step)
        if complete:
            check_progress(result, snapshot.step, "the whole", str(directory / files.RESULT))
        return _Found(lock, snapshot, result if complete else None)
    except BaseException:
        lock.release()
        raise


def _progress(parts: Parts, saver: Saver, state: dict[str, Any] | None) -> Progress:
    if state is None:
        return Progress()
    task, workers = parts.task, parts.workers
    sampling, recipe = task.training.sampling, task.recipe
    progress = Progress.from_dict(
        state["progress"], sampling, str(saver.checkpoints.folder), parts.options.override,
        task.score, task.upgraded)
    position = progress.position
    if position.epoch >= recipe.epochs:
        raise InputError(f"--num-epochs {recipe.epochs} are fewer than the run in "
                         f"{parts.save_dir} has behind it: {position.epoch}")
    try:
        sampling.steps(recipe.batch_size, workers.size, position.legs)
    except InputError as error:
        if position.epoch + 1 >= recipe.epochs:
            raise
        parts.console.warn(f"{error}; the next epoch begins")
        progress.position, progress.sums = Position(position.epoch + 1), EpochSums()
    return progress


def _start(parts: Parts, saver: Saver, found: _Found, state: dict[str, Any] | None,
           progress: Progress) -> Started:
    task, options, workers = parts.task, parts.options, parts.workers
    if state is not None:
        parts.arrays.set(found.snapshot.arrays if found.snapshot else None)
        parts.updater.set_loss_scale(state["loss_scale"])
        parts.updater.set_updates(state.get("updates", 0))
        saver.last_step = progress.step
    about = task.description
    directory = HeldDirectory(
        parts.save_dir, found.lock,
        {"recipe": task.recipe.as_dict(), "run": {**about.source, **options.as_dict()},
         "workers": workers.size}, about.files, parts.console)
    metrics = workers.together(lambda: _open(parts, directory, progress, state is not None))
    try:
        peak = peak_gflops(task.device)
        if metrics is not None:
            metrics.write("start", **_described(parts, progress, peak))
        if state is not None:
            parts.console.say(_resumed(parts, state, progress))
    except BaseException:
        if metrics is not None:
            metrics.close()
        raise
    step_log = StepLog(metrics, options.log_interval, workers.size, task.device,
                       about.operations, peak)
    return Started(progress, saver, directory, metrics, step_log)


def _open(parts: Parts, directory: HeldDirectory, progress: Progress,
          resumed: bool) -> MetricsLog | None:
    """Write what a run directory begins with, and open its metrics, on rank 0."""
    if parts.workers.rank != 0:
        return None
    # First, as the sign that the other files are a run's and not the user's own.
    metrics = MetricsLog(directory.path, parts.options.tensorboard,
                         resumed_at=progress.step if resumed else None,
                         lines=progress.metrics_lines if resumed else None)
    directory.write_settings()
    return metrics


def _described(parts: Parts, progress: Progress, peak: float) -> dict[str, Any]:
    task, workers = parts.task, parts.workers
    recipe, sampling = task.recipe, task.training.sampling
    return {
        "step": progress.step, "workers": workers.size,
        "global_batch": recipe.batch_size * workers.size,
        "total_steps": task.schedule.total_steps, "steps_per_epoch": len(task.training),
        "images": sampling.length, "epochs": recipe.epochs, "device": str(task.device),
        "device_gflops": peak, **task.description.facts}


def _resumed(parts: Parts, state: dict[str, Any], progress: Progress) -> str:
    position, workers = progress.position, parts.workers
    text = (f"going on with {parts.save_dir} after step {progress.step} (epoch "
            f"{position.epoch + 1}, {position.steps} steps into it)")
    if state["workers"] != workers.size:
        text += (f"; with {workers.size} workers, where there were {state['workers']}: the "
                 f"learning rate follows the global batch of "
                 f"{parts.task.recipe.batch_size * workers.size}")
    return text
