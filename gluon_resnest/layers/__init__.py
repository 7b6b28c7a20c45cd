"""HybridBlocks that know no network."""

from gluon_resnest.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from gluon_resnest.layers.split_attention import SplitAttention

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Normalize", "SplitAttention"]
