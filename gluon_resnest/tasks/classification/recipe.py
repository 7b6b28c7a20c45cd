"""What determines the result of a run: the paper's recipe as data, one row of defaults a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gluon_resnest.data.loading.sampling import steps_per_epoch
from gluon_resnest.errors import InputError
from gluon_resnest.models import Variant, check_input_size, find_variant
from gluon_resnest.plain_text import shortened
from gluon_resnest.training.schedules import Schedule, linear_scaling_rule

IMAGENET_TRAIN_IMAGES = 1_281_167


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's result depends on, but for its data and its number of workers.

    The defaults are the paper's ("Training Strategy" and "Image Classification Results"); those
    that differ by model come from its row of the table of variants, by :func:`recipe_of`.

    Attributes
    ----------
    recipe
        Row of the paper's ablation study that it started from (:mod:`.ablation`).
    batch_size
        Images a worker and step. The global batch is this times the number of workers.
    base_lr
        Learning rate for 256 images; the peak follows by the linear scaling rule.
    lr
        Learning rate a worker, as GluonCV's and Horovod's scripts have it: the peak is this times
        the number of workers. Replaces the rule if it is given.
    wd, wd_all
        Weight decay, of convolution and dense weights only unless `wd_all`.
    last_gamma
        Start the last batch normalisation of each block at gamma = 0.
    label_smoothing, smoothing_rule
        Epsilon; ``"paper"`` spreads it over the other K - 1 classes, ``"gluoncv"`` over all K.
    mixup_alpha, mixup_lambda, mixup_off_epoch
        Beta(alpha, alpha) of mixup, 0 for none; lambda drawn for each ``"sample"`` (paper) or each
        ``"batch"`` (GluonCV's script); number of last epochs without mixup.
    final_drop, dropblock_prob
        Dropout before the classifier; share that DropBlock drops in the last two stages at the
        end of training, rising linearly from 0.
    auto_aug, color_jitter, lighting
        AutoAugment's ImageNet policy; strengths of the jitter and of the PCA lighting.
    sharding
        ``"fixed"`` (paper): a worker reads its own even part of the data and never another;
        ``"global"``: each epoch's order is dealt anew to all workers.
    ema
        Decay of the moving average of the weights that is evaluated beside them; 0 for none.
    accumulate
        Parts in which a worker computes a batch, for batches that do not fit its memory.
    clip_norm
        Largest norm of the gradient of the global batch; 0 for any.
    fp16_allreduce, amp
        Send gradients as float16; compute in float16 where that is safe (GPUs only).
    teacher, teacher_params, temperature, hard_weight
        Model to learn from beside the labels, its weights (None: the published ones), the
        softening of its answers, and the share of the labels, as in GluonCV's script.
    """

    model: str
    recipe: str | None = None
    classes: int = 1000
    train_size: int = 224
    test_size: int = 224
    crop_ratio: float = 0.875
    batch_size: int = 128
    epochs: int = 270
    base_lr: float = 0.1
    lr: float | None = None
    warmup_epochs: int = 5
    warmup_lr: float = 0.0
    momentum: float = 0.9
    wd: float = 1e-4
    wd_all: bool = False
    last_gamma: bool = True
    label_smoothing: float = 0.1
    smoothing_rule: str = "paper"
    mixup_alpha: float = 0.2
    mixup_lambda: str = "sample"
    mixup_off_epoch: int = 0
    final_drop: float = 0.0
    dropblock_prob: float = 0.0
    auto_aug: bool = True
    color_jitter: float = 0.4
    lighting: float = 0.1
    sharding: str = "fixed"
    ema: float = 0.0
    accumulate: int = 1
    clip_norm: float = 0.0
    fp16_allreduce: bool = False
    amp: bool = False
    teacher: str | None = None
    teacher_params: str | None = None
    temperature: float = 20.0
    hard_weight: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_input_size(self.train_size, "--input-size")
        check_input_size(self.test_size, "--test-size")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise InputError(f"{flag_of(name)} {value} must be a number of at least {least}")
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"--crop-ratio {self.crop_ratio} must be above 0 and at most 1")
        for name, most in _BELOW.items():
            if getattr(self, name) >= most:
                raise InputError(
                    f"{flag_of(name)} {getattr(self, name)} is too large: give less than {most}"
                )
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise InputError(f"{flag_of(name)} {shortened(value)} is too large: give at most "
                                 f"{most:,}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature {self.temperature} must be above 0")
        if self.hard_weight > 1:
            raise InputError(f"--hard-weight {self.hard_weight} must be at most 1")
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """The settings in which the recipe that was `saved` by :meth:`as_dict` is another one.

        As ``--flag then (now ...)``. What a recipe of an older version lacks was as by default.
        """
        defaults = {field.name: field.default for field in fields(self)}
        return [f"{flag_of(name)} {shortened(saved.get(name, defaults[name]))} (now {now})"
                for name, now in self.as_dict().items()
                if saved.get(name, defaults[name]) != now]


_LEAST = {"classes": 2, "batch_size": 1, "epochs": 1, "base_lr": 0, "lr": 0, "warmup_epochs": 0,
          "warmup_lr": 0, "momentum": 0, "wd": 0, "label_smoothing": 0, "mixup_alpha": 0,
          "mixup_off_epoch": 0, "final_drop": 0, "dropblock_prob": 0, "color_jitter": 0,
          "lighting": 0, "seed": 0, "ema": 0, "accumulate": 1, "clip_norm": 0, "hard_weight": 0}
_BELOW = {"momentum": 1, "label_smoothing": 1, "final_drop": 1, "dropblock_prob": 1, "ema": 1}
# Far above anything useful, and low enough that nothing overflows or takes for ever.
_MOST = {"classes": 1_000_000, "batch_size": 1_000_000, "epochs": 1_000_000,
         "warmup_epochs": 1_000_000, "mixup_off_epoch": 1_000_000, "accumulate": 1_000_000,
         "seed": 2**63 - 1, "base_lr": 1e30, "lr": 1e30, "warmup_lr": 1e30, "wd": 1e6,
         "clip_norm": 1e30, "temperature": 1e6, "mixup_alpha": 1e6, "color_jitter": 1e3,
         "lighting": 1e3}
_MOST_ELEMENTS = 2**31 - 1  # of an array, in MXNet's wheels


def flag_of(field: str) -> str:
    """The command line's flag that sets `field`."""
    return {"epochs": "--num-epochs", "train_size": "--input-size"}.get(
        field, f"--{field.replace('_', '-')}")


def recipe_of(model: str, **overrides: Any) -> Recipe:
    """The paper's recipe for `model`, with the `overrides` that are not None.

    A training size that is given alone, and is not the model's own, is the test size too.

    Raises
    ------
    InputError
        For an unknown model or a value that cannot be.
    """
    variant: Variant = find_variant(model)
    known = {field.name for field in fields(Recipe)}
    given = {name: value for name, value in overrides.items() if value is not None}
    if not set(given) <= known:
        raise TypeError(f"no such fields of a recipe: {sorted(set(given) - known)}")
    if given.get("train_size", variant.train_size) != variant.train_size:
        given.setdefault("test_size", given["train_size"])
    own = Recipe(
        variant.name,
        train_size=variant.train_size,
        test_size=variant.test_size,
        batch_size=variant.batch_size,
        final_drop=variant.final_drop,
        dropblock_prob=variant.recipe_dropblock_prob,
    )
    return replace(own, **given)
