"""Pictures of runs: the learning curve that each run keeps up, and several runs side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gluon_resnest.drawing.curves import (
    FEW_POINTS,
    MetricsEvent,
    colours_of,
    draw_line,
    label_whole_epochs,
    line_of,
    means_by_epoch,
    readable,
)
from gluon_resnest.drawing.figure import LINE_COLOURS, LINE_GREY, new_figure, save
from gluon_resnest.errors import InputError
from gluon_resnest.runs.history import RunHistory, history_of, run_labels

_FEW_EPOCHS = 10  # up to here the steps are shown too
_WIDTH, _DPI = 12.0, 110  # inches, and pixels in one
_DASHES = ((0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (1, 4)), (0, (3, 1, 1, 1, 1, 1)))


# ---- the picture that training draws ----


def draw_learning_curve(metrics: Path, picture: Path, title: str) -> None:
    """Loss, accuracy and learning rate by epoch, from ``metrics.jsonl`` to a PNG.

    A run must not end for its picture: what goes wrong is said on stderr.
    """
    figure = new_figure(9, 4.2)
    try:
        draw_curves(figure.subplots(1, 2), metrics)
        figure.suptitle(readable(title))
        save(figure, picture, _DPI, margin=0.1)
    except InputError as error:
        tqdm.write(f"warning: no learning curve: {error}", file=sys.stderr)


def draw_curves(axes: Any, metrics: Path) -> None:
    """Draw losses on the first of two axes, accuracy and learning rate on the second.

    Raises
    ------
    InputError
        ``metrics.jsonl`` cannot be read, or a line of it is damaged.
    """
    run = history_of(metrics)
    losses, accuracy = axes
    rate = accuracy.twinx()
    few = len(run.epochs) <= _FEW_EPOCHS
    if few:
        draw_line(losses, line_of(run.steps, "loss"), LINE_COLOURS[0], markers=False, linewidth=0.7,
                  alpha=0.45)
    draw_line(losses, line_of(run.epochs, "loss"), LINE_COLOURS[0], label="training")
    draw_line(losses, line_of(run.validations, "loss"), LINE_COLOURS[1], label="validation")
    draw_line(accuracy, line_of(run.validations, "top1"), LINE_COLOURS[2], label="validation top-1")
    draw_line(accuracy, line_of(run.validations_ema, "top1"), LINE_COLOURS[2], linestyle="--",
              label="of averaged weights")
    draw_line(rate, line_of(run.steps if few and run.steps else run.epochs, "lr"), LINE_GREY,
              markers=False, linewidth=1, linestyle=":", label="learning rate")
    losses.set(ylabel="cross entropy, nats")
    accuracy.set(ylabel="accuracy, %")
    if not accuracy.lines:
        accuracy.set(ylabel="", yticks=[])
    rate.set(ylabel="learning rate")
    rate.set_ylim(bottom=0)
    for panel in (losses, accuracy):
        panel.set(xlabel="epoch")
        panel.set_xlim(0, max(1.02 * run.epochs_done, 0.01))
        panel.grid(alpha=0.3)
        label_whole_epochs(panel)
    for panels in ((losses,), (accuracy, rate)):
        lines = [line for panel in panels for line in panel.get_legend_handles_labels()[0]]
        if lines:  # above the panel: within it there are lines everywhere
            panels[0].legend(lines, [line.get_label() for line in lines], ncol=3, frameon=False,
                             loc="lower center", bbox_to_anchor=(0.5, 0.99), fontsize=8.5,
                             columnspacing=1.2, handlelength=2.6)


# ---- one or several runs ----


def draw_runs(runs: Sequence[RunHistory], picture: Path, title: str | None = None,
              reference: float | None = None, smooth: bool = False) -> None:
    """Loss, accuracy, learning rate, speed and waiting of runs, each in a colour of its own.

    Parameters
    ----------
    runs
        From :func:`~.history.read_history`.
    picture
        File to write: .png, .pdf or .svg.
    title
        None for: what the run is, if it is one.
    reference
        Accuracy, %, to draw a line at; None for that which was published for each run's recipe.
    smooth
        Draw moving means over a twentieth of a curve, and the curve itself faintly.

    Raises
    ------
    InputError
        The picture cannot be written.
    """
    from matplotlib.lines import Line2D

    colours = colours_of(len(runs))
    # A legend leaves out what begins with an underscore.
    labels = [readable(f"./{label}" if label.startswith("_") else label)
              for label in run_labels([run.folder for run in runs])]
    columns = max(1, min(len(runs), int(_WIDTH / (0.08 * max(map(len, labels)) + 0.7))))
    rows = -(-len(runs) // columns) if len(runs) > 1 else 0
    figure = new_figure(_WIDTH, 7.4 + 0.24 * rows)
    grid = figure.add_gridspec(3, 6, height_ratios=(max(0.24 * rows, 0.01), 4, 3))
    legend = figure.add_subplot(grid[0, :])
    legend.axis("off")
    if rows:
        legend.legend([Line2D([], [], color=colour, linewidth=3) for colour in colours], labels,
                      loc="center", ncol=columns, frameon=False, fontsize=9, borderpad=0)
    figure.suptitle(readable(title) if title else _description(runs, labels))
    panels = [figure.add_subplot(grid[where]) for where in (
        (1, slice(0, 3)), (1, slice(3, 6)), (2, slice(0, 2)), (2, slice(2, 4)), (2, slice(4, 6)))]
    _draw_loss(panels[0], runs, colours, smooth)
    _draw_top1(panels[1], runs, colours, smooth, reference)
    _draw_rate(panels[2], runs, colours)
    _draw_speed(panels[3], runs, colours, smooth)
    _draw_shares(panels[4], runs, colours, smooth)
    for panel in panels:
        _finish(panel, runs, says_breaks=panel is panels[0])
    save(figure, picture, _DPI, margin=0.1)


def _draw_loss(axes: Any, runs: Sequence[RunHistory], colours: Sequence[Any],
               smooth: bool) -> None:
    alone = len(runs) == 1
    for run, colour in zip(runs, colours):
        steps = line_of(run.steps, "loss")
        if not run.epochs:
            draw_line(axes, steps, colour, smooth, label="training, by step" if alone else None)
            continue
        if len(run.epochs) <= _FEW_EPOCHS:
            draw_line(axes, steps, colour, markers=False, linewidth=0.7, alpha=0.45,
                      label="training, by step" if alone else None)
        draw_line(axes, line_of(run.epochs, "loss"), colour, smooth,
                  label="training, mean of the epoch" if alone else None)
        if alone:
            draw_line(axes, line_of(run.validations, "loss"), LINE_COLOURS[1], smooth,
                      label="validation")
    axes.set(title="training loss" if not alone else "loss", ylabel="cross entropy, nats")
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [[]])
    drawn = drawn[np.isfinite(drawn)]
    # One step out of hand must not press all others onto the axis.
    if drawn.size and drawn.max() > 3 * np.percentile(drawn, 95):
        axes.set_ylim(top=2 * np.percentile(drawn, 95))


def _draw_top1(axes: Any, runs: Sequence[RunHistory], colours: Sequence[Any], smooth: bool,
               reference: float | None) -> None:
    values, average = [], any(run.validations_ema for run in runs)
    for run, colour in zip(runs, colours):
        for records, style in ((run.validations, "-"), (run.validations_ema, "--")):
            line = line_of(records, "top1")
            values += [value for value in line[1] if np.isfinite(value)]
            draw_line(axes, line, colour, smooth, linestyle=style)
    if average:
        axes.plot([], [], color=LINE_GREY, label="weights")
        axes.plot([], [], color=LINE_GREY, linestyle="--", label="averaged weights (EMA)")
    for text, top1, colour, style in _references(runs, colours, reference):
        axes.axhline(top1, color=colour, linewidth=1.2, linestyle=style, label=text, zorder=1)
        values.append(top1)
    if len(values) > FEW_POINTS:
        # The end of a long run is what is looked at; its first epochs come in from below.
        low = float(np.percentile(values, 8))
        axes.set_ylim(low - 0.06 * (max(values) - low), max(values) + 0.05 * (max(values) - low))
    axes.set(title="validation top-1", ylabel="accuracy, %")


def _references(
    runs: Sequence[RunHistory], colours: Sequence[Any], given: float | None
) -> list[tuple[str, float, Any, Any]]:
    """Name, value, colour and style of the lines to compare with, one for each recipe.

    A line has the colour of its run, unless it is of several or there is but one.
    """
    if given is not None:
        return [(f"reference: {given:.2f} %", given, LINE_GREY, _DASHES[0])]
    owners: dict[tuple[str, str, float], list[Any]] = {}
    for run, colour in zip(runs, colours):
        if run.reference is not None:
            key = (run.reference.model, run.reference.source, run.reference.top1)
            owners.setdefault(key, []).append(colour)
    lines = []
    for number, ((model, source, top1), of) in enumerate(owners.items()):
        origin = "paper" if source.startswith("paper") else source.replace("published ", "")
        text = f"{model}, {origin}" if len(owners) > 1 else origin
        alone = len(of) == 1 and len(runs) > 1
        lines.append((readable(f"{text}: {top1:.2f} %"), top1, of[0] if alone else LINE_GREY,
                      _DASHES[number % len(_DASHES)]))
    return lines


def _draw_rate(axes: Any, runs: Sequence[RunHistory], colours: Sequence[Any]) -> None:
    for number, (run, colour) in enumerate(zip(runs, colours)):
        line = line_of(run.steps, "lr") if run.steps else line_of(run.epochs, "lr")
        # Runs often have one schedule: each line lets those below it be seen.
        draw_line(axes, line, colour, markers=False,
                  linewidth=1.3 + 3 * (len(runs) - 1 - number) / max(len(runs), 2))
    axes.set(title="learning rate")
    axes.set_ylim(bottom=0)


def _draw_speed(axes: Any, runs: Sequence[RunHistory], colours: Sequence[Any],
                smooth: bool) -> None:
    for run, colour in zip(runs, colours):
        draw_line(axes, line_of(_timed(run), "images_per_second"), colour, smooth)
    axes.set(title="images per second, all workers")
    axes.set_ylim(bottom=0)


def _draw_shares(axes: Any, runs: Sequence[RunHistory], colours: Sequence[Any],
                 smooth: bool) -> None:
    for run, colour in zip(runs, colours):
        timed = _timed(run)
        whole = "seconds" if timed is run.epochs else "step_seconds"
        draw_line(axes, _share_of(timed, "data_seconds", whole), colour, smooth)
        exchange = _share_of(run.steps, "allreduce_seconds", "step_seconds")
        if len(run.epochs) > _FEW_EPOCHS:
            exchange = means_by_epoch(exchange)
        draw_line(axes, exchange, colour, smooth, linestyle=":")
    if any(record.get("allreduce_seconds") is not None for run in runs for record in run.steps):
        axes.plot([], [], color=LINE_GREY, label="waiting for data")
        axes.plot([], [], color=LINE_GREY, linestyle=":", label="all-reduce")
        axes.set(title="share of the time")
    else:
        axes.set(title="share of the time spent waiting for data")
    axes.set(ylabel="%")
    top = np.nanmax([0, *(value for line in axes.lines for value in line.get_ydata())])
    axes.set_ylim(0, max(5, 1.3 * top))  # room for the legend


def _timed(run: RunHistory) -> list[MetricsEvent]:
    """The events that tell of a run's speed: its epochs if there are some, else its steps."""
    return run.epochs if len(run.epochs) > _FEW_EPOCHS or not run.steps else run.steps


def _share_of(records: Sequence[MetricsEvent], part: str, whole: str) -> Any:
    """Line of one time as a share of another, %."""
    return line_of(records, lambda record: 100 * record[part] / record[whole]
                   if record.get(part) is not None and record.get(whole) else None)


def _finish(axes: Any, runs: Sequence[RunHistory], says_breaks: bool) -> None:
    """What all panels have."""
    if not axes.lines:
        axes.text(0.5, 0.5, "none in this run" if len(runs) == 1 else "none in these runs",
                  transform=axes.transAxes, ha="center", va="center", color=LINE_GREY)
        axes.set(yticks=[])
    said = set() if says_breaks else {what for _, what in runs[0].breaks}
    for epoch, what in runs[0].breaks if len(runs) == 1 else []:
        axes.axvline(epoch, color="#999999", linewidth=0.9, zorder=0,
                     linestyle=(0, (2, 2)) if what == "resumed" else (0, (6, 2)),
                     label=None if what in said else what)
        said.add(what)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, framealpha=0.85)
    end = max(run.epochs_done for run in runs) or 1
    axes.set_xlim(-0.02 * end, 1.02 * end)
    axes.set(xlabel="epoch")
    axes.title.set_fontsize(10.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    label_whole_epochs(axes)


def _description(runs: Sequence[RunHistory], labels: Sequence[str]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs"
    start = runs[0].start
    parts = [str(start["model"])] if start.get("model") else []
    for key, one, many in (("workers", "worker", "workers"), ("global_batch", "image a step",
                                                              "images a step")):
        if start.get(key) is not None:
            parts.append(f"{start[key]} {one if start[key] == 1 else many}")
    return "\n".join([labels[0], *([readable(", ".join(parts))] if parts else [])])
