"""What a run directory tells of its run: the events that count, and the figures that sum it up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gluon_resnest.errors import InputError
from gluon_resnest.runs.metrics import read_metrics
from gluon_resnest.runs.run_directory import METRICS


@dataclass(frozen=True)
class Reference:
    """A published accuracy: top-1 in %, of what and from where, and what this run has otherwise."""

    top1: float
    model: str
    source: str
    overridden: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunHistory:
    """The events of a run, each kind in the order of its steps.

    Attributes
    ----------
    folder
        Run directory.
    start
        The run's first event, with its plan; empty for a run of an older version.
    steps, epochs, validations, validations_ema
        The events of these kinds. `steps` have the ``epoch`` that they were in.
    breaks
        Where the run was resumed or went back to earlier weights: (epoch, which of these).
    reference
        What was published for its recipe.
    """

    folder: Path
    start: dict[str, Any]
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    validations_ema: list[dict[str, Any]]
    breaks: list[tuple[float, str]]
    reference: Reference | None

    @property
    def epochs_done(self) -> float:
        ends = [record["epoch"] for record in (*self.epochs, *self.steps[-1:])]
        return max(ends, default=0)

    @property
    def last_loss(self) -> float | None:
        """Training loss of the last epoch, or of the last step where no epoch is whole."""
        return next((record.get("loss") for record in (*self.epochs[-1:], *self.steps[-1:])), None)

    @property
    def images_per_second(self) -> float | None:
        """Over all workers, in the last epoch, or at the last step where no epoch is whole."""
        return next((record.get("images_per_second")
                     for record in (*self.epochs[-1:], *self.steps[-1:])), None)

    def best(self, average: bool = False) -> tuple[float, float] | None:
        """The best top-1, %, and its epoch; of the moving average of the weights if `average`."""
        found = [(record["top1"], record["epoch"])
                 for record in (self.validations_ema if average else self.validations)
                 if record.get("top1") is not None]
        return max(found, key=lambda pair: pair[0]) if found else None


def read_history(folder: Path, reference: Reference | None = None) -> RunHistory:
    """The run in `folder`, beside a published `reference` if there is one.

    Raises
    ------
    InputError
        There is no such folder, no run in it, nothing in its metrics, or a damaged line.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --save-dir of a run"
                         if folder.exists() else f"{folder} does not exist")
    metrics = folder / METRICS
    if not metrics.exists():
        raise InputError(f"{folder} holds no run: it has no {METRICS}")
    history = history_of(metrics, reference)
    if not (history.steps or history.epochs or history.validations):
        raise InputError(f"{metrics} tells of no step yet: let the run go on")
    return history


def history_of(metrics: Path, reference: Reference | None = None) -> RunHistory:
    """What a ``metrics.jsonl`` tells, if only of the beginning of a run."""
    records = read_metrics(metrics)
    starts = [record for record in records if record["event"] == "start"]
    plan = starts[-1] if starts else {}
    kinds = (_in_order(records, event) for event in ("epoch", "validation", "validation_ema"))
    return RunHistory(metrics.parent, plan, _with_epochs(_in_order(records, "step"), plan), *kinds,
                      breaks=_breaks(records, plan), reference=reference)


def _in_order(records: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """Those of one kind. What was done anew after an interruption counts as it was then."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if record["event"] != event or not _is_number(record.get("step")):
            continue
        if event != "step" and not _is_number(record.get("epoch")):
            continue
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _with_epochs(steps: list[dict[str, Any]], plan: dict[str, Any]) -> list[dict[str, Any]]:
    whole = plan.get("steps_per_epoch")
    placed = []
    for record in steps:
        epoch = record.get("epoch")
        if epoch is None and whole:
            epoch = record["step"] / whole
        if epoch is not None:
            placed.append({**record, "epoch": epoch})
    return placed


def _breaks(records: list[dict[str, Any]], plan: dict[str, Any]) -> list[tuple[float, str]]:
    kinds = {"start": "resumed", "rollback": "weights set back"}
    whole = plan.get("steps_per_epoch")
    return [(record["step"] / whole, kinds[record["event"]])
            for record in records if record["event"] in kinds and whole and record.get("step")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def run_labels(folders: Sequence[Path]) -> list[str]:
    """For each run the end of its path, as short as tells it from the others."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    labels = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        labels.append("/".join(own[-length:]))
    return labels
