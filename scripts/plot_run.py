#!/usr/bin/env python
"""Draw the course of a run, or of several beside each other, and print their figures.

Loss, validation accuracy (and that of the averaged weights), learning rate, images per second, and
the share of the time that went into waiting for data and into all-reduce. Where a run is of
ImageNet's 1000 classes, a line shows the accuracy that was published for its recipe.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from gluon_resnest import command_line
from gluon_resnest.drawing.run_plots import draw_runs
from gluon_resnest.errors import InputError
from gluon_resnest.runs.history import RunHistory, run_labels
from gluon_resnest.tasks.classification.history import read_run

EXAMPLES = """
  python scripts/plot_run.py runs/resnest50-20261123-101500
  python scripts/plot_run.py runs/* -o comparison.pdf --smooth --title "radix 1, 2 and 4"
  python scripts/plot_run.py demo/run --reference 95.5
"""
KINDS = (".png", ".pdf", ".svg")


def percent(text: str) -> float:
    """Argument type: a number from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number of per cent, 0 to 100")
    return value


def runs_table(runs: list[RunHistory]) -> str:
    """The runs' figures, a line each; columns that no run has a figure for are left out."""
    rows = [("run", "epochs", "best top-1, %", "at epoch", "best EMA top-1, %", "last loss",
             "images/s")]
    for label, run in zip(run_labels([run.folder for run in runs]), runs):
        done = f"{run.epochs_done:.2f}".rstrip("0").rstrip(".")
        planned = run.start.get("epochs")
        best, average = run.best(), run.best(average=True)
        rows.append((label, f"{done} of {planned}" if planned else done,
                     f"{best[0]:.2f}" if best else "-", f"{best[1]:g}" if best else "-",
                     f"{average[0]:.2f}" if average else "",
                     "-" if run.last_loss is None else f"{run.last_loss:.4f}",
                     "-" if run.images_per_second is None else f"{run.images_per_second:,.1f}"))
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(width) if number == 0 else cell.rjust(width)
                  for number, (cell, width) in enumerate(zip(row, widths)))
        for row in zip(*columns))


def notes(runs: list[RunHistory]) -> list[str]:
    """What the published figures are of, where a run has settings of its own."""
    lines = []
    for label, run in zip(run_labels([run.folder for run in runs]), runs):
        if run.reference is not None and run.reference.overridden:
            lines.append(f"{label}: the {run.reference.top1:.2f} % of {run.reference.source} are "
                         f"of a run with other {', '.join(run.reference.overridden)}")
    return lines


def main() -> None:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("runs", type=command_line.path, nargs="+", metavar="RUN",
                        help="run directory: --save-dir of train_imagenet.py")
    parser.add_argument("-o", "--output", type=command_line.path, metavar="FILE",
                        help=f"picture to write, {', '.join(KINDS)} "
                             "(default: RUN/run.png, or runs.png for several)")
    parser.add_argument("--reference", type=percent, metavar="PCT",
                        help="accuracy to draw a line at (default: what was published, for runs "
                             "of 1000 classes)")
    parser.add_argument("--title", metavar="T", help="title (default: what the run is)")
    parser.add_argument("--smooth", action="store_true",
                        help="moving means over a twentieth of each curve, itself faintly")
    args = parser.parse_args()

    if args.output is not None and args.output.suffix.lower() not in KINDS:
        raise InputError(f"-o {args.output} must end in {', '.join(KINDS)}")
    folders = list({folder.resolve(): folder for folder in args.runs}.values())
    runs = [read_run(folder) for folder in folders]
    output = args.output or (folders[0] / "run.png" if len(runs) == 1 else Path("runs.png"))
    draw_runs(runs, output, args.title, args.reference, args.smooth)
    print(output)
    print(runs_table(runs))
    for line in notes(runs) if args.reference is None else []:
        print(line)


if __name__ == "__main__":
    command_line.run(main)
