"""The flags of train_imagenet.py, and the YAML files that may give them."""

from __future__ import annotations

import argparse

from gluon_resnest import command_line
from gluon_resnest.configuration import read_configuration
from gluon_resnest.data.loading.prefetch import DEFAULT_PATIENCE
from gluon_resnest.data.loading.sampling import SHARDINGS
from gluon_resnest.data.records.bad_records import DEFAULT_SHARE
from gluon_resnest.models import list_models
from gluon_resnest.tasks.classification.ablation import RECIPES
from gluon_resnest.training.non_finite import NAN_POLICIES
from gluon_resnest.training.options import RunOptions
from gluon_resnest.workers import DEFAULT_HANG_TIMEOUT

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
    _add_data(parser.add_argument_group("data"))
    _add_run(parser.add_argument_group("run"))
    _add_survival(parser.add_argument_group("checkpoints and faults"))
    _add_optimizer(parser.add_argument_group("optimizer"))
    _add_regularization(parser.add_argument_group("regularization and augmentation"))
    _add_distillation(parser.add_argument_group("distillation"))
    _add_plan(parser.add_argument_group("plan"))
    return parser


def _add_data(data) -> None:
    data.add_argument("--rec-train", type=command_line.path, metavar="FILE",
                      help="training images, made by scripts/pack_records.py or im2rec")
    data.add_argument("--rec-train-idx", type=command_line.path, metavar="FILE",
                      help="its index (default: the .idx beside it)")
    data.add_argument("--rec-val", type=command_line.path, metavar="FILE", help="validation images")
    data.add_argument("--rec-val-idx", type=command_line.path, metavar="FILE",
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


def _add_run(run) -> None:
    command_line.add_batch_flags(run, None, "images a worker and step (default: the recipe's)")
    command_line.add_thread_flag(run)
    run.add_argument("--num-epochs", "--epochs", type=int, dest="epochs", metavar="N",
                     help="epochs (recipe: 270)")
    run.add_argument("--steps", type=command_line.positive, metavar="N",
                     help="stop after N steps in all; the schedule stays that of --num-epochs")
    run.add_argument("--seed", type=int, metavar="N", help="of everything random (recipe: 0)")
    run.add_argument("--dtype", choices=["float32"], default="float32", help=argparse.SUPPRESS)
    run.add_argument("--eval-frequency", type=command_line.not_negative, default=1, metavar="N",
                     help="validate every N epochs, 0 for none, and at the end (default: 1)")
    run.add_argument("--save-frequency", type=command_line.positive, default=1, metavar="N",
                     help="write a checkpoint every N epochs, and whenever validation is due "
                          "(default: 1)")
    run.add_argument("--log-interval", type=command_line.positive, default=50, metavar="N",
                     help="write a line to metrics.jsonl and to a log every N steps (default: 50)")
    run.add_argument("--save-dir", type=command_line.path, metavar="DIR",
                     help="run directory (default: runs/MODEL-DATE-TIME)")
    run.add_argument("--tensorboard", action="store_true", default=None,
                     help="write TensorBoard events (default: if tensorboardX is installed; "
                          "--no-tensorboard)")
    run.add_argument("--no-tensorboard", action="store_false", dest="tensorboard", default=None,
                     help=argparse.SUPPRESS)
    run.add_argument("--overwrite", action="store_true",
                     help="delete the run that --save-dir holds")
    run.add_argument("--use-pretrained", action="store_true",
                     help="start from the published ImageNet weights")
    run.add_argument("--params", type=command_line.path, metavar="FILE",
                     help="start from these weights")


def _add_survival(group) -> None:
    group.add_argument("--resume", choices=["auto", "never"], default="auto",
                       help="auto: go on from the newest good checkpoint in --save-dir, exactly "
                            "where it stopped; never: refuse a folder with a run (default: auto)")
    group.add_argument("--override", action="store_true",
                       help="go on with settings that differ from the run's")
    group.add_argument("--keep", type=command_line.positive, default=RunOptions.keep, metavar="N",
                       help="checkpoints to keep (default: %(default)s)")
    group.add_argument("--checkpoint-minutes", type=command_line.not_negative_number,
                       default=RunOptions.checkpoint_minutes, metavar="M",
                       help="within an epoch, write one every M minutes, 0 for none "
                            "(default: %(default)g)")
    group.add_argument("--checkpoint-steps", type=command_line.not_negative, default=0,
                       metavar="N", help="and one every N steps, 0 for none (default: 0)")
    group.add_argument("--nan-policy", choices=NAN_POLICIES, default="abort",
                       help="when a loss is NaN or infinite: abort; skip the step (which looks "
                            "at the gradients too); or rollback to the weights of the last "
                            "checkpoint (default: abort)")
    group.add_argument("--hang-timeout", type=command_line.positive, metavar="SECONDS",
                       default=int(DEFAULT_HANG_TIMEOUT),
                       help="end a run in which no step has been finished for so long, or for "
                            "five times the slowest step (default: %(default)s)")


def _add_optimizer(optimizer) -> None:
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
    optimizer.add_argument("--accumulate", type=command_line.positive, metavar="N",
                           help="compute each batch in N parts, for batches that do not fit the "
                                "memory; learning rate and steps stay (recipe: 1)")
    optimizer.add_argument("--clip-norm", type=float, metavar="C",
                           help="scale gradients of the global batch down to this norm, 0 for "
                                "none (recipe: 0)")
    optimizer.add_argument("--fp16-allreduce", action="store_true", default=None,
                           help="send gradients as float16 numbers: half the bytes")
    optimizer.add_argument("--amp", action="store_true", default=None,
                           help="compute in float16 where that is safe (GPUs only)")


def _add_regularization(regularization) -> None:
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
    regularization.add_argument("--ema", type=float, nargs="?", const=0.9999, metavar="DECAY",
                                help="average the weights too, and evaluate both (recipe: 0, none; "
                                     "--ema alone is 0.9999)")
    command_line.add_augmentation_flags(regularization)


def _add_distillation(group) -> None:
    group.add_argument("--teacher", metavar="NAME",
                       help="learn from this model's answers too (recipe: none)")
    group.add_argument("--teacher-params", type=_path_text, metavar="FILE",
                       help="its weights (default: the published ones)")
    group.add_argument("--temperature", type=float, metavar="T",
                       help="softens its answers (recipe: 20)")
    group.add_argument("--hard-weight", type=float, metavar="W",
                       help="share of the labels in the loss, 0 to 1 (recipe: 0.5)")


def _path_text(text: str) -> str:
    """Argument type: a path as it was given, which a recipe holds as text."""
    command_line.path(text)
    return text


def _add_plan(dry) -> None:
    dry.add_argument("--dry-run", action="store_true",
                     help="print the resolved plan as JSON, proven by a simulation of all workers, "
                          "without data or devices, and stop")
    dry.add_argument("--world-size", type=command_line.positive, metavar="N",
                     help="plan for N workers (with --dry-run)")
    dry.add_argument("--lr-at", metavar="STEP,STEP,...", default="0",
                     help="global steps whose learning rate the plan gives")
