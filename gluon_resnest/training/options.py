"""How any task is trained: what its result depends on, and how its run is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gluon_resnest import command_line
from gluon_resnest.plain_text import shortened
from gluon_resnest.settings import flag_of, setting
from gluon_resnest.workers import DEFAULT_HANG_TIMEOUT

NAN_POLICIES = ("abort", "skip", "rollback")

_MOST = 1_000_000


@dataclass(frozen=True)
class TrainingRecipe:
    """What the result of any run depends on: the part of a recipe that the engine knows.

    A task's recipe is a subclass with its own settings and defaults. `differences` and `as_dict`
    go through all of them.
    """

    batch_size: int = setting(
        128, "images a worker and step (default: the recipe's)", group="run", metavar="N",
        type=command_line.positive, least=1, most=_MOST)
    epochs: int = setting(
        270, "epochs (recipe: 270)", group="run", metavar="N",
        flags=("--num-epochs", "--epochs"), least=1, most=_MOST)
    seed: int = setting(
        0, "of everything random (recipe: 0)", group="run", metavar="N", least=0, most=2**63 - 1)
    ema: float = setting(
        0.0, "average the weights too, and evaluate both (recipe: 0, none; --ema alone is 0.9999)",
        group="regularization", metavar="DECAY", const=0.9999, least=0, below=1)
    accumulate: int = setting(
        1, "compute each batch in N parts, for batches that do not fit the memory; learning rate "
           "and steps stay (recipe: 1)", group="optimizer", metavar="N",
        type=command_line.positive, least=1, most=_MOST)
    clip_norm: float = setting(
        0.0, "scale gradients of the global batch down to this norm, 0 for none (recipe: 0)",
        group="optimizer", metavar="C", least=0, most=1e30)
    fp16_allreduce: bool = setting(
        False, "send gradients as float16 numbers: half the bytes", group="optimizer")
    amp: bool = setting(
        False, "compute in float16 where that is safe (GPUs only)", group="optimizer")

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, the task's own first."""
        settings, engine = asdict(self), [field.name for field in fields(TrainingRecipe)]
        return {**{name: value for name, value in settings.items() if name not in engine},
                **{name: settings[name] for name in engine}}

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """The settings in which the recipe that was `saved` by :meth:`as_dict` is another one.

        As ``--flag then (now ...)``. A setting that the saved recipe lacks had its default.
        """
        defaults = {field.name: field.default for field in fields(self)}
        return [f"{flag_of(self, name)} {shortened(saved.get(name, defaults[name]))} (now {now})"
                for name, now in self.as_dict().items()
                if saved.get(name, defaults[name]) != now]


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. Nothing here changes its result, but for `nan_policy` and `steps`.

    Attributes
    ----------
    resume
        ``"auto"`` or ``"never"``.
    steps
        None for the whole schedule.
    tensorboard
        None: if tensorboardX is installed.
    """

    save_dir: Path = setting(
        help="run directory (default: runs/MODEL-DATE-TIME)", group="run", metavar="DIR",
        type=command_line.path)
    overwrite: bool = setting(False, "delete the run that --save-dir holds", group="run")
    resume: str = setting(
        "auto", "auto: go on from the newest good checkpoint in --save-dir, exactly where it "
                "stopped; never: refuse a folder with a run (default: auto)", group="survival",
        choices=("auto", "never"))
    override: bool = setting(
        False, "go on with settings that differ from the run's", group="survival")
    steps: int | None = setting(
        None, "stop after N steps in all; the schedule stays that of --num-epochs", group="run",
        metavar="N", type=command_line.positive)
    hang_timeout: float = setting(
        int(DEFAULT_HANG_TIMEOUT), "end a run in which no step has been finished for so long, or "
        "for five times the slowest step (default: %(default)s)", group="survival",
        metavar="SECONDS", type=command_line.positive)
    nan_policy: str = setting(
        "abort", "when a loss is NaN or infinite: abort; skip the step (which looks at the "
                 "gradients too); or rollback to the weights of the last checkpoint (default: "
                 "abort)", group="survival", choices=NAN_POLICIES)
    eval_frequency: int = setting(
        1, "validate every N epochs, 0 for none, and at the end (default: 1)", group="run",
        metavar="N", type=command_line.not_negative)
    save_frequency: int = setting(
        1, "write a checkpoint every N epochs, and whenever validation is due (default: 1)",
        group="run", metavar="N", type=command_line.positive)
    checkpoint_minutes: float = setting(
        10.0, "within an epoch, write one every M minutes, 0 for none (default: %(default)g)",
        group="survival", metavar="M", type=command_line.not_negative_number)
    checkpoint_steps: int = setting(
        0, "and one every N steps, 0 for none (default: 0)", group="survival", metavar="N",
        type=command_line.not_negative)
    keep: int = setting(
        2, "checkpoints to keep (default: %(default)s)", group="survival", metavar="N",
        type=command_line.positive)
    log_interval: int = setting(
        50, "write a line to metrics.jsonl and to a log every N steps (default: 50)", group="run",
        metavar="N", type=command_line.positive)
    tensorboard: bool | None = setting(
        None, "write TensorBoard events (default: if tensorboardX is installed; "
              "--no-tensorboard)", group="run", off="--no-tensorboard")

    def as_dict(self) -> dict[str, Any]:
        return as_settings(self)


def as_settings(options: Any) -> dict[str, Any]:
    """Fields of a dataclass as single values for YAML."""
    return {name: str(value) if isinstance(value, Path) else value
            for name, value in vars(options).items()}
