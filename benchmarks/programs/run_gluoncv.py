"""A network of GluonCV's model zoo, or a ResNeSt that only GluonCV's class can make."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import gluoncv
import mxnet_calls
import numpy as np
from contestant import Prepared, Refused
from gluoncv.model_zoo.resnest import Bottleneck, ResNeSt
from mxnet import gluon


def prepare(task: dict[str, Any]) -> Prepared:
    net, versions = network(task)
    return mxnet_calls.prepared(net, task, versions)


def network(task: dict[str, Any]) -> tuple[gluon.HybridBlock, dict[str, str]]:
    """The network of a task, hybridized, with random weights; and versions of libraries."""
    net = _by_class(task["variant"]) if task["variant"] else _by_name(task["network"])
    # GluonCV's entry functions switch DropBlock on from 26 layers; no other contestant has it.
    net.apply(_without_dropblock)
    mxnet_calls.initialize(net)
    mxnet_calls.hybridize(net)
    # GluonCV's own __version__ names a later release than the one it is of.
    return net, {"gluoncv": metadata.version("gluoncv"), "numpy": np.__version__}


def _by_name(name: str) -> gluon.HybridBlock:
    if name not in gluoncv.model_zoo.get_model_list():
        raise Refused(f"GluonCV has no network '{name}'")
    return gluoncv.model_zoo.get_model(name, pretrained=False)


def _by_class(variant: dict[str, Any]) -> gluon.HybridBlock:
    """The network of a row of gluon_resnest/models/variants.py."""
    split = variant["radix"] > 0
    return ResNeSt(Bottleneck, variant["layers"], radix=variant["radix"],
                   cardinality=variant["cardinality"], bottleneck_width=variant["width"],
                   stem_width=variant["stem_width"], final_drop=variant["final_drop"],
                   avd_first=variant["avd_first"], avd=split, use_splat=split,
                   deep_stem=True, avg_down=True)


def _without_dropblock(block: gluon.Block) -> None:
    if hasattr(block, "dropblock_prob"):
        block.dropblock_prob = 0
