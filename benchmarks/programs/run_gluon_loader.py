"""Gluon's DataLoader over ImageRecordDataset, with the transforms of GluonCV's training scripts."""

from __future__ import annotations

import platform
from typing import Any, Iterator

import autoaugment_pillow
import mxnet as mx
import numpy as np
import PIL
import pipeline_calls
from contestant import Prepared
from mxnet import gluon
from mxnet.gluon.data.vision import ImageRecordDataset, transforms
from PIL import Image


def prepare(task: dict[str, Any]) -> Prepared:
    """``workers``: processes, or 0 for this one."""
    images = ImageRecordDataset(task["records"]).transform_first(_transform(task))
    loader = gluon.data.DataLoader(
        images, task["batch_size"], shuffle=task["augmentation"] != "evaluation",
        last_batch="keep", num_workers=task["workers"])
    versions = {"python": platform.python_version(), "mxnet": mx.__version__,
                "numpy": np.__version__, "Pillow": PIL.__version__}
    return pipeline_calls.prepared(lambda: _epoch(loader), {"versions": versions})


def _epoch(loader: gluon.data.DataLoader) -> Iterator[int]:
    for images, _ in loader:  # the workers begin only now
        images.wait_to_read()
        yield len(images)


def _transform(task: dict[str, Any]) -> transforms.Compose:
    side = task["input_size"]
    interpolation = 2 if pipeline_calls.is_bicubic(side) else 1
    ending = [transforms.ToTensor(),
              transforms.Normalize(pipeline_calls.MEAN, pipeline_calls.DEVIATION)]
    if task["augmentation"] == "evaluation":
        resized = transforms.Resize(pipeline_calls.resized_side(side), keep_ratio=True,
                                    interpolation=interpolation)
        return transforms.Compose([resized, transforms.CenterCrop(side), *ending])
    crop = [transforms.RandomResizedCrop(side, interpolation=interpolation),
            transforms.RandomFlipLeftRight()]
    if task["augmentation"] == "crop":
        return transforms.Compose([*crop, *ending])
    jitter = pipeline_calls.JITTER
    return transforms.Compose([
        _AutoAugment(), *crop,
        transforms.RandomColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
        transforms.RandomLighting(pipeline_calls.LIGHTING), *ending])


class _AutoAugment(gluon.Block):
    """By Pillow, between two conversions, as upstream's scripts have it."""

    def forward(self, image: mx.nd.NDArray) -> mx.nd.NDArray:
        picture = autoaugment_pillow.augmented(Image.fromarray(image.asnumpy()))
        return mx.nd.array(np.asarray(picture), dtype="uint8")
