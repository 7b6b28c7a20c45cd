"""A network of timm in ONNX Runtime, exported by PyTorch; forward only."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime
from contestant import Prepared, Refused

_EXPORT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "export_timm.py")


def prepare(task: dict[str, Any]) -> Prepared:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    file = _export(task)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    with np.load(file.replace(".onnx", ".npz")) as known:
        images, expected = known["images"], known["logits"]
    found, = session.run(None, {"images": images})
    versions = {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__}
    return Prepared(lambda: session.run(None, {"images": images}), {
        "versions": versions, "file_mb": os.path.getsize(file) / 1e6,
        "difference": float(abs(found - expected).max() / abs(expected).max())})


def _export(task: dict[str, Any]) -> str:
    """File of the network. PyTorch stays out of this process, whose memory is measured."""
    file = os.path.join(task["scratch"], "network.onnx")
    words = [task["network"], task["batch_size"], task["input_size"], file]
    done = subprocess.run([sys.executable, _EXPORT, *map(str, words)], stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode == 2:
        raise Refused(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the export failed:\n{done.stderr}")
    return file
