"""torch's DataLoader with the transforms of torchvision, or of timm, on Pillow."""

from __future__ import annotations

import io
import platform
from importlib import metadata
from typing import Any, Callable, Iterator

import pipeline_calls
import torch
from contestant import Prepared
from PIL import Image
from record_reader import Records
from torchvision_python import imported

T = imported("torchvision.transforms")


def prepare(task: dict[str, Any]) -> Prepared:
    """``library``: "torchvision" or "timm"; ``workers``: processes, or 0 for this one."""
    torch.set_num_threads(1)  # as DataLoader does in its workers
    transform = {"torchvision": _torchvision, "timm": _timm}[task["library"]](task)
    loader = torch.utils.data.DataLoader(
        _Images(task["records"], transform), task["batch_size"],
        shuffle=task["augmentation"] != "evaluation", num_workers=task["workers"],
        persistent_workers=task["workers"] > 0)
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                task["library"]: metadata.version(task["library"]),
                "Pillow": metadata.version("Pillow")}
    return pipeline_calls.prepared(lambda: _epoch(loader), {"versions": versions})


def _epoch(loader: torch.utils.data.DataLoader) -> Iterator[int]:
    for images, _ in loader:  # the workers begin only now
        yield len(images)


class _Images(torch.utils.data.Dataset):
    def __init__(self, path: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self._records = Records(path)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        content, label = self._records[position]
        return self._transform(Image.open(io.BytesIO(content)).convert("RGB")), label


def _torchvision(task: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """float32, normalised. AutoAugment comes first, on the whole image, as upstream has it."""
    side = task["input_size"]
    bicubic = pipeline_calls.is_bicubic(side)
    interpolation = T.InterpolationMode.BICUBIC if bicubic else T.InterpolationMode.BILINEAR
    ending = [T.ToTensor(), T.Normalize(pipeline_calls.MEAN, pipeline_calls.DEVIATION)]
    if task["augmentation"] == "evaluation":
        resized = T.Resize(pipeline_calls.resized_side(side), interpolation)
        return T.Compose([resized, T.CenterCrop(side), *ending])
    crop = [T.RandomResizedCrop(side, interpolation=interpolation), T.RandomHorizontalFlip()]
    if task["augmentation"] == "crop":
        return T.Compose([*crop, *ending])
    # It has no PCA lighting.
    return T.Compose([T.AutoAugment(T.AutoAugmentPolicy.IMAGENET), *crop,
                      T.ColorJitter(*[pipeline_calls.JITTER] * 3), *ending])


def _timm(task: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """uint8, as timm's own loader takes it, which normalises on the device.

    timm crops first: its AutoAugment works on input_size^2 pixels, not on the whole image.
    """
    factory = imported("timm.data.transforms_factory")
    side = task["input_size"]
    settings = {"interpolation": "bicubic" if pipeline_calls.is_bicubic(side) else "bilinear",
                "normalize": False}
    if task["augmentation"] == "evaluation":
        return factory.transforms_imagenet_eval(side, crop_pct=pipeline_calls.CROP_RATIO,
                                                **settings)
    if task["augmentation"] == "crop":
        return factory.transforms_imagenet_train(side, color_jitter=None, **settings)
    return factory.transforms_imagenet_train(
        side, auto_augment="original", color_jitter=pipeline_calls.JITTER,
        force_color_jitter=True, **settings)
