"""Import torchvision where its compiled part is missing or of another build: Python is enough."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def imported(name: str) -> ModuleType:
    """The module `name`, which is of torchvision or imports it."""
    # torchvision describes these operators' results when it is imported, whether or not they are.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(name)
