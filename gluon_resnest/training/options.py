"""How a run is carried out: where it writes, when it saves and validates, what it survives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gluon_resnest.workers import DEFAULT_HANG_TIMEOUT


@dataclass(frozen=True)
class RunOptions:
    """Nothing here changes the result, but for `nan_policy` and `steps`.

    Attributes
    ----------
    save_dir
        The run directory.
    overwrite, resume, override
        Delete the run in it; ``"auto"`` or ``"never"``; go on with other settings than before.
    steps
        Stop after so many in all; None for the whole schedule.
    hang_timeout
        Seconds without a step after which a run counts as hung.
    nan_policy
        One of :data:`~.non_finite.NAN_POLICIES`.
    eval_frequency, save_frequency
        Epochs between two validations (0: at the end alone) and checkpoints.
    checkpoint_minutes, checkpoint_steps, keep
        Time and steps between checkpoints within an epoch, 0 for none; how many are kept.
    log_interval
        Steps between two lines of metrics.
    tensorboard
        Whether to write TensorBoard's events; None: if tensorboardX is installed.
    """

    save_dir: Path
    overwrite: bool = False
    resume: str = "auto"
    override: bool = False
    steps: int | None = None
    hang_timeout: float = DEFAULT_HANG_TIMEOUT
    nan_policy: str = "abort"
    eval_frequency: int = 1
    save_frequency: int = 1
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0
    keep: int = 2
    log_interval: int = 50
    tensorboard: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        return as_settings(self)


def as_settings(options: Any) -> dict[str, Any]:
    """Fields of a dataclass as single values for YAML."""
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()}
