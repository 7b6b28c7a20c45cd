"""The flags of train_imagenet.py, and the YAML files that may give them."""

from __future__ import annotations

import argparse

from gluon_resnest import command_line
from gluon_resnest.configuration import read_configuration
from gluon_resnest.models import list_models
from gluon_resnest.settings import add_settings
from gluon_resnest.tasks.classification.ablation import RECIPES
from gluon_resnest.tasks.classification.recipe import Recipe
from gluon_resnest.tasks.classification.task import Source
from gluon_resnest.training.options import RunOptions

EXAMPLES = """
  python train_imagenet.py --model resnest50 --dry-run --world-size 64
  python train_imagenet.py --recipe resnet-d-50+mixup --dry-run
  python train_imagenet.py --model resnest14 --rec-train train.rec --rec-val val.rec
  horovodrun -np 64 -H host1:8,host2:8,... python train_imagenet.py --model resnest101 \\
      --rec-train train.rec --rec-val val.rec --save-dir runs/resnest101

Without further flags a model is trained by the paper's recipe for it, and the learning rate
follows the number of workers. Flags have the names that GluonCV's and Horovod's scripts use.
"""


def parse_arguments(
    arguments: list[str] | None = None, description: str | None = None
) -> argparse.Namespace:
    """The command line, with a file given by `-c` as defaults below it."""
    parser = _parser(description)
    args = parser.parse_args(arguments)
    if args.config is not None:
        values = read_configuration(args.config, parser)
        # What the command line sets another way, the file has no say in.
        if args.lr is not None or args.base_lr is not None:
            values.pop("lr", None)
            values.pop("base_lr", None)
        if args.mixup is not None and not values.get("mixup_alpha"):
            values.pop("mixup_alpha", None)
        if args.mixup_alpha is not None:
            values.pop("mixup", None)
        parser.set_defaults(**values)
        args = parser.parse_args(arguments)
    return args


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = command_line.parser(description, EXAMPLES)
    parser.add_argument("--model", metavar="NAME",
                        help=f"one of {', '.join(list_models())}")
    parser.add_argument("--recipe", metavar="NAME",
                        help="instead of --model: a row of the paper's ablation study, one of "
                             f"{', '.join(RECIPES)}; 'list' shows what each is")
    parser.add_argument("--classes", type=command_line.positive, metavar="N",
                        help="number of classes (default: lines of the class list beside "
                             "--rec-train, or 1000)")

    parser.add_argument("-c", "--config", type=command_line.path, metavar="FILE",
                        help="YAML file of flags by their names (lr: 0.05), or a run's "
                             "config.yaml; flags on the command line go before it")
    for name, title in _GROUPS.items():
        group = parser.add_argument_group(title)
        add_settings(group, Source, group=name)
        add_settings(group, Recipe, group=name, defaults=False)  # the model's row has them
        add_settings(group, RunOptions, group=name)
        if name == "run":
            _add_first_weights(group)
        elif name == "regularization":
            command_line.add_switch(group, "mixup", "mixup",
                                    "mix each batch with its reverse (recipe: so; --no-mixup)")
    _add_plan(parser.add_argument_group("plan"))
    _add_names_of_other_scripts(parser)
    return parser


_GROUPS = {"data": "data", "run": "run", "survival": "checkpoints and faults",
           "optimizer": "optimizer", "regularization": "regularization and augmentation",
           "distillation": "distillation"}


def _add_first_weights(group) -> None:
    group.add_argument("--use-pretrained", action="store_true",
                       help="start from the published ImageNet weights")
    group.add_argument("--params", type=command_line.path, metavar="FILE",
                       help="start from these weights")


def _add_names_of_other_scripts(parser: argparse.ArgumentParser) -> None:
    """Flags of GluonCV's script that have one value here."""
    parser.add_argument("--use-rec", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=["float32"], default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--lr-mode", choices=["cosine"], default="cosine", help=argparse.SUPPRESS)


def _add_plan(dry) -> None:
    dry.add_argument("--dry-run", action="store_true",
                     help="print the resolved plan as JSON, proven by a simulation of all workers, "
                          "without data or devices, and stop")
    dry.add_argument("--world-size", type=command_line.positive, metavar="N",
                     help="plan for N workers (with --dry-run)")
    dry.add_argument("--lr-at", metavar="STEP,STEP,...", default="0",
                     help="global steps whose learning rate the plan gives")
