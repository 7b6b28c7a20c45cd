#!/usr/bin/env python
"""Train a ResNeSt on RecordIO files, alone or under Horovod."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gluon_resnest import command_line, runtime
from gluon_resnest.data.bad_records import DEFAULT_SHARE
from gluon_resnest.data.class_names import check_classes
from gluon_resnest.data.prefetch import DEFAULT_PATIENCE
from gluon_resnest.data.records import RecordFile
from gluon_resnest.data.sampling import SHARDINGS
from gluon_resnest.errors import InputError
from gluon_resnest.models import list_models
from gluon_resnest.training.ablation import RECIPES, find_recipe, published, recipe_table
from gluon_resnest.training.distributed import Workers, connect
from gluon_resnest.training.plan import plan
from gluon_resnest.training.recipe import IMAGENET_TRAIN_IMAGES, Recipe, recipe_of
from gluon_resnest.training.run_directory import default_run_directory
from gluon_resnest.training.trainer import RunOptions, Trainer

EXAMPLES = """
  python train_imagenet.py --model resnest50 --dry-run --world-size 64
  python train_imagenet.py --recipe resnet-d-50+mixup --dry-run
  python train_imagenet.py --model resnest14 --rec-train train.rec --rec-val val.rec
  horovodrun -np 64 -H host1:8,host2:8,... python train_imagenet.py --model resnest101 \\
      --rec-train train.rec --rec-val val.rec --save-dir runs/resnest101

Without further flags a model is trained by the paper's recipe for it, and the learning rate
follows the number of workers. Flags have the names that GluonCV's and Horovod's scripts use.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = command_line.parser(__doc__, EXAMPLES)
    parser.add_argument("--model", metavar="NAME",
                        help=f"one of {', '.join(list_models())}")
    parser.add_argument("--recipe", metavar="NAME",
                        help="instead of --model: a row of the paper's ablation study, one of "
                             f"{', '.join(RECIPES)}; 'list' shows what each is")
    parser.add_argument("--classes", type=command_line.positive, metavar="N",
                        help="number of classes (default: lines of the class list beside "
                             "--rec-train, or 1000)")

    data = parser.add_argument_group("data")
    data.add_argument("--rec-train", type=Path, metavar="FILE",
                      help="training images, made by scripts/pack_records.py or im2rec")
    data.add_argument("--rec-train-idx", type=Path, metavar="FILE",
                      help="its index (default: the .idx beside it)")
    data.add_argument("--rec-val", type=Path, metavar="FILE", help="validation images")
    data.add_argument("--rec-val-idx", type=Path, metavar="FILE",
                      help="its index (default: the .idx beside it)")
    data.add_argument("--use-rec", action="store_true", help=argparse.SUPPRESS)
    data.add_argument("--input-size", type=command_line.positive, dest="train_size", metavar="PX",
                      help="training crop (default: the recipe's)")
    data.add_argument("--test-size", type=command_line.positive, metavar="PX",
                      help="validation crop (default: --input-size if given, or the recipe's)")
    data.add_argument("--crop-ratio", type=command_line.ratio, metavar="R",
                      help="validation crop over the resized short side (recipe: 0.875)")

    data.add_argument("--sharding", choices=SHARDINGS,
                      help="fixed: a worker reads its own part of the data and never another; "
                           "global: each epoch is dealt anew to all, in an order that does not "
                           "depend on their number (recipe: fixed)")
    data.add_argument("--max-bad-records", type=command_line.share, metavar="SHARE",
                      default=DEFAULT_SHARE,
                      help="stop when more of the training records are bad; until then others "
                           "replace them and bad_records.jsonl lists them (default: %(default)s)")
    command_line.add_skip_flag(data)
    data.add_argument("--data-timeout", type=command_line.positive, metavar="SECONDS",
                      default=int(DEFAULT_PATIENCE),
                      help="stop when a thread has been at one image for longer, as on a disk that "
                           "hangs (default: %(default)s)")

    run = parser.add_argument_group("run")
    command_line.add_batch_flags(run, None, "images a worker and step (default: the recipe's)")
    command_line.add_thread_flag(run)
    run.add_argument("--num-epochs", "--epochs", type=int, dest="epochs", metavar="N",
                     help="epochs (recipe: 270)")
    run.add_argument("--seed", type=int, metavar="N", help="of everything random (recipe: 0)")
    run.add_argument("--dtype", choices=["float32"], default="float32", help=argparse.SUPPRESS)
    run.add_argument("--eval-frequency", type=command_line.not_negative, default=1, metavar="N",
                     help="validate every N epochs, 0 for none, and at the end (default: 1)")
    run.add_argument("--save-frequency", type=command_line.positive, default=1, metavar="N",
                     help="write last.params every N epochs and at the end (default: 1)")
    run.add_argument("--log-interval", type=command_line.positive, default=50, metavar="N",
                     help="write a line to metrics.jsonl every N steps (default: 50)")
    run.add_argument("--save-dir", type=Path, metavar="DIR",
                     help="run directory (default: runs/MODEL-DATE-TIME)")
    run.add_argument("--overwrite", action="store_true",
                     help="delete the run that --save-dir holds")
    run.add_argument("--use-pretrained", action="store_true",
                     help="start from the published ImageNet weights")
    run.add_argument("--params", type=Path, metavar="FILE", help="start from these weights")

    optimizer = parser.add_argument_group("optimizer")
    optimizer.add_argument("--base-lr", type=float, metavar="LR",
                           help="learning rate for 256 images; the peak is this times the global "
                                "batch / 256 (recipe: 0.1)")
    optimizer.add_argument("--lr", type=float, metavar="LR",
                           help="instead: learning rate a worker; the peak is this times the "
                                "number of workers, as in GluonCV's and Horovod's scripts")
    optimizer.add_argument("--lr-mode", choices=["cosine"], default="cosine",
                           help=argparse.SUPPRESS)
    optimizer.add_argument("--warmup-epochs", type=int, metavar="N",
                           help="epochs of linear warm-up (recipe: 5)")
    optimizer.add_argument("--warmup-lr", type=float, metavar="LR",
                           help="learning rate that the warm-up starts from (recipe: 0)")
    optimizer.add_argument("--momentum", type=float, metavar="M",
                           help="of Nesterov's accelerated gradient (recipe: 0.9)")
    optimizer.add_argument("--wd", type=float, metavar="W", help="weight decay (recipe: 1e-4)")
    optimizer.add_argument("--no-wd", action="store_false", dest="wd_all", default=None,
                           help="no decay of biases, gamma and beta (recipe: so)")
    optimizer.add_argument("--wd-all", action="store_true", dest="wd_all", default=None,
                           help="decay these too")

    regularization = parser.add_argument_group("regularization and augmentation")
    command_line.add_switch(regularization, "last-gamma", "last_gamma",
                            "start each block's last BN at gamma = 0 (recipe: so; --no-last-gamma)")
    regularization.add_argument("--label-smoothing", type=float, nargs="?", const=0.1,
                                metavar="EPS", help="epsilon, 0 for none (recipe: 0.1)")
    regularization.add_argument("--smoothing-rule", choices=["paper", "gluoncv"],
                                help="spread epsilon over the other K - 1 classes, or over all K "
                                     "(recipe: paper)")
    command_line.add_switch(regularization, "mixup", "mixup",
                            "mix each batch with its reverse (recipe: so; --no-mixup)")
    command_line.add_mixup_flags(regularization)
    regularization.add_argument("--mixup-off-epoch", type=int, metavar="N",
                                help="no mixup in the last N epochs (recipe: 0)")
    regularization.add_argument("--final-drop", type=float, metavar="P",
                                help="dropout before the classifier (recipe: 0.2 for 200 and 269)")
    regularization.add_argument("--dropblock-prob", type=float, metavar="P",
                                help="share that DropBlock drops in the last two stages at the "
                                     "end, rising from 0 (recipe: 0.1, but 0 for resnest14)")
    command_line.add_augmentation_flags(regularization)

    dry = parser.add_argument_group("plan")
    dry.add_argument("--dry-run", action="store_true",
                     help="print the resolved plan as JSON, without data or devices, and stop")
    dry.add_argument("--world-size", type=command_line.positive, metavar="N",
                     help="plan for N workers (with --dry-run)")
    dry.add_argument("--lr-at", metavar="STEP,STEP,...", default="0",
                     help="global steps whose learning rate the plan gives")
    return parser.parse_args(arguments)


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
            images, classes = len(records), len(records.class_names or ()) or classes
            check_classes(records, args.classes or classes)
    return images, args.classes or classes


def print_plan(args: argparse.Namespace) -> None:
    try:
        steps = [command_line.not_negative(step) for step in args.lr_at.split(",")]
    except argparse.ArgumentTypeError:
        raise InputError(f"--lr-at '{args.lr_at}' must be steps such as 0,100,200") from None
    images, classes = train_images_and_classes(args)
    recipe = resolve_recipe(args, classes)
    found = plan(recipe, images, args.world_size or runtime.launched_size(), steps)
    if runtime.launched_rank() == 0:
        print(json.dumps({**found, **published(recipe)}, indent=2))


def prepare_run(args: argparse.Namespace, workers: Workers) -> Trainer:
    if args.rec_train is None:
        raise InputError("--rec-train is missing: scripts/pack_records.py makes the file from a "
                         "folder of images (or look at the plan with --dry-run)")
    if args.world_size is not None:
        raise InputError("--world-size is for --dry-run; horovodrun -np sets it in a run")
    if args.use_pretrained and args.params:
        raise InputError("--use-pretrained and --params both give the first weights: choose one")
    recipe = resolve_recipe(args, train_images_and_classes(args)[1])
    options = RunOptions(
        rec_train=args.rec_train,
        rec_train_idx=args.rec_train_idx,
        rec_val=args.rec_val,
        rec_val_idx=args.rec_val_idx,
        save_dir=args.save_dir or default_run_directory(recipe.model),
        overwrite=args.overwrite,
        pretrained=args.params or args.use_pretrained,
        data_nthreads=args.data_nthreads,
        data_timeout=args.data_timeout,
        max_bad_records=args.max_bad_records,
        skip_bad_records=args.skip_bad_records,
        no_cuda=args.no_cuda,
        eval_frequency=args.eval_frequency,
        save_frequency=args.save_frequency,
        log_interval=args.log_interval,
    )
    return Trainer(recipe, options, workers)


def prepare(workers: Workers) -> Trainer | None:
    """What the command line asks for; None if it was a plan or a list, which is now printed."""
    args = parse_arguments()
    if args.recipe == "list":
        print(recipe_table())
    elif args.dry_run:
        print_plan(args)
    else:
        return prepare_run(args, workers)
    return None


def main() -> None:
    workers = connect()
    trainer = workers.together(lambda: prepare(workers))
    if trainer is not None:
        best = trainer.run()
        if workers.rank == 0:
            print(f"run directory: {trainer.options.save_dir}")
            if best is not None:
                print(f"best validation top-1: {best.top1:.2f} %")
    workers.close()


if __name__ == "__main__":
    command_line.run(main)
