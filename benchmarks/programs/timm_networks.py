"""Networks of timm, with random weights."""

from __future__ import annotations

import torch
from contestant import Refused
from torchvision_python import imported

timm = imported("timm")


def network(name: str) -> torch.nn.Module:
    """The network called `name`, (N, 3, S, S) -> (N, 1000), none of its branches zero."""
    if not timm.is_model(name):
        raise Refused(f"timm {timm.__version__} has no network '{name}'")
    net = timm.create_model(name, pretrained=False)
    for module in net.modules():
        # timm starts each branch's last gamma at 0: an exporter could fold the branch away.
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return net
