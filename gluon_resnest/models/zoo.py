"""`get_model` and `list_models`, called as GluonCV's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx

from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt
from gluon_resnest.models.variants import VARIANTS, Variant, find_variant
from gluon_resnest.models.weights import load_weights, published_weights

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
    **kwargs: Any,
) -> ResNeSt:
    """Make a network by name.

    Parameters
    ----------
    name
        One of :func:`list_models`, such as ``"resnest50"``.
    pretrained
        ``True``: the published ImageNet weights, from `root` or, if they are not there, from the
        model store. A path: the weights in that ``.params`` file. ``False``: no weights; call
        ``net.initialize()``.
    classes
        Outputs of the classifier.
    ctx
        Where to put pretrained weights; the CPU by default.
    root
        Folder of downloaded weights; ``~/.mxnet/models`` by default.
    **kwargs
        Of the network (``last_gamma``, ``norm_layer``, ``norm_kwargs``, ``prefix``) or fields of
        its :class:`~gluon_resnest.models.variants.Variant` (``radix=4``, ``final_drop=0.1``).

    Returns
    -------
    ResNeSt
        Input (N, 3, H, W), output (N, classes).

    Raises
    ------
    InputError
        For an unknown name or keyword, or weights that are missing, damaged or of another model.
    """
    if classes < 1:
        raise InputError(f"classes {classes} must be at least 1")
    network_kwargs = {key: kwargs.pop(key) for key in _NETWORK_KEYWORDS if key in kwargs}
    variant: Variant = find_variant(name, **kwargs)
    net = ResNeSt(variant, classes=classes, **network_kwargs)
    if pretrained:
        path = published_weights(variant, root) if pretrained is True else Path(pretrained)
        load_weights(net, path, ctx or mx.cpu())
    return net
