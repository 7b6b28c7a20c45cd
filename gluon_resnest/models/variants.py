"""The variants of the paper and of the published model stores, as data; any other by its name.

Naming of the ablation (paper, Table 1): ``{R}s{K}x{W}d`` is radix R, cardinality K and bottleneck
width W; radix 0 is the plain block of ResNet-D, the paper's baseline. In the ``fast`` networks the
average pooling of a transition block stands before the 3x3 convolution, which saves its cost at
the larger map; elsewhere it stands behind.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from gluon_resnest.errors import InputError
from gluon_resnest.layers import attention_channels
from gluon_resnest.plain_text import shortened

# What the four stages divide the input's height and width by.
TOTAL_STRIDE = 32
LARGEST_INPUT = 8192


@dataclass(frozen=True)
class Publication:
    """What was published about a network: the run that trained it, and what came of it.

    Networks know nothing of it; recipes, downloads and tables of accuracies do.

    Attributes
    ----------
    top1
        ImageNet top-1 accuracy, %, of the published weights at `test_size`, as their authors
        give it (GluonCV's and the ResNeSt repository's tables). Not measured here. None if no
        weights were published.
    sha1
        Of the published ``.params`` file; None if there is none.
    train_size, test_size
        Square crops in pixels.
    batch_size, workers
        Images a worker, and number of workers.
    dropblock_prob
        What the share that DropBlock drops rises to.
    """

    top1: float | None = None
    sha1: str | None = None
    train_size: int = 224
    test_size: int = 224
    batch_size: int = 128
    workers: int = 64
    dropblock_prob: float = 0.1

    def without_weights(self) -> Publication:
        """The run alone, for a network of which no weights were published."""
        return replace(self, top1=None, sha1=None)


@dataclass(frozen=True)
class Variant:
    """What one network is made of, by name; and, apart from that, what was published about it.

    Attributes
    ----------
    layers
        Bottleneck blocks in each of the four stages.
    radix, cardinality, width
        Splits R (0: no split attention, the block of ResNet-D), cardinal groups K, and channels
        of a cardinal group for 64 planes.
    stem_width
        Channels of the first two stem convolutions; the third has twice as many.
    avd_first
        Average-pool before the 3x3 convolution of a transition block ("fast") instead of after.
    final_drop
        Dropout before the classifier (paper: 0.2 for the networks of 200 layers and more).
    dropblock_prob
        Share that DropBlock drops in the last two stages; 0, the default of a network that is not
        trained by the recipe, leaves its layers out.
    in_channels
        Channels of the input image.
    output_stride
        What height and width are divided by in all: 32, or 16 or 8 with dilated convolutions in
        the last stages, for segmentation.
    published
        What is not needed to make the network: crops and settings of its training, accuracy, file.
    """

    name: str
    layers: tuple[int, int, int, int]
    radix: int = 2
    cardinality: int = 1
    width: int = 64
    stem_width: int = 32
    avd_first: bool = False
    final_drop: float = 0.0
    dropblock_prob: float = 0.0
    in_channels: int = 3
    output_stride: int = 32
    published: Publication = Publication()

    @property
    def depth(self) -> int:
        """Layers with weights on the longest way, as the name counts them."""
        return 3 * sum(self.layers) + 2

    def __post_init__(self) -> None:
        for field, least in (("radix", 0), ("cardinality", 1), ("width", 1), ("stem_width", 1),
                             ("in_channels", 1), ("final_drop", 0), ("dropblock_prob", 0)):
            if getattr(self, field) < least:
                self._refuse(field, f"must be at least {least}")
        for field, most in (("radix", 64), ("cardinality", 256), ("width", 1024),
                            ("stem_width", 1024), ("in_channels", 4096)):
            if getattr(self, field) > most:
                self._refuse(field, f"is too large: at most {most}")
        for field in ("final_drop", "dropblock_prob"):
            if getattr(self, field) >= 1:
                self._refuse(field, "must be below 1")
        if len(self.layers) != 4 or min(self.layers) < 1:
            self._refuse("layers", "must be four numbers of at least 1")
        if self.output_stride not in (8, 16, 32):
            self._refuse("output_stride", "must be 8, 16 or 32")
        if self.radix > 1 and self.width % self.radix:
            self._refuse("width", f"must be divisible by radix {self.radix}")
        if self.radix and any(
            attention_channels(scale * self.width * self.cardinality, self.radix)
            % self.cardinality for scale in (1, 2, 4, 8)
        ):
            self._refuse("cardinality", "must divide the attention's hidden channels, a quarter "
                         "of radix x width x cardinality and at least 32")

    def _refuse(self, field: str, reason: str) -> None:
        raise InputError(f"{field} {getattr(self, field)} of {self.name} {reason}")


_LAYERS_50 = (3, 4, 6, 3)


def _fast(
    setting: str, radix: int, cardinality: int, width: int, top1: float, sha1: str
) -> Variant:
    return Variant(f"resnest50_fast_{setting}", _LAYERS_50, radix, cardinality, width,
                   avd_first=True, published=Publication(top1, sha1))


_ROWS = (
    Variant("resnest14", (1, 1, 1, 1), published=Publication(
        75.75, "7e0b0cae2fd7e9084d1e498b858af1429a6eb1cb", workers=8, dropblock_prob=0.0)),
    Variant("resnest26", (2, 2, 2, 2), published=Publication(
        78.68, "364590740605b6a2b95f5bb77436d781a817436f", workers=8)),
    Variant("resnest50", _LAYERS_50, published=Publication(
        81.04, "bcfefe1dd1dd1ef5cfed5563123c1490ea37b42e")),
    Variant("resnest101", (3, 4, 23, 3), stem_width=64, published=Publication(
        82.83, "5da943b3230f071525a98639945a6b3b3a45ac95", test_size=256, batch_size=64)),
    Variant("resnest200", (3, 24, 36, 3), stem_width=64, final_drop=0.2, published=Publication(
        83.86, "0c5d117df664ace220aa6fc2922c094bb079d381",
        train_size=256, test_size=320, batch_size=32)),
    Variant("resnest269", (3, 30, 48, 8), stem_width=64, final_drop=0.2, published=Publication(
        84.53, "11ae7f5da2bcdbad05ba7e84f9b74383e717f3e3",
        train_size=320, test_size=416, batch_size=32)),
    _fast("1s1x64d", 1, 1, 64, 80.35, "5e16dbe56f1fba8e1bc2faddd91f874bfbd74193"),
    _fast("2s1x64d", 2, 1, 64, 80.65, "85eb779a5e313d74b5e5390dae02aa8082a0f469"),
    _fast("4s1x64d", 4, 1, 64, 80.90, "3f215532c6d8e07a10df116309993d4479fc3e4b"),
    _fast("1s2x40d", 1, 2, 40, 80.72, "af3514c2ec757a3a9666a75b82f142ed47d55bee"),
    _fast("2s2x40d", 2, 2, 40, 80.84, "2db13245aa4967cf5e8617cb4911880dd41628a4"),
    _fast("4s2x40d", 4, 2, 40, 81.17, "b24d515797832e02da4da9c8a15effd5e44cfb56"),
    _fast("1s4x24d", 1, 4, 24, 80.97, "7318153ddb5e542a20cc6c58192f3c6209cff9ed"),
)

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}

# Fields that published weights do not fit any more once they are changed.
_IN_WEIGHTS = {"layers", "radix", "cardinality", "width", "stem_width"}
_NAME = re.compile(r"resnest([0-9]{1,4})(_fast)?(?:_([0-9]{1,4})s([0-9]{1,4})x([0-9]{1,4})d)?")


def find_variant(name: str, **overrides: Any) -> Variant:
    """The variant called `name`, with any field of its architecture replaced.

    Names beside the table's are read by rule: ``resnest{depth}[_fast]_{R}s{K}x{W}d`` is the
    network of that depth with another radix, cardinality and width.

    Raises
    ------
    InputError
        If there is no such variant (naming the nearest ones) or no such field, or if the values
        contradict one another (naming the field and why).
    """
    variant = VARIANTS.get(name.lower()) or _by_rule(name.lower())
    if variant is None:
        near = difflib.get_close_matches(name[:80].lower(), VARIANTS, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(VARIANTS)}"
        raise InputError(f"unknown model '{shortened(name)}': {hint}")
    known = {field.name for field in fields(Variant)} - {"name", "published"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise InputError(
            f"unknown keyword {', '.join(unknown)} for model {name}; "
            f"known: {', '.join(sorted(known))}"
        )
    changed = {field for field, value in overrides.items() if value != getattr(variant, field)}
    published = variant.published
    if changed & _IN_WEIGHTS:
        published = published.without_weights()
    elif "in_channels" in changed:
        # Weights for RGB images can be adapted to others, but their accuracy is not that of these.
        published = replace(published, top1=None)
    return replace(variant, **overrides, published=published)


def _by_rule(name: str) -> Variant | None:
    match = _NAME.fullmatch(name)
    base = VARIANTS.get(f"resnest{match[1]}") if match else None
    if base is None:
        return None
    radix, cardinality, width = map(int, match.group(3, 4, 5)) if match[3] else (
        base.radix, base.cardinality, base.width)
    return replace(base, name=name, radix=radix, cardinality=cardinality, width=width,
                   avd_first=bool(match[2]), published=base.published.without_weights())


def check_input_size(size: int, origin: str) -> None:
    """Refuse a square input that is too large, or whose last map would be below one pixel."""
    if size > LARGEST_INPUT:
        raise InputError(f"{origin} {shortened(size)} is too large: give at most {LARGEST_INPUT}")
    if size < TOTAL_STRIDE:
        raise InputError(
            f"{origin} {size} is too small: the network divides height and width by "
            f"{TOTAL_STRIDE}, so give at least {TOTAL_STRIDE}"
        )
