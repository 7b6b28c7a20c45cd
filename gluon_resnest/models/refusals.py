"""One-line errors for what MXNet would refuse in its own words, or only afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mxnet as mx
import numpy as np

from gluon_resnest.errors import InputError

if TYPE_CHECKING:
    from gluon_resnest.models.resnest import ResNeStFeatures


def least_size(output_stride: int) -> int:
    """Smallest height and width, in pixels, that a network takes.

    The last stage that strides pools 2x2 without padding, so its input, which is smaller than the
    image by half of `output_stride`, needs two pixels.
    """
    return output_stride // 2 + 1


def check_cast(dtype: Any) -> None:
    """Refuse a type that no network computes in.

    Raises
    ------
    InputError
        It is no floating-point number.
    """
    try:
        computes = np.dtype(dtype).kind in "fV"  # V: MXNet's bfloat16
    except TypeError:
        computes = False
    if not computes:
        raise InputError(f"a network cannot be cast to {dtype}: give float16, float32 or float64; "
                         "8-bit files come from scripts/export_model.py --format int8")


def refuse_float16_on_cpu(x: Any) -> None:
    """Refuse to run a float16 network on a CPU.

    MXNet would raise its error later, when a result is read, and could not even save the network
    then.

    Raises
    ------
    InputError
        `x` is an array on a CPU.
    """
    if isinstance(x, mx.nd.NDArray) and x.context.device_type.startswith("cpu"):
        raise InputError("MXNet computes float16 on GPUs only, and this input is on the CPU: "
                         "net.cast('float32') to run it here; saving and exporting work")


def input_fault(net: ResNeStFeatures, x: Any) -> str | None:
    """What is wrong with an input that MXNet has refused, and the remedy; None if it is not known.

    Asked after the failure, so that a forward pass costs no more. Right is an array (N,
    in_channels, H, W) of the network's type and least size, for a network with weights.
    """
    name, channels, weight = net.variant.name, net.variant.in_channels, net.conv1[0].weight
    wanted = f"(N, {channels}, H, W)"
    if isinstance(x, mx.sym.Symbol):
        return None
    if not isinstance(x, mx.nd.NDArray):
        return (f"{name} takes an mx.nd.array of shape {wanted}, and this is of type "
                f"{type(x).__name__}: give mx.nd.array(images)")
    if weight._data is None:
        return (f"{name} has no weights yet: call net.initialize(), or make it with "
                "get_model(..., pretrained=...)")
    if x.ndim != 4:
        remedy = "; give x.expand_dims(0) for one image" if x.ndim == 3 else ""
        return f"{name} takes images of shape {wanted}, not {x.shape}{remedy}"
    if x.shape[1] != channels:
        remedy = ("give x.transpose((0, 3, 1, 2))" if x.shape[3] == channels else
                  f"make it with get_model(..., in_channels={x.shape[1]}) for such images")
        return f"{name} takes images of shape {wanted}, not {x.shape}: {remedy}"
    if np.dtype(x.dtype) != np.dtype(weight.dtype):
        found, expected = np.dtype(x.dtype).name, np.dtype(weight.dtype).name
        remedy = ("gluon_resnest.layers.Normalize() makes normalised images of pixels (N, H, W, 3)"
                  if found == "uint8" else f"give x.astype('{expected}')")
        return f"{name} is in {expected} and its input in {found}: {remedy}"
    least = least_size(net.variant.output_stride)
    if min(x.shape[2:]) < least:
        return (f"an image of {x.shape[2]}x{x.shape[3]} pixels is too small for {name}: height "
                f"and width must be at least {least}")
    return None
