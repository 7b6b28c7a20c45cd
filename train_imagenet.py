#!/usr/bin/env python
"""Train a ResNeSt on RecordIO files, alone or under Horovod."""

from __future__ import annotations

import signal

if __name__ == "__main__":  # before the imports, which take seconds
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # there is nothing to save yet
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once, and without a traceback

import argparse
import json
import sys
from dataclasses import fields
from typing import Any, NamedTuple

from gluon_resnest import command_line, runtime
from gluon_resnest.data.class_names import check_classes, check_several_classes
from gluon_resnest.data.records.record_file import RecordFile
from gluon_resnest.drawing.run_plots import draw_learning_curve
from gluon_resnest.errors import InputError
from gluon_resnest.runs.run_directory import default_run_directory
from gluon_resnest.tasks.classification.ablation import find_recipe, published, recipe_table
from gluon_resnest.tasks.classification.flags import parse_arguments
from gluon_resnest.tasks.classification.planning import plan
from gluon_resnest.tasks.classification.recipe import IMAGENET_TRAIN_IMAGES, Recipe, recipe_of
from gluon_resnest.tasks.classification.task import ClassificationTask, Source
from gluon_resnest.training.options import RunOptions
from gluon_resnest.training.run import Outcome, train
from gluon_resnest.training.signals import Stopped, ignore_early_wishes
from gluon_resnest.workers import Abandoned, Workers, connect

MOST_PLANNED = 65_536  # workers; each is simulated


class Run(NamedTuple):
    """What the command line asks for, ready to be trained."""

    task: ClassificationTask
    options: RunOptions


def resolve_recipe(args: argparse.Namespace, classes: int) -> Recipe:
    """The recipe of --model or --recipe with the flags that were given."""
    if args.lr is not None and args.base_lr is not None:
        raise InputError("--lr and --base-lr both set the peak learning rate: give one of them")
    flags = {name: value for name, value in vars(args).items()
             if name in Recipe.__dataclass_fields__ and name not in ("model", "recipe", "classes")}
    if args.mixup is False:
        flags["mixup_alpha"] = 0.0
    elif args.mixup and args.mixup_alpha is None:  # a --recipe may have none
        flags["mixup_alpha"] = Recipe.mixup_alpha
    if args.recipe is None:
        if args.model is None:
            raise InputError("--model is missing (or --recipe): --help lists the names")
        return recipe_of(args.model, classes=classes, **flags)
    row = find_recipe(args.recipe)
    if args.model not in (None, row.model):
        raise InputError(f"--recipe {row.name} trains {row.model}: leave --model {args.model} out")
    return row.resolve(classes=classes, **flags)


def train_images_and_classes(args: argparse.Namespace) -> tuple[int, int]:
    """Of the records, if there are any, or ImageNet's; --classes overrides."""
    images, classes = IMAGENET_TRAIN_IMAGES, 1000
    if args.rec_train is not None:
        with RecordFile(args.rec_train, args.rec_train_idx) as records:
            check_several_classes(records)
            images, classes = len(records), len(records.class_names or ()) or classes
            check_classes(records, args.classes or classes)
    return images, args.classes or classes


def print_plan(args: argparse.Namespace) -> None:
    try:
        steps = [command_line.not_negative(step) for step in args.lr_at.split(",")]
    except argparse.ArgumentTypeError:
        raise InputError(f"--lr-at '{args.lr_at}' must be steps such as 0,100,200") from None
    if args.world_size is not None and args.world_size > MOST_PLANNED:
        raise InputError(f"--world-size {args.world_size} is too large: at most {MOST_PLANNED:,}")
    images, classes = train_images_and_classes(args)
    recipe = resolve_recipe(args, classes)
    speaks = runtime.launched_rank() == 0
    found = plan(recipe, images, args.world_size or runtime.launched_size(), steps, prove=speaks,
                 record_bytes=args.rec_train and args.rec_train.stat().st_size, progress=speaks)
    if speaks:
        print(json.dumps({**found, **published(recipe)}, indent=2))


def prepare_run(args: argparse.Namespace, workers: Workers) -> Run:
    if args.rec_train is None:
        raise InputError("--rec-train is missing: scripts/pack_records.py makes the file from a "
                         "folder of images (or look at the plan with --dry-run)")
    if args.world_size is not None:
        raise InputError("--world-size is for --dry-run; horovodrun -np sets it in a run")
    if args.use_pretrained and args.params:
        raise InputError("--use-pretrained and --params both give the first weights: choose one")
    recipe = resolve_recipe(args, train_images_and_classes(args)[1])
    source = Source(**{**_given(args, Source), "pretrained": args.params or args.use_pretrained})
    options = RunOptions(**{**_given(args, RunOptions),
                            "save_dir": args.save_dir or default_run_directory(recipe.model)})
    return Run(ClassificationTask(recipe, source, workers), options)


def _given(args: argparse.Namespace, fields_of: type) -> dict[str, Any]:
    """Values of the flags that are fields of a dataclass."""
    return {field.name: getattr(args, field.name) for field in fields(fields_of)
            if hasattr(args, field.name)}


def prepare(args: argparse.Namespace | InputError, workers: Workers) -> Run | None:
    """What the command line asks for; None if it was a plan or a list, which is now printed."""
    if isinstance(args, InputError):
        raise args
    if args.recipe == "list":
        print(recipe_table())
    elif args.dry_run:
        print_plan(args)
    else:
        return prepare_run(args, workers)
    return None


def main() -> None:
    ignore_early_wishes()
    try:
        args = parse_arguments(description=__doc__)
        workers = connect(args.hang_timeout)
    except InputError as error:  # of this worker, perhaps: all end together
        args, workers = error, connect()
    try:
        carry_out(args, workers)
    except Exception as error:
        if not workers.was_abandoned(error):
            raise
        raise Abandoned("another worker stopped: its own line says why") from None


def carry_out(args: argparse.Namespace | InputError, workers: Workers) -> None:
    """Do what the command line asks for, with all workers."""
    run = workers.together(lambda: prepare(args, workers))
    stopped = None
    if run is not None:
        try:
            text = in_words(train(run.task, run.options, workers, draw_learning_curve))
        except Stopped as stop:
            stopped, text = stop, str(stop)
        if workers.rank == 0:
            print(text, flush=True)
    if stopped is None or stopped.together:
        workers.close()
    if stopped:
        sys.exit(128 + stopped.number)


def in_words(outcome: Outcome) -> str:
    lines = [f"run directory: {outcome.save_dir}"]
    if outcome.best is not None:
        lines.append(f"best validation top-1: {outcome.best['top1']:.2f} %")
    if outcome.best_ema is not None:
        lines.append(f"best of the moving average: {outcome.best_ema['top1']:.2f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main, output_needed=False)
