"""What a run says of itself: a progress line, metrics.jsonl, and the learning curve."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line, written through at once."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """Append one event; floats keep full precision."""
        record = {"event": event, "time": time.time(), **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, event: str) -> list[dict[str, Any]]:
    """The records of one kind of event in a ``metrics.jsonl``, in order."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


class DataClock:
    """Seconds since it was made, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.data_seconds = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def share(self) -> float:
        """Share of the time in which the device had to wait, 0 to 1."""
        return self.data_seconds / self.seconds

    def waiting_for(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, with the time that each is waited for noted."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.data_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def progress_bar(total: int, description: str, enabled: bool, unit: str = "step") -> tqdm:
    """A tqdm line; silent on every rank but the first."""
    return tqdm(total=total, desc=description, unit=unit, disable=not enabled, leave=True,
                dynamic_ncols=True, mininterval=0.5)


def draw_learning_curve(metrics: Path, picture: Path, title: str) -> None:
    """Loss, accuracy and learning rate by epoch, from ``metrics.jsonl`` to a PNG."""
    # matplotlib's object interface needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    draw_curves(figure.subplots(1, 2), metrics)
    figure.suptitle(title)
    figure.savefig(picture, dpi=110)


def draw_curves(axes: Any, metrics: Path) -> None:
    """Draw losses on the first of two axes, accuracy and learning rate on the second."""
    trained = read_metrics(metrics, "epoch")
    validated = read_metrics(metrics, "validation")
    losses, accuracy = axes
    losses.plot([r["epoch"] for r in trained], [r["loss"] for r in trained],
                marker=".", label="training")
    losses.plot([r["epoch"] for r in validated], [r["loss"] for r in validated],
                marker=".", label="validation")
    losses.set(xlabel="epoch", ylabel="cross entropy, nats")
    losses.grid(alpha=0.3)
    losses.legend()
    accuracy.plot([r["epoch"] for r in validated], [r["top1"] for r in validated],
                  marker=".", color="tab:green", label="validation top-1")
    accuracy.set(xlabel="epoch", ylabel="accuracy, %")
    accuracy.grid(alpha=0.3)
    rate = accuracy.twinx()
    rate.plot([r["epoch"] for r in trained], [r["lr"] for r in trained],
              color="tab:grey", linewidth=1, linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate at the epoch's end")
    rate.set_ylim(bottom=0)
    handles = accuracy.get_legend_handles_labels()[0] + rate.get_legend_handles_labels()[0]
    accuracy.legend(handles, [handle.get_label() for handle in handles], loc="center right")
