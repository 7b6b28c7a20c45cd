"""Exported files of gluon_resnest, in the runtime that they are for; forward only."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

# First: it prepares NumPy and the number of threads before MXNet is imported.
import gluon_resnest

# isort: split
import mxnet as mx
import mxnet_calls
import numpy as np
from contestant import Prepared

from gluon_resnest.data.augment.transforms import EvaluationTransform
from gluon_resnest.data.images.made_photographs import photographs
from gluon_resnest.deploy import FORMATS, Description, export
from gluon_resnest.deploy.card import read_card
from gluon_resnest.deploy.check_images import drawn_crops
from gluon_resnest.deploy.mxnet_graph import fuse
from gluon_resnest.deploy.symbol import import_symbol


def prepare(task: dict[str, Any]) -> Prepared:
    folder = Path(task["scratch"]) / "exported"
    card = _export(task, folder)
    files = [folder / name for name in card["files"]]
    side = task["input_size"]
    images = np.random.default_rng(0).standard_normal((task["batch_size"], 3, side, side),
                                                      dtype=np.float32)
    versions = {"python": platform.python_version()}
    if FORMATS[task["form"]].runtime == "mxnet":
        net, on_device = import_symbol(*files), mx.nd.array(images)
        if task["form"] == "symbol":
            fuse(net)
        else:
            mxnet_calls.hybridize(net)
        versions["mxnet"] = mx.__version__

        def call() -> None:
            net(on_device).wait_to_read()
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task["threads"]
        session = onnxruntime.InferenceSession(str(files[0]), options,
                                               providers=["CPUExecutionProvider"])
        versions["onnxruntime"] = onnxruntime.__version__

        def call() -> None:
            session.run(None, {"data": images})

    return Prepared(call, {
        "versions": versions,
        "file_mb": sum(file.stat().st_size for file in files) / 1e6,
        "difference": card["agreement"]["largest_relative_difference"]})


def _export(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The card of files that are exported as `scripts/export_model.py` does it."""
    net = gluon_resnest.get_model(task["network"])
    mxnet_calls.initialize(net)
    transform = EvaluationTransform(task["input_size"])
    crops = drawn_crops(list(photographs(task["images"])), transform)
    # Classes of random weights lie too close together for 8 bits to keep them.
    export(net, folder, Description(task["network"], task["input_size"], transform.crop_ratio),
           crops, form=task["form"], calibration=crops, least_agreement=0.0)
    return read_card(folder)[0]
