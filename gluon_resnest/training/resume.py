"""The beginning of a run: a new run directory, or one that goes on from its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gluon_resnest.checkpoints.checkpoint import Snapshot
from gluon_resnest.data.loading.position import Position
from gluon_resnest.errors import InputError
from gluon_resnest.planning.cost import summary
from gluon_resnest.runs import run_directory as files
from gluon_resnest.runs.metrics import MetricsLog
from gluon_resnest.tasks.classification.ablation import published
from gluon_resnest.training.run_state import EpochSums, Progress
from gluon_resnest.training.saved_state import check_progress, check_state
from gluon_resnest.training.saving import Saver
from gluon_resnest.training.step_log import StepLog
from gluon_resnest.training.throughput import peak_gflops

# A backward pass computes two products of matrices where the forward pass computes one, and a
# multiply-add is two operations.
_OPERATIONS = 3 * 2


@dataclass
class Start:
    """What a run begins with.

    Attributes
    ----------
    saver, metrics, step_log, progress
        Of the run; `metrics` on rank 0 alone.
    complete
        Whether there is nothing left to do.
    """

    saver: Saver
    metrics: MetricsLog | None
    step_log: StepLog | None
    progress: Progress
    complete: bool = False
    lock: files.RunLock | None = None
    displaced: bool = False  # by another run, whose directory it is now

    def close(self) -> None:
        """Close the files, on rank 0."""
        if self.metrics is not None:
            self.metrics.close()
        if self.lock is not None:
            self.lock.release()


@dataclass
class _Found:
    """What rank 0 sees in the run directory."""

    lock: files.RunLock | None = None
    snapshot: Snapshot | None = None
    result: dict[str, Any] | None = None  # of a run that is complete


def begin_or_resume(trainer: Any) -> Start:
    """Set up the run directory of a :class:`~.trainer.Trainer`, and its arrays and progress.

    Every worker calls it; rank 0 alone needs to see the directory.

    Raises
    ------
    InputError
        The directory cannot be written to, is another run's, or its checkpoints are all damaged.
    """
    workers, options, recipe = trainer.workers, trainer.options, trainer.recipe
    saver = Saver(trainer.save_dir, workers, recipe, options.keep, options.checkpoint_minutes,
                  options.checkpoint_steps, trainer.warn)
    found = workers.together(lambda: _look(trainer, saver) if workers.rank == 0 else _Found())
    state, result = workers.gather(
        (found.snapshot.state if found.snapshot else None, found.result))[0]
    if result is not None:  # its last validation came after its last checkpoint
        state = {**state, "progress": result}
    try:
        progress = workers.together(lambda: _progress(trainer, saver, state))
        start = Start(saver, None, None, progress, result is not None, found.lock)
        if start.complete:
            return start
        if state is not None:
            trainer.arrays.set(found.snapshot.arrays if found.snapshot else None)
            trainer.updater.set_loss_scale(state["loss_scale"])
            saver.last_step = progress.step
        workers.together(lambda: _open(trainer, start, resumed=state is not None))
        peak = peak_gflops(trainer.ctx)
        flops = _OPERATIONS * summary(trainer.net, recipe.train_size).multiply_adds
        start.step_log = StepLog(start.metrics, options.log_interval, workers.size, trainer.ctx,
                                 flops, peak)
        if workers.rank == 0:
            start.metrics.write("start", **_described(trainer, progress, peak))
            if state is not None:
                print(_resumed(trainer, state, progress), flush=True)
    except BaseException:
        if found.lock is not None:
            found.lock.release()
        raise
    return start


def _look(trainer: Any, saver: Saver) -> _Found:
    """Lock the run directory and read it; clear it where a run begins anew."""
    directory, options = trainer.save_dir, trainer.options
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
        trainer.arrays.check(snapshot.arrays, source)
        saver.checkpoints.set_aside_later(snapshot.step)
        result = files.read_result(directory)
        same = not trainer.recipe.differences(snapshot.state["recipe"])
        complete = (same and result is not None and result.get("complete") is True
                    and result.get("step") == snapshot.step)
        if complete:
            check_progress(result, snapshot.step, "the whole", str(directory / files.RESULT))
        return _Found(lock, snapshot, result if complete else None)
    except BaseException:
        lock.release()
        raise


def _progress(trainer: Any, saver: Saver, state: dict[str, Any] | None) -> Progress:
    if state is None:
        return Progress()
    sampling, recipe, workers = trainer.loader.sampling, trainer.recipe, trainer.workers
    progress = Progress.from_dict(state["progress"], sampling,
                                  f"the position in {saver.checkpoints.folder}",
                                  trainer.options.override)
    position = progress.position
    if position.epoch >= recipe.epochs:
        raise InputError(f"--num-epochs {recipe.epochs} are fewer than the run in "
                         f"{trainer.save_dir} has behind it: {position.epoch}")
    try:
        sampling.steps(recipe.batch_size, workers.size, position.legs)
    except InputError as error:
        if position.epoch + 1 >= recipe.epochs:
            raise
        trainer.warn(f"{error}; the next epoch begins")
        progress.position, progress.sums = Position(position.epoch + 1), EpochSums()
    return progress


def _open(trainer: Any, start: Start, resumed: bool) -> None:
    """Write what a run directory begins with, and open its metrics, on rank 0."""
    if trainer.workers.rank != 0:
        return
    directory, progress = trainer.save_dir, start.progress
    # First, as the sign that the other files are a run's and not the user's own.
    start.metrics = MetricsLog(directory, trainer.options.tensorboard,
                               resumed_at=progress.step if resumed else None,
                               lines=progress.metrics_lines if resumed else None)
    _write_settings(trainer)


def _write_settings(trainer: Any) -> None:
    files.write_config(trainer.save_dir, {
        "recipe": trainer.recipe.as_dict(), "run": trainer.options.as_dict(),
        "workers": trainer.workers.size})
    if trainer.records.class_names:
        files.write_class_names(trainer.save_dir / files.CLASSES, trainer.records.class_names)


def renew_directory(trainer: Any, start: Start) -> bool:
    """Make the run directory again if it was deleted or moved away; whether it was.

    On rank 0. Its next checkpoint is to be written soon: the others went with the directory.

    Raises
    ------
    InputError
        Another run has taken its place.
    """
    if start.lock is None or not start.lock.is_lost():
        return False
    directory, start.lock = trainer.save_dir, None
    try:
        start.lock = files.RunLock(directory)
    except InputError as error:
        start.displaced = True
        raise InputError(f"{directory} was deleted or moved while the run went on, and now "
                         f"another one has taken its place: {error}", only_here=True) from None
    trainer.warn(f"{directory} was deleted or moved while the run goes on: it is written again, "
                 "with a checkpoint; the checkpoints and best weights until now went with it")
    _write_settings(trainer)
    return True


def _described(trainer: Any, progress: Progress, peak: float) -> dict[str, Any]:
    recipe, workers = trainer.recipe, trainer.workers
    return {
        "step": progress.step, "model": recipe.model, "workers": workers.size,
        "global_batch": recipe.batch_size * workers.size,
        "total_steps": trainer.schedule.total_steps, "steps_per_epoch": len(trainer.loader),
        "images": len(trainer.records), "epochs": recipe.epochs,
        "peak_lr": recipe.peak_lr(workers.size), "device": str(trainer.ctx),
        "device_gflops": peak, "published_top1": published(recipe)["published_top1"]}


def _resumed(trainer: Any, state: dict[str, Any], progress: Progress) -> str:
    position, workers = progress.position, trainer.workers
    text = (f"going on with {trainer.save_dir} after step {progress.step} (epoch "
            f"{position.epoch + 1}, {position.steps} steps into it)")
    if state["workers"] != workers.size:
        text += (f"; with {workers.size} workers, where there were {state['workers']}: the "
                 f"learning rate follows the global batch of "
                 f"{trainer.recipe.batch_size * workers.size}")
    return text

