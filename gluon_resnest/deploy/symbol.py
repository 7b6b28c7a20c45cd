"""MXNet's symbol format: a ``-symbol.json`` and a ``-0000.params`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

import mxnet as mx
import numpy as np

from gluon_resnest.checkpoints.array_file import read_arrays
from gluon_resnest.deploy.mxnet_graph import (
    INPUT_NAME,
    PIXELS_NAME,
    GraphBlock,
    as_block,
    deployment_graph,
    fuse,
    symbol_from_pixels,
)
from gluon_resnest.deploy.strict_json import RefusedError, shown
from gluon_resnest.deploy.symbol_check import check_graph
from gluon_resnest.deploy.symbol_json import Graph, read_graph
from gluon_resnest.deploy.symbol_operators import FLOAT, UINT8, Value
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize, portable_operators, without_dropblock
from gluon_resnest.models.resnest import ResNeSt

SYMBOL_SUFFIX, PARAMS_SUFFIX = "-symbol.json", "-0000.params"
GRAPHS = ("deployed", "plain")
_LEAST_SIZE = 32  # of an image that a graph is traced with
_OTHER_SIZE = 33  # pixels more, that a graph is checked with


def write_symbol(net: ResNeSt, prefix: Path, graph: str = "deployed",
                 pixels: bool = False) -> list[Path]:
    """Write `net` as ``PREFIX-symbol.json`` and ``PREFIX-0000.params``.

    Parameters
    ----------
    graph
        ``"deployed"``: rewritten for inference, see :mod:`gluon_resnest.deploy.graph`.
        ``"plain"``: the network's own operators and parameters, which can be trained on.
    pixels
        The input is (N, H, W, 3) uint8 and normalised in the graph, instead of (N, 3, H, W)
        float32; deployed only.

    Returns
    -------
    list of Path
        The two files.
    """
    if graph == "deployed":
        symbol, parameters = deployment_graph(net)
        if pixels:
            symbol, parameters = symbol_from_pixels(symbol, parameters)
        return save_symbol(symbol, parameters, prefix)
    if pixels:
        raise InputError("--graph plain takes normalised images: leave --pixels out")
    net.hybridize(static_alloc=True)
    with without_dropblock(net), portable_operators(net):
        net(mx.nd.zeros((1, 3, _LEAST_SIZE, _LEAST_SIZE)))  # traces the graph
        net.export(str(prefix), epoch=0)
    return _files(prefix)


def write_int8_symbol(net: ResNeSt, prefix: Path, batches: Sequence[np.ndarray],
                      pixels: bool = False) -> list[Path]:
    """As :func:`write_symbol`, with oneDNN's 8-bit operators; `batches` as `quantize_symbol`'s."""
    from gluon_resnest.deploy.int8 import graph_for_int8, quantize_symbol

    symbol, parameters = quantize_symbol(*graph_for_int8(net), batches)
    if pixels:
        symbol, parameters = symbol_from_pixels(symbol, parameters)
    return save_symbol(symbol, parameters, prefix)


def save_symbol(symbol: mx.sym.Symbol, parameters: Mapping[str, mx.nd.NDArray],
                prefix: Path) -> list[Path]:
    """Write a symbol and the values of its arguments."""
    files = _files(prefix)
    symbol.save(str(files[0]))
    mx.nd.save(str(files[1]), {f"arg:{name}": value for name, value in parameters.items()})
    return files


def _files(prefix: Path) -> list[Path]:
    return [Path(f"{prefix}{suffix}") for suffix in (SYMBOL_SUFFIX, PARAMS_SUFFIX)]


def import_symbol(
    symbol: Path, params: Path, ctx: mx.Context | None = None, input_name: str = INPUT_NAME,
    image_shape: tuple[int, int, int] | None = None, classes: int | None = None,
) -> GraphBlock:
    """The network in a pair of exported files, which may be a stranger's.

    MXNet's own parser, which follows whatever a file says, is given only what
    :mod:`~.symbol_check` lets pass.

    Parameters
    ----------
    image_shape
        Of the input without N: (C, H, W), or of ``pixels`` (H, W, 3). By default of 32 RGB pixels
        a side.
    classes
        Outputs that the network must have; None for any.

    Raises
    ------
    InputError
        If a file is missing, is not as this package writes it, or the two do not fit.
    """
    for path in (symbol, params):
        if not Path(path).is_file():
            raise InputError(f"{path} is missing: scripts/export_model.py writes it")
    pixels = input_name == PIXELS_NAME
    default = (_LEAST_SIZE, _LEAST_SIZE, 3) if pixels else (3, _LEAST_SIZE, _LEAST_SIZE)
    arrays = _arrays(params)
    shapes = {name: array.shape for name, array in arrays.items()}
    try:
        graph = read_graph(symbol)
        # Twice, as it must take any number of images of any size.
        for batch, more in ((2, _OTHER_SIZE), (1, 0)):
            image = _image(image_shape or default, pixels, batch, more)
            checked, outputs = check_graph(graph, input_name, image, shapes)
            if classes is not None and outputs != [(batch, classes)]:
                raise RefusedError(f"it gives {outputs} for {image.shape}, where {classes} "
                                   "classes are expected")
    except RefusedError as error:
        raise InputError(f"{symbol} is not a symbol of this package and of {params} ({error}): "
                         "take both files from one export, and from a source that you trust"
                         ) from None
    except OSError as error:
        raise InputError(f"cannot read {symbol}: {error.strerror or error}") from None
    return _block(checked, input_name, arrays, ctx or mx.cpu())


def _image(shape: tuple[int, int, int], pixels: bool, batch: int, more: int) -> Value:
    """Images of one shape (C, H, W) or (H, W, 3), `more` pixels a side larger."""
    if pixels:
        height, width, channels = shape
        return Value((batch, height + more, width + more, channels), UINT8)
    channels, height, width = shape
    return Value((batch, channels, height + more, width + more), FLOAT)


def _arrays(params: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of an exported ``.params`` file, without the kinds in their names."""
    arrays: dict[str, np.ndarray] = {}
    for full_name, array in read_arrays(params).items():
        kind, _, name = full_name.partition(":")
        if kind not in ("arg", "aux") or name in arrays or array.dtype != np.float32:
            raise InputError(f"{params} is not of an exported symbol: it holds "
                             f"{shown(full_name)}, of {array.dtype}; export the model again")
        arrays[name] = array
    return arrays


def _block(graph: Graph, input_name: str, arrays: Mapping[str, np.ndarray],
           ctx: mx.Context) -> GraphBlock:
    parameters = {name: mx.nd.array(array, dtype=np.float32) for name, array in arrays.items()}
    return as_block(mx.sym.load_json(graph.text()), parameters, input_name, ctx)


def symbol_runner(
    symbol: Path, params: Path, input_name: str, pixels: bool, ctx: mx.Context | None = None,
    fused: bool = True, image_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels (N, H, W, 3) uint8 to logits (N, classes), by exported files.

    `fused`: with operators joined for this process, unless the file has such already; the others
    as :func:`import_symbol`'s.
    """
    net = import_symbol(symbol, params, ctx, input_name, image_shape, classes)
    if fused:
        fuse(net)
    else:
        net.hybridize(static_alloc=True, static_shape=True)
    return on_device(net, ctx or mx.cpu(), normalized=not pixels)


def on_device(
    net: mx.gluon.HybridBlock, ctx: mx.Context, normalized: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels (N, H, W, 3) uint8 to logits, by a network of MXNet; NumPy in and out.

    `normalized`: it takes normalised images (N, 3, H, W) instead of pixels.
    """
    normalize = Normalize()
    normalize.hybridize(static_alloc=True)

    def forward(pixels: np.ndarray) -> np.ndarray:
        images = mx.nd.array(pixels, ctx=ctx, dtype=np.uint8)
        return net(normalize(images) if normalized else images).asnumpy()

    return forward
