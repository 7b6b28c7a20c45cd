"""What determines the result of a run: the paper's recipe as data, one row of defaults a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from gluon_resnest import command_line
from gluon_resnest.data.loading.sampling import SHARDINGS, steps_per_epoch
from gluon_resnest.errors import InputError
from gluon_resnest.models import Variant, check_input_size, find_variant
from gluon_resnest.settings import check_bounds, setting
from gluon_resnest.training.options import TrainingRecipe
from gluon_resnest.training.schedules import Schedule, linear_scaling_rule

IMAGENET_TRAIN_IMAGES = 1_281_167

# Far above anything useful, and low enough that nothing overflows or takes for ever.
_MOST = 1_000_000
_MOST_ELEMENTS = 2**31 - 1  # of an array, in MXNet's wheels


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    """Everything that a run's result depends on, but for its data and its number of workers.

    The defaults are the paper's ("Training Strategy" and "Image Classification Results"); those
    that differ by model come from its row of the table of variants, by :func:`recipe_of`.

    Attributes
    ----------
    recipe
        Row of the paper's ablation study that it started from (:mod:`.ablation`).
    base_lr, lr
        Learning rate for 256 images; the peak follows by the linear scaling rule. Or, in its
        place, the learning rate a worker, as GluonCV's and Horovod's scripts have it.
    wd, wd_all
        Weight decay, of convolution and dense weights only unless `wd_all`.
    last_gamma
        Start the last batch normalisation of each block at gamma = 0.
    smoothing_rule
        ``"paper"`` spreads epsilon over the other K - 1 classes, ``"gluoncv"`` over all K.
    mixup_alpha, mixup_lambda
        Beta(alpha, alpha) of mixup, 0 for none; lambda drawn for each ``"sample"`` (paper) or each
        ``"batch"`` (GluonCV's script).
    sharding
        ``"fixed"`` (paper): a worker reads its own even part of the data and never another;
        ``"global"``: each epoch's order is dealt anew to all workers.
    teacher, teacher_params
        Model to learn from beside the labels, and its weights (None: the published ones).
    """

    model: str = ""
    recipe: str | None = None
    classes: int = setting(1000, least=2, most=_MOST)
    train_size: int = setting(
        224, "training crop (default: the recipe's)", group="data", flags=("--input-size",),
        metavar="PX", type=command_line.positive)
    test_size: int = setting(
        224, "validation crop (default: --input-size if given, or the recipe's)", group="data",
        metavar="PX", type=command_line.positive)
    crop_ratio: float = setting(
        0.875, "validation crop over the resized short side (recipe: 0.875)", group="data",
        metavar="R", type=command_line.ratio)
    base_lr: float = setting(
        0.1, "learning rate for 256 images; the peak is this times the global batch / 256 "
             "(recipe: 0.1)", group="optimizer", metavar="LR", least=0, most=1e30)
    lr: float | None = setting(
        None, "instead: learning rate a worker; the peak is this times the number of workers, as "
              "in GluonCV's and Horovod's scripts", group="optimizer", metavar="LR", least=0,
        most=1e30)
    warmup_epochs: int = setting(
        5, "epochs of linear warm-up (recipe: 5)", group="optimizer", metavar="N", least=0,
        most=_MOST)
    warmup_lr: float = setting(
        0.0, "learning rate that the warm-up starts from (recipe: 0)", group="optimizer",
        metavar="LR", least=0, most=1e30)
    momentum: float = setting(
        0.9, "of Nesterov's accelerated gradient (recipe: 0.9)", group="optimizer", metavar="M",
        least=0, below=1)
    wd: float = setting(
        1e-4, "weight decay (recipe: 1e-4)", group="optimizer", metavar="W", least=0, most=1e6)
    wd_all: bool = setting(
        False, "decay biases, gamma and beta too", group="optimizer",
        off=("--no-wd", "no decay of biases, gamma and beta (recipe: so)"))
    last_gamma: bool = setting(
        True, "start each block's last BN at gamma = 0 (recipe: so; --no-last-gamma)",
        group="regularization", off="--no-last-gamma")
    label_smoothing: float = setting(
        0.1, "epsilon, 0 for none (recipe: 0.1)", group="regularization", metavar="EPS", const=0.1,
        least=0, below=1)
    smoothing_rule: str = setting(
        "paper", "spread epsilon over the other K - 1 classes, or over all K (recipe: paper)",
        group="regularization", choices=("paper", "gluoncv"))
    mixup_alpha: float = setting(
        0.2, "lambda is drawn from Beta(A, A) (recipe: 0.2)", group="regularization", metavar="A",
        least=0, most=1e6)
    mixup_lambda: str = setting(
        "sample", "one lambda a sample, or one a batch (recipe: sample)", group="regularization",
        choices=("sample", "batch"))
    mixup_off_epoch: int = setting(
        0, "no mixup in the last N epochs (recipe: 0)", group="regularization", metavar="N",
        least=0, most=_MOST)
    final_drop: float = setting(
        0.0, "dropout before the classifier (recipe: 0.2 for 200 and 269)",
        group="regularization", metavar="P", least=0, below=1)
    dropblock_prob: float = setting(
        0.0, "share that DropBlock drops in the last two stages at the end, rising from 0 "
             "(recipe: 0.1, but 0 for resnest14)", group="regularization", metavar="P", least=0,
        below=1)
    auto_aug: bool = setting(
        True, "AutoAugment's ImageNet policy (recipe: so; --no-auto-aug)", group="regularization",
        flags=("--auto-aug", "--auto_aug"), off="--no-auto-aug")
    crop_area: float | None = setting(
        None, "smallest share of the image that a training crop takes (recipe: 0.08, and 0.1 from "
              "320 pixels on)", group="regularization", metavar="SHARE", type=command_line.ratio)
    color_jitter: float = setting(
        0.4, "brightness, contrast and saturation (recipe: 0.4)", group="regularization",
        metavar="S", least=0, most=1e3)
    lighting: float = setting(
        0.1, "standard deviation of the PCA lighting (recipe: 0.1)", group="regularization",
        metavar="S", least=0, most=1e3)
    sharding: str = setting(
        "fixed", "fixed: a worker reads its own part of the data and never another; global: each "
                 "epoch is dealt anew to all, in an order that does not depend on their number "
                 "(recipe: fixed)", group="data", choices=SHARDINGS)
    teacher: str | None = setting(
        None, "learn from this model's answers too (recipe: none)", group="distillation",
        metavar="NAME")
    teacher_params: str | None = setting(
        None, "its weights (default: the published ones)", group="distillation", metavar="FILE",
        type=command_line.path_text)
    temperature: float = setting(
        20.0, "softens its answers (recipe: 20)", group="distillation", metavar="T", most=1e6)
    hard_weight: float = setting(
        0.5, "share of the labels in the loss, 0 to 1 (recipe: 0.5)", group="distillation",
        metavar="W", least=0, most=1)

    def __post_init__(self) -> None:
        check_input_size(self.train_size, "--input-size")
        check_input_size(self.test_size, "--test-size")
        check_bounds(self)
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"--crop-ratio {self.crop_ratio} must be above 0 and at most 1")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature {self.temperature} must be above 0")
        if self.accumulate > self.batch_size:
            raise InputError(f"--accumulate {self.accumulate} is more than the --batch-size "
                             f"{self.batch_size} that it divides")
        self._check_batch()
        if self.teacher is not None:
            find_variant(self.teacher)
        elif self.teacher_params is not None:
            raise InputError(f"--teacher-params {self.teacher_params} needs --teacher, the name "
                             "of the model")
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup-epochs {self.warmup_epochs} leaves nothing of --num-epochs "
                f"{self.epochs} for the cosine: give fewer"
            )

    def _check_batch(self) -> None:
        """Refuse a batch that no device can hold in arrays of MXNet."""
        # The third convolution of the stem gives at least 64 channels at half the side.
        part, side = -(-self.batch_size // self.accumulate), self.train_size // 2
        if 64 * part * side * side > _MOST_ELEMENTS:
            raise InputError(
                f"--batch-size {self.batch_size} at --input-size {self.train_size} makes arrays "
                f"of more than {_MOST_ELEMENTS:,} numbers, which MXNet cannot address: give "
                "less, or a larger --accumulate")

    def peak_lr(self, world_size: int) -> float:
        """Largest learning rate of the run on `world_size` workers."""
        if self.lr is not None:
            return self.lr * world_size
        return linear_scaling_rule(self.batch_size * world_size, self.base_lr)

    def schedule(self, images: int, world_size: int) -> Schedule:
        """Learning rate by iteration for `images` training images on `world_size` workers."""
        steps = steps_per_epoch(images, self.batch_size, world_size)
        return Schedule(
            self.peak_lr(world_size),
            total_steps=self.epochs * steps,
            warmup_steps=self.warmup_epochs * steps,
            warmup_lr=self.warmup_lr,
        )


def recipe_of(model: str, **overrides: Any) -> Recipe:
    """The paper's recipe for `model`, with the `overrides` that are not None.

    A training size that is given alone, and is not the model's own, is the test size too.

    Raises
    ------
    InputError
        For an unknown model or a value that cannot be.
    """
    variant: Variant = find_variant(model)
    published = variant.published
    known = {field.name for field in fields(Recipe)}
    given = {name: value for name, value in overrides.items() if value is not None}
    if not set(given) <= known:
        raise TypeError(f"no such fields of a recipe: {sorted(set(given) - known)}")
    if given.get("train_size", published.train_size) != published.train_size:
        given.setdefault("test_size", given["train_size"])
    own = Recipe(
        model=variant.name,
        train_size=published.train_size,
        test_size=published.test_size,
        batch_size=published.batch_size,
        final_drop=variant.final_drop,
        dropblock_prob=published.dropblock_prob,
    )
    return replace(own, **given)
