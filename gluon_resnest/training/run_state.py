"""How far a run has come: everything of its state that is not an array."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gluon_resnest.data.loading.position import Position
from gluon_resnest.data.loading.sampling import Sampling
from gluon_resnest.errors import InputError
from gluon_resnest.tasks.classification.evaluation import Result


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
        Best validation of the weights, and of their moving average.
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
    best: Result | None = None
    best_ema: Result | None = None
    skipped: int = 0
    rollbacks: int = 0
    metrics_lines: int = 0

    def as_dict(self, sampling: Sampling) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "position": self.position.as_dict(sampling),
                "best": _as_json(self.best), "best_ema": _as_json(self.best_ema)}

    @classmethod
    def from_dict(
        cls, saved: dict[str, Any], sampling: Sampling, source: str, override: bool
    ) -> Progress:
        """What :meth:`as_dict` made.

        With `override` the data may be another: then the epoch begins anew.

        Raises
        ------
        InputError
            The position is one in other data.
        """
        known = {of.name for of in fields(cls)}
        values = {name: value for name, value in saved.items() if name in known}
        for name in ("best", "best_ema"):
            values[name] = _from_json(values.get(name))
        values["sums"] = EpochSums(**values.get("sums", {}))
        try:
            values["position"] = Position.from_dict(saved["position"], sampling, source)
        except InputError:
            if not override:
                raise
            values["position"], values["sums"] = Position(saved["position"]["epoch"]), EpochSums()
        return cls(**values)


def _as_json(result: Result | None) -> dict[str, Any] | None:
    """JSON has no NaN, which the loss of a network that is still rough may be."""
    if result is None:
        return None
    return {**asdict(result),
            "loss_sum": result.loss_sum if math.isfinite(result.loss_sum) else None}


def _from_json(saved: dict[str, Any] | None) -> Result | None:
    if saved is None:
        return None
    loss = saved["loss_sum"]
    return Result(**{**saved, "loss_sum": math.nan if loss is None else loss})
