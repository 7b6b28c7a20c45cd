"""Export to MXNet's symbol format: a ``-symbol.json`` and a ``-0000.params`` file."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock

from gluon_resnest.deploy.mxnet_graph import INPUT_NAME, deployment_graph
from gluon_resnest.errors import InputError
from gluon_resnest.layers import portable_operators, without_dropblock

CARD = "model.json"
# Largest difference allowed, of the largest logit: of the same operators, and of folded ones.
TOLERANCES = {"plain": 1e-5, "deployed": 1e-4}
GRAPHS = tuple(TOLERANCES)
_SEED = 0


class DisagreementError(RuntimeError):
    """The exported files do not compute what the network computes."""


def export_symbol(
    net: HybridBlock, directory: Path, name: str, input_size: int, card: dict[str, Any],
    graph: str = "deployed",
) -> list[Path]:
    """Write `net` as symbol, parameters and a card; proven equal to `net` before it is kept.

    Parameters
    ----------
    net
        Input (N, 3, H, W) float32, output (N, classes).
    directory, name
        The files are ``NAME-symbol.json``, ``NAME-0000.params`` and ``model.json``.
    input_size
        Side, in pixels, of the images that it is checked with, besides a larger one.
    card
        What a client needs to know; written to ``model.json`` with the measured agreement.
    graph
        ``"deployed"``: rewritten for inference, see :mod:`gluon_resnest.deploy.graph`.
        ``"plain"``: the network's own operators and parameters, which can be trained on.

    Returns
    -------
    list of Path
        The three files.

    Raises
    ------
    DisagreementError
        If logits differ by more than 1e-5 of the largest logit (deployed: 1e-4); nothing is left
        behind then.
    InputError
        If the folder cannot be written to or holds the export of another model.
    """
    directory = Path(directory)
    _refuse_other_exports(directory / CARD, name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as scratch:
            written = _write_checked(net, Path(scratch) / name, input_size, card, graph)
            return [path.replace(directory / path.name) for path in written]
    except OSError as error:
        raise InputError(f"--output {directory} cannot be written to: {error.strerror}") from None


def _refuse_other_exports(card: Path, name: str) -> None:
    """One folder, one card, one model: a second would get the first one's description."""
    try:
        other = json.loads(card.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if other != name:
        raise InputError(f"{card} describes an export of {other}: give {name} a folder of its own "
                         "with --output")


def _write_checked(
    net: HybridBlock, prefix: Path, input_size: int, card: dict[str, Any], graph: str
) -> list[Path]:
    net.hybridize(static_alloc=True)
    symbol, params = Path(f"{prefix}-symbol.json"), Path(f"{prefix}-0000.params")
    if graph == "deployed":
        rewritten, parameters = deployment_graph(net)
        rewritten.save(str(symbol))
        mx.nd.save(str(params), {f"arg:{key}": value for key, value in parameters.items()})
    else:
        with without_dropblock(net), portable_operators(net):
            net(mx.nd.zeros((1, 3, input_size, input_size)))  # traces the graph
            net.export(str(prefix), epoch=0)
    agreement = _agreement(net, import_symbol(symbol, params), input_size)
    if not agreement <= TOLERANCES[graph]:
        raise DisagreementError(
            f"exported logits differ from the network's by {agreement:.2g} of the largest "
            f"(allowed: {TOLERANCES[graph]:.0e}); nothing was written"
        )
    described = prefix.with_name(CARD)
    described.write_text(json.dumps(
        {**card, "files": [symbol.name, params.name], "graph": graph, "input_name": INPUT_NAME,
         "largest_relative_difference": agreement}, indent=2) + "\n", encoding="utf-8")
    return [symbol, params, described]


def import_symbol(
    symbol: Path, params: Path, ctx: mx.Context | None = None
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
            net = SymbolBlock.imports(str(symbol), [INPUT_NAME], str(params), ctx=ctx or mx.cpu())
    except (mx.MXNetError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{symbol} and {params} cannot be loaded together ({reason})") from None
    return net


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _agreement(net: HybridBlock, other: HybridBlock, input_size: int) -> float:
    """Largest difference of logits over the largest logit; several batches and sizes."""
    rng = np.random.default_rng(_SEED)
    worst = 0.0
    for images, size in ((1, input_size), (3, input_size), (2, input_size + 33)):
        data = mx.nd.array(rng.standard_normal((images, 3, size, size)), dtype=np.float32)
        expected, found = net(data).asnumpy(), other(data).asnumpy()
        scale = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
        difference = np.abs(found - expected).max() / scale
        worst = max(worst, float(difference) if np.isfinite(difference) else float("inf"))
    return worst
