"""A run's checkpoints: when they are due, what is in them, and how a run goes on from one."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Callable

from gluon_resnest.checkpoints.checkpoint import Checkpoints, Snapshot
from gluon_resnest.checkpoints.checkpoint_writer import CheckpointWriter
from gluon_resnest.errors import InputError
from gluon_resnest.runs import run_directory as files
from gluon_resnest.training.run_arrays import AVERAGE, WEIGHTS, RunArrays, first_not_finite
from gluon_resnest.training.task import Recipe
from gluon_resnest.workers import Workers

# A disk that is full for a moment must not end a run of days, nor may a run of days save nothing.
_MOST_FAILURES = 3

_SETTLE = 60.0  # seconds
_BEAT_EVERY = 1.0


class Diverged(InputError):
    """The state of a run holds values that are no finite numbers."""


class FiniteCheckpoints(Checkpoints):
    """Checkpoints that hold finite numbers only: a run that goes on from others is lost."""

    def write(self, snapshot: Snapshot) -> Path:
        name = first_not_finite(snapshot.arrays)
        if name is not None:
            raise Diverged(f"{name} is no finite number throughout after step {snapshot.step}, "
                           "which is not saved: the run diverged; go on from the checkpoint "
                           "before with a lower --lr and --override")
        return super().write(snapshot)


class Saver:
    """Writes checkpoints of a run, on rank 0, in the background.

    Parameters
    ----------
    directory
        The run directory.
    workers
        Of the run.
    recipe
        Of the run; a checkpoint says what made it.
    keep
        Number of checkpoints that are kept.
    minutes, steps
        A checkpoint is due so often within an epoch; 0 for never.
    warn
        Says what the user should see while the run goes on.
    """

    def __init__(
        self,
        directory: Path,
        workers: Workers,
        recipe: Recipe,
        keep: int,
        minutes: float,
        steps: int,
        warn: Callable[[str], None],
    ) -> None:
        self._directory, self._workers, self._recipe = directory, workers, recipe
        self._seconds, self._steps, self._warn = minutes * 60, steps, warn
        self.checkpoints = FiniteCheckpoints(directory / files.CHECKPOINTS, keep)
        self._writer = CheckpointWriter(self.checkpoints, on_written=self._written)
        self._warned_of: InputError | None = None
        self._last_time = time.monotonic()
        self.beat: Callable[[], None] = lambda: None  # called while a write is waited for
        self.last_step: int | None = None  # asked for, perhaps still being written

    # ---- before the run ----

    def found(self) -> Snapshot | None:
        """The newest good checkpoint, on rank 0.

        Raises
        ------
        InputError
            There are checkpoints, but none is good.
        """
        if self._workers.rank != 0:
            return None
        self.checkpoints.clean()
        return self.checkpoints.newest(self._warn)

    def check(self, saved: dict[str, Any], override: bool) -> None:
        """Refuse to go on from the checkpoint of another recipe, unless `override`."""
        different = self._recipe.differences(saved["recipe"])
        if not different:
            return
        if not override:
            raise InputError(
                f"the run in --save-dir {self._directory} was started with "
                f"{', '.join(different)}: repeat its flags (or give -c "
                f"{self._directory / files.CONFIG}), choose another folder, or go on with the new "
                "ones by --override")
        self._warn(f"goes on with other settings than before: {', '.join(different)}")

    # ---- during the run ----

    def wish(self) -> bool:
        """Whether this worker's clock says that a checkpoint is due; rank 0's alone does."""
        return (self._workers.rank == 0 and self._seconds > 0
                and time.monotonic() - self._last_time >= self._seconds)

    def due(self, step: int) -> bool:
        """Whether one is due by the count of steps, on every worker alike."""
        return self._steps > 0 and step % self._steps == 0

    def save(self, arrays: RunArrays, step: int, state: dict[str, Any]) -> None:
        """Copy the state of the run, and write it in the background; every worker must call it.

        Raises
        ------
        InputError
            The third time in a row that nothing could be written.
        """
        self._last_time = time.monotonic()
        if step == self.last_step:
            return
        if self._workers.rank == 0:
            self.finish()  # two copies at a time are memory enough
        copied = arrays.copy()
        self.last_step = step
        if copied is None:
            return
        self._writer.begin(Snapshot(step, copied, {
            **state, "recipe": self._recipe.as_dict(), "workers": self._workers.size}))

    def look(self) -> None:
        """Say what went wrong since the last look."""
        failure = self._writer.failure
        if failure is None or failure is self._warned_of:
            return
        self._warned_of = failure
        if isinstance(failure, Diverged):
            raise Diverged(str(failure), only_here=True)
        if self._writer.failures_in_a_row >= _MOST_FAILURES:
            raise InputError(f"{failure}; that was the third time in a row", only_here=True)
        self._warn(f"{failure}; training goes on, and it is tried again with the next checkpoint")

    def finish(self) -> bool:
        """Wait until all is on disk; whether the last checkpoint is."""
        while not self._writer.wait(_BEAT_EVERY):
            self.beat()
        self.look()
        return self._writer.failure is None

    def settle(self) -> None:
        """Let a write that is under way end, before the process does."""
        with contextlib.suppress(Exception):  # the run has ended for another reason
            self._writer.wait(_SETTLE)

    @property
    def written_step(self) -> int | None:
        """Step of the newest checkpoint that this process has put on the disk."""
        return self._writer.last_step

    @property
    def failure(self) -> InputError | None:
        return self._writer.failure

    def keep_best(self, name: str, average: bool) -> None:
        """Make the weights of the newest checkpoint the file `name` of the run directory."""
        if self._workers.rank != 0:
            return
        try:
            if self.finish():
                self.checkpoints.link_weights(self.last_step, self._directory / name,
                                              AVERAGE if average else WEIGHTS)
                return
            why = str(self.failure)
        except InputError as error:
            if isinstance(error, Diverged) or error is self.failure or error.only_here:
                raise
            why = str(error)
        self._warn(f"{name} is not the best any more: {why}")

    def _written(self, path: Path) -> None:
        """Called by the thread that writes, after each success."""
        self.checkpoints.link_weights(int(path.name.rpartition("-")[2]),
                                      self._directory / files.LAST)

    def newest(self) -> Snapshot | None:
        """On rank 0, what a rollback returns to; None if there is no checkpoint yet."""
        if self._workers.rank != 0:
            return None
        self.finish()
        return self.checkpoints.newest(self._warn)
