"""`get_model` and `list_models`, called as GluonCV's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt, ResNeStFeatures
from gluon_resnest.models.variants import VARIANTS, Variant, find_variant
from gluon_resnest.models.weights.files import classes_in, load_arrays, read_params
from gluon_resnest.models.weights.store import published_weights

# Keywords of the network itself; all others replace fields of the variant.
_NETWORK_KEYWORDS = ("last_gamma", "norm_layer", "norm_kwargs", "prefix", "params")


def list_models() -> list[str]:
    """Names that :func:`get_model` knows."""
    return list(VARIANTS)


def get_model(
    name: str,
    pretrained: bool | str | Path = False,
    classes: int = 1000,
    ctx: mx.Context | list[mx.Context] | None = None,
    root: str | Path | None = None,
    features_only: bool = False,
    **kwargs: Any,
) -> ResNeStFeatures:
    """Make a network by name.

    Parameters
    ----------
    name
        One of :func:`list_models`, such as ``"resnest50"``, or any
        ``resnest{depth}[_fast]_{R}s{K}x{W}d``: radix, cardinality and width of the ablation.
    pretrained
        ``True``: the published ImageNet weights, from `root` or, if they are not there, from the
        model store. A path: the weights in that file. ``False``: no weights; call
        ``net.initialize()``. Where the weights have another number of classes than `classes`,
        the classifier starts afresh and all else is loaded. Weights for RGB images fit any
        ``in_channels``:
        :func:`~gluon_resnest.models.weights.input_channels.adapt_input_weight` has the
        rule, and the log says so.
    classes
        Outputs of the classifier.
    ctx
        Where to put pretrained weights; the CPU by default.
    root
        Folder of downloaded weights; ``~/.mxnet/models`` by default.
    features_only
        Leave the classifier out, for detectors and segmenters.
    **kwargs
        Of the network (``last_gamma``, ``norm_layer``, ``norm_kwargs``, ``prefix``) or fields of
        its :class:`~gluon_resnest.models.variants.Variant` (``in_channels=1``,
        ``output_stride=8``, ``final_drop=0.1``). Besides, as GluonCV has them: ``dilated=True``
        is ``output_stride=8``, and ``use_global_stats=True`` freezes the statistics of batch
        normalisation.

    Returns
    -------
    ResNeSt
        Input (N, in_channels, H, W), output (N, classes).
    ResNeStFeatures
        With `features_only`: the same input, output the four maps C2 to C5.

    Raises
    ------
    InputError
        For an unknown name or keyword, or weights that are missing, damaged or of another model.
    """
    if not isinstance(classes, (int, np.integer)) or classes < 1:
        raise InputError(f"classes {classes} must be a whole number of at least 1")
    network_kwargs = {key: kwargs.pop(key) for key in _NETWORK_KEYWORDS if key in kwargs}
    if kwargs.pop("dilated", False):
        kwargs.setdefault("output_stride", 8)
    if kwargs.pop("use_global_stats", False):
        network_kwargs["norm_kwargs"] = {**(network_kwargs.get("norm_kwargs") or {}),
                                         "use_global_stats": True}
    variant: Variant = find_variant(name, **kwargs)
    net = (ResNeStFeatures(variant, **network_kwargs) if features_only
           else ResNeSt(variant, classes, **network_kwargs))
    if pretrained:
        path = published_weights(variant, root) if pretrained is True else Path(pretrained)
        arrays = read_params(path)
        # Fine-tuning and features want the rest of the network, whatever was classified before.
        other_classifier = features_only or classes_in(arrays, path) != classes
        load_arrays(net, arrays, path, ctx or mx.cpu(), reset_classifier=other_classifier,
                    adapt_input=True)
    return net
