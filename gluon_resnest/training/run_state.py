"""How far a run has come: everything of its state that is not an array."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Callable

from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.errors import InputError
from gluon_resnest.plain_text import shortened


@dataclass
class EpochSums:
    """Of the steps of one epoch, over all workers; interruptions are not counted.

    Attributes
    ----------
    images, loss_sum
        Images seen, and the sum of their losses.
    seconds, data_seconds
        Rank 0's time, and how much of it was spent waiting for data.
    """

    images: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    data_seconds: float = 0.0

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.images, 1)


@dataclass
class Progress:
    """The state of a run but for its arrays; the same on every worker.

    Attributes
    ----------
    step
        Batches taken, over all epochs.
    position
        Where the run stands in its data.
    sums
        Of the epoch that it is in.
    validated
        Epochs whose validation is behind.
    best, best_ema
        Figures by name of the best validation of the weights, and of their moving average.
    skipped, rollbacks
        Updates that were left out, and returns to a checkpoint, because of values that were no
        finite numbers.
    metrics_lines
        Of ``metrics.jsonl`` when this was saved.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    sums: EpochSums = field(default_factory=EpochSums)
    validated: int = 0
    best: dict[str, float] | None = None
    best_ema: dict[str, float] | None = None
    skipped: int = 0
    rollbacks: int = 0
    metrics_lines: int = 0

    def as_dict(self, sampling: Sampling) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "position": self.position.as_dict(sampling),
                "best": _as_json(self.best), "best_ema": _as_json(self.best_ema)}

    @classmethod
    def from_dict(
        cls, saved: dict[str, Any], sampling: Sampling, source: str, override: bool,
        score: str, upgraded: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Progress:
        """What :meth:`as_dict` made.

        With `override` the data may be another: then the epoch begins anew. `score` is the figure
        that the task chooses by, `upgraded` is its :meth:`~.task.Task.upgraded`.

        Raises
        ------
        InputError
            The position is one in other data, or the figures are of another task.
        """
        known = {of.name for of in fields(cls)}
        values = {name: value for name, value in saved.items() if name in known}
        for name in ("best", "best_ema"):
            if values.get(name) is not None:
                values[name] = _figures(upgraded(values[name]), score, source)
        values["sums"] = EpochSums(**values.get("sums", {}))
        try:
            values["position"] = Position.from_dict(
                saved["position"], sampling, f"the position in {source}")
        except InputError:
            if not override:
                raise
            values["position"], values["sums"] = Position(saved["position"]["epoch"]), EpochSums()
        return cls(**values)


def _as_json(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """JSON has no NaN, which the loss of a network that is still rough may be."""
    if figures is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _figures(saved: dict[str, Any], score: str, source: str) -> dict[str, float]:
    if not isinstance(saved.get(score), (int, float)):
        raise InputError(f"{source}: its best validation has no {score}, but "
                         f"{shortened(', '.join(saved)) or 'nothing'}: it is of another task, or "
                         "damaged; copy the checkpoint again, or choose another --save-dir")
    return {name: math.nan if value is None else value for name, value in saved.items()}
