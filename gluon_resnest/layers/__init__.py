"""HybridBlocks that know no network."""

from gluon_resnest.layers.dropblock import (
    DropBlock,
    scheduled_drop_prob,
    set_drop_prob,
    without_dropblock,
)
from gluon_resnest.layers.normalization import (
    GroupNorm,
    NormLayer,
    check_batch,
    make_norm,
)
from gluon_resnest.layers.one_at_a_time import OneAtATime
from gluon_resnest.layers.operators import norm_relu, portable_operators
from gluon_resnest.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalize
from gluon_resnest.layers.split_attention import SplitAttention, attention_channels

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DropBlock",
    "GroupNorm",
    "NormLayer",
    "Normalize",
    "OneAtATime",
    "SplitAttention",
    "attention_channels",
    "check_batch",
    "make_norm",
    "norm_relu",
    "portable_operators",
    "scheduled_drop_prob",
    "set_drop_prob",
    "without_dropblock",
]
