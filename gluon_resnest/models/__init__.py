"""The networks, their table of variants, and their weights."""

from gluon_resnest.models.bottleneck import Bottleneck
from gluon_resnest.models.resnest import ResNeSt, ResNeStFeatures
from gluon_resnest.models.variants import (
    VARIANTS,
    Publication,
    Variant,
    check_input_size,
    find_variant,
)
from gluon_resnest.models.weights.files import load_weights, save_weights
from gluon_resnest.models.zoo import get_model, list_models

__all__ = [
    "VARIANTS",
    "Bottleneck",
    "Publication",
    "ResNeSt",
    "ResNeStFeatures",
    "Variant",
    "check_input_size",
    "find_variant",
    "get_model",
    "list_models",
    "load_weights",
    "save_weights",
]
