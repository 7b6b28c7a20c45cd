"""ONNX files: written from networks, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from gluon_resnest import runtime
from gluon_resnest.deploy.graph import pixel_scale_and_offset
from gluon_resnest.errors import InputError
from gluon_resnest.models.resnest import ResNeSt

ONNX_SUFFIX = ".onnx"
_MISSING = "{} is not installed: pip install 'gluon-resnest[onnx]'"


def write_onnx(net: ResNeSt, prefix: Path, size: int, pixels: bool = False) -> list[Path]:
    """Write `net` as ``PREFIX.onnx`` for images of a side of `size` pixels.

    `pixels`: the input is (N, size, size, 3) uint8 instead of (N, 3, size, size) float32.
    """
    try:
        from gluon_resnest.deploy.onnx_graph import onnx_from_pixels, onnx_graph
    except ImportError as error:
        raise InputError(_MISSING.format(error.name)) from None
    model = onnx_graph(net, size)
    return save_onnx(onnx_from_pixels(model) if pixels else model, prefix)


def write_int8_onnx(net: ResNeSt, prefix: Path, size: int, batches: Sequence[np.ndarray],
                    pixels: bool = False) -> list[Path]:
    """As :func:`write_onnx`, on 8 bits; `batches` as `quantize_onnx`'s."""
    try:
        from gluon_resnest.deploy.onnx_graph import onnx_from_pixels, onnx_graph
        from gluon_resnest.deploy.onnx_int8 import quantize_onnx
    except ImportError as error:
        raise InputError(_MISSING.format(error.name)) from None
    model = quantize_onnx(onnx_graph(net, size), batches)
    return save_onnx(onnx_from_pixels(model) if pixels else model, prefix)


def save_onnx(model: Any, prefix: Path) -> list[Path]:
    """Write a model of ONNX as ``PREFIX.onnx``."""
    file = Path(f"{prefix}{ONNX_SUFFIX}")
    file.write_bytes(model.SerializeToString())
    return [file]


def onnx_runner(file: Path, pixels: bool, image_shape: tuple[int, ...],
                classes: int) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels (N, H, W, 3) uint8 to logits (N, classes), by ONNX Runtime on the CPU.

    Parameters
    ----------
    pixels
        Whether the file takes them, instead of normalised images.
    image_shape, classes
        Of its input without N, and of its output, as ``model.json`` says; a file that says
        otherwise is refused.

    Raises
    ------
    InputError
        ONNX Runtime is not installed, or cannot read the file; or, later, cannot run it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(_MISSING.format(error.name)) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.thread_count()
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        # By its content: given a path, it would open further files that a model can name.
        session = onnxruntime.InferenceSession(file.read_bytes(), options,
                                               providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no common base
        raise InputError(f"ONNX Runtime cannot load {file} ({_reason(error)}): export the model "
                         "again") from None
    found = [(one.type, list(one.shape)[1:]) for one in (*session.get_inputs(),
                                                         *session.get_outputs())]
    expected = [("tensor(uint8)" if pixels else "tensor(float)", list(image_shape)),
                ("tensor(float)", [classes])]
    if found != expected:
        raise InputError(f"{file} takes and gives {found}, where model.json says {expected}: take "
                         "both files from one export")
    name = session.get_inputs()[0].name

    def forward(images: np.ndarray) -> np.ndarray:
        given = images if pixels else normalized(images)
        try:
            return session.run(None, {name: given})[0]
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run {file} on {given.shape} "
                             f"({_reason(error)})") from None

    return forward


def _reason(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


def normalized(pixels: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) float32, as the network takes it, of pixels (N, H, W, 3) uint8, RGB."""
    scale, offset = pixel_scale_and_offset()
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    images *= scale
    images -= offset
    return images
