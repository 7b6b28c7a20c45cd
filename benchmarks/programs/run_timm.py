"""A network of timm in PyTorch, eager."""

from __future__ import annotations

import platform
from typing import Any, Callable

import torch
from contestant import Prepared
from timm_networks import network, timm

_CLASSES = 1000


def prepare(task: dict[str, Any]) -> Prepared:
    torch.set_num_threads(task["threads"])
    net = network(task["network"])
    side = task["input_size"]
    images = torch.randn(task["batch_size"], 3, side, side)
    call = {"forward": _forward, "training": _training_step}[task["mode"]](net, images)
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "timm": timm.__version__}
    return Prepared(call, {"versions": versions})


def _forward(net: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    net.eval()

    def forward() -> None:
        with torch.inference_mode():
            net(images)

    return forward


def _training_step(net: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    net.train()
    labels = torch.randint(_CLASSES, (images.shape[0],))
    loss_of = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = loss_of(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
