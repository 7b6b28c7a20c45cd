"""MXNet's symbol format: a ``-symbol.json`` and a ``-0000.params`` file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable

import mxnet as mx
import numpy as np
from mxnet.gluon import SymbolBlock

from gluon_resnest.deploy.mxnet_graph import INPUT_NAME, deployment_graph, from_pixels, fuse
from gluon_resnest.errors import InputError
from gluon_resnest.layers import Normalize, portable_operators, without_dropblock
from gluon_resnest.models.resnest import ResNeSt

SYMBOL_SUFFIX, PARAMS_SUFFIX = "-symbol.json", "-0000.params"
GRAPHS = ("deployed", "plain")
_LEAST_SIZE = 32  # of an image that a graph is traced with


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
        return save_symbol(*(from_pixels(symbol, parameters) if pixels else (symbol, parameters)),
                           prefix)
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
    return save_symbol(*(from_pixels(symbol, parameters) if pixels else (symbol, parameters)),
                       prefix)


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
    symbol: Path, params: Path, ctx: mx.Context | None = None, input_name: str = INPUT_NAME
) -> SymbolBlock:
    """The network in a pair of exported files.

    Raises
    ------
    InputError
        If a file is missing, or the two cannot be read together.
    """
    for path in (symbol, params):
        if not Path(path).is_file():
            raise InputError(f"{path} is missing: scripts/export_model.py writes it")
    try:
        with warnings.catch_warnings():
            # It looks for operators of MXNet's NumPy interface, which these graphs never use.
            warnings.simplefilter("ignore")
            net = SymbolBlock.imports(str(symbol), [input_name], str(params), ctx=ctx or mx.cpu())
    except (mx.MXNetError, AssertionError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise InputError(f"{symbol} and {params} cannot be loaded together ({reason})") from None
    return net


def symbol_runner(
    symbol: Path, params: Path, input_name: str, pixels: bool, ctx: mx.Context | None = None,
    fused: bool = True,
) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels (N, H, W, 3) uint8 to logits (N, classes), by exported files.

    `fused`: with operators joined for this process, unless the file has such already.
    """
    net = import_symbol(symbol, params, ctx, input_name)
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
