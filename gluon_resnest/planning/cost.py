"""What a network costs: parameters, multiply-adds and activations, layer by layer.

Everything is read off the graph and its shapes. The network is not run and needs no weights.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import mxnet as mx
from mxnet.gluon import HybridBlock

from gluon_resnest.errors import InputError
from gluon_resnest.models.variants import check_input_size
from gluon_resnest.models.zoo import get_model

_INPUT = "data"
_CONVOLUTION, _TRANSPOSED, _DENSE = "Convolution", "Deconvolution", "FullyConnected"
_MULTIPLYING = (_CONVOLUTION, _TRANSPOSED, _DENSE)


@dataclass(frozen=True)
class LayerCost:
    """One layer of a network.

    Attributes
    ----------
    name
        Path in the network, as in the keys of ``.params`` files: ``layer1.0.conv2.fc1``.
    type
        Class of the layer, such as ``Conv2D``; MXNet's operator where there is no such class.
    output_shape
        (N, C, H, W) or (N, classes).
    parameters
        Weights, biases, gammas and betas.
    statistics
        Running means and variances.
    multiply_adds
        Of convolutions and dense layers, for the whole batch. As everywhere in the literature,
        the additions of a bias and all other layers count nothing.
    activations
        Elements that a convolution or dense layer puts out, for the whole batch; other layers
        count nothing (Radosavovic et al., "Designing Network Design Spaces", 2020).
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int = 0
    statistics: int = 0
    multiply_adds: int = 0
    activations: int = 0


@dataclass(frozen=True)
class Cost:
    """Costs of the layers of a network, in the order in which they run, and their totals.

    ``str()`` gives a table, :meth:`as_dict` what JSON can hold.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        return sum(layer.statistics for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    def totals(self) -> dict[str, Any]:
        """The network's name, its input and the four sums."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "parameters": self.parameters,
            "statistics": self.statistics,
            "multiply_adds": self.multiply_adds,
            "activations": self.activations,
        }

    def as_dict(self) -> dict[str, Any]:
        """:meth:`totals`, and the layers below the key ``layers``."""
        layers = [{**asdict(layer), "output_shape": list(layer.output_shape)}
                  for layer in self.layers]
        return {**self.totals(), "layers": layers}

    def __str__(self) -> str:
        lines = [("layer", "type", "output", "parameters", "multiply-adds", "activations")]
        lines += [(layer.name, layer.type, _by(layer.output_shape),
                   *map(_figure, (layer.parameters, layer.multiply_adds, layer.activations)))
                  for layer in self.layers]
        lines += [(f"{self.name}, total", "", f"of {_by(self.input_shape)}",
                   *map(_figure, (self.parameters, self.multiply_adds, self.activations)))]
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = ["  ".join(cell.rjust(width) if number > 2 else cell.ljust(width)
                           for number, (cell, width) in enumerate(zip(line, widths)))
                 for line in lines]
        rule = "-" * len(table[0])
        return "\n".join([table[0], rule, *table[1:-1], rule, table[-1]])


def summary(
    network: str | HybridBlock, input_size: int | tuple[int, int] | None = None, batch: int = 1
) -> Cost:
    """Parameters, multiply-adds and activations of a network, layer by layer.

    Parameters
    ----------
    network
        A name that :func:`~gluon_resnest.get_model` knows, or any network of Gluon, with or
        without weights. Its number of input channels is read off its first convolution.
    input_size
        Side of the square input in pixels, or (height, width); the model's test size by default.
    batch
        Images N; multiply-adds and activations grow with it.

    Returns
    -------
    Cost
        Rows are layers; what stands between them (the sums and softmaxes of the attention, the
        shortcuts' additions, reshapes) has no parameters and counts nothing.

    Raises
    ------
    InputError
        For an unknown name, a size or batch that cannot be, or a network that is not hybridizable.

    Examples
    --------
    >>> print(gluon_resnest.summary("resnest50"))
    >>> gluon_resnest.summary("resnest269", 416).multiply_adds
    """
    if isinstance(network, str):
        name, network = network, get_model(network)
    elif isinstance(network, HybridBlock):
        variant = getattr(network, "variant", None)
        name = getattr(variant, "name", type(network).__name__)
    else:
        raise InputError(f"{type(network).__name__} is no hybridizable network: give a "
                         "HybridBlock or a model's name")
    if batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    height, width = _input_size(network, name, input_size)

    graph = network(mx.sym.var(_INPUT))
    if not isinstance(graph, mx.sym.Symbol):  # several outputs, such as the stages' features
        graph = mx.sym.Group(list(graph))
    nodes = json.loads(graph.tojson())["nodes"]
    input_shape = (batch, _input_channels(nodes), height, width)
    layers = _layers(graph, nodes, input_shape, _leaves(network))
    return Cost(name, input_shape, tuple(layers))


def _input_size(
    network: HybridBlock, name: str, size: int | tuple[int, int] | None
) -> tuple[int, int]:
    variant = getattr(network, "variant", None)
    if size is None:
        if variant is None:
            raise InputError(f"{name} has no test size of its own: give input_size")
        size = variant.published.test_size
    try:
        height, width = (size, size) if isinstance(size, int) else size
    except (TypeError, ValueError):
        raise InputError(f"input_size {size} must be a side or (height, width)") from None
    for side in (height, width) if variant is not None else ():
        check_input_size(side, "input_size")
    if min(height, width) < 1:
        raise InputError(f"input_size {size} must be at least 1")
    return height, width


def _input_channels(nodes: list[dict[str, Any]]) -> int:
    """Channels that the first convolution takes; 3 where nothing says."""
    for node in nodes:
        if node["op"] == _CONVOLUTION:
            weight = nodes[node["inputs"][1][0]]["attrs"].get("__shape__", "()")
            shape = [int(part) for part in weight.strip("()").split(",") if part.strip()]
            if len(shape) > 1 and shape[1] > 0:
                return shape[1] * int(node["attrs"].get("num_group", 1))
            break
    return 3


def _leaves(network: HybridBlock) -> dict[str, tuple[str, str]]:
    """Path and class of each layer without layers inside, by the prefix of its operators' names."""
    found: dict[str, list[tuple[str, str] | None]] = defaultdict(list)

    def visit(block: HybridBlock, path: str) -> None:
        found[block.prefix].append(None if block._children else (path, type(block).__name__))
        for name, child in block._children.items():
            visit(child, f"{path}.{name}" if path else name)

    visit(network, "")
    # A prefix that a layer shares with the block around it says nothing.
    return {prefix: blocks[0] for prefix, blocks in found.items()
            if len(blocks) == 1 and blocks[0] is not None}


def _owner(node: str, leaves: dict[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Path and class of the layer that an operator belongs to."""
    ends = [place + 1 for place, letter in enumerate(node) if letter == "_"]
    return next((leaves[node[:end]] for end in reversed(ends) if node[:end] in leaves), None)


def _layers(
    graph: mx.sym.Symbol, nodes: list[dict[str, Any]], input_shape: tuple[int, ...],
    leaves: dict[str, tuple[str, str]],
) -> list[LayerCost]:
    shapes = _shapes(graph, nodes, input_shape)
    statistics = set(graph.list_auxiliary_states())
    counted = {_INPUT}
    layers: list[LayerCost] = []
    current: dict[str, tuple[int, set[str]]] = {}  # path -> its row, and the operators in it
    for node, output in zip(nodes, shapes):
        if node["op"] == "null":
            continue
        inputs = [index for index, *_ in node["inputs"]]
        own = {nodes[index]["name"]: prod(shapes[index]) for index in inputs
               if nodes[index]["op"] == "null" and nodes[index]["name"] not in counted}
        counted.update(own)
        multiplying = node["op"] in _MULTIPLYING
        owner = _owner(node["name"], leaves)
        if owner is None and not own and not multiplying:
            continue
        path, kind = owner or (node["name"], node["op"])
        row, operators = current.get(path, (None, set()))
        if row is None or node["name"] in operators:  # the layer's first call, or a further one
            row, operators = current[path] = len(layers), set()
            layers.append(LayerCost(path, kind, ()))
        operators.add(node["name"])
        running = sum(size for name, size in own.items() if name in statistics)
        layer = layers[row]
        layers[row] = replace(
            layer,
            output_shape=output or layer.output_shape,
            parameters=layer.parameters + sum(own.values()) - running,
            statistics=layer.statistics + running,
            multiply_adds=layer.multiply_adds + _multiply_adds(
                node["op"], [shapes[index] for index in inputs], output),
            activations=layer.activations + (prod(output) if multiplying else 0),
        )
    return layers


def _shapes(
    graph: mx.sym.Symbol, nodes: list[dict[str, Any]], input_shape: tuple[int, ...]
) -> list[tuple[int, ...] | None]:
    """Shape of each node's output; None for an operator with several."""
    internals = graph.get_internals()
    _, output_shapes, _ = internals.infer_shape(**{_INPUT: input_shape})
    # A layer that is called twice gives two nodes of one name; both lists run in the same order.
    by_name = defaultdict(deque)
    for output, shape in zip(internals.list_outputs(), output_shapes):
        by_name[output].append(shape)
    found = [by_name[node["name"] if node["op"] == "null" else f"{node['name']}_output"]
             for node in nodes]
    return [shapes.popleft() if shapes else None for shapes in found]


def _multiply_adds(
    operator: str, inputs: list[tuple[int, ...]], output: tuple[int, ...]
) -> int:
    """Each weight once at each place: of the output, or of the input of a transposed one."""
    if operator == _CONVOLUTION:
        return prod(inputs[1]) * prod(output) // output[1]
    if operator == _TRANSPOSED:
        return prod(inputs[1]) * prod(inputs[0]) // inputs[0][1]
    if operator == _DENSE:
        return prod(inputs[1]) * prod(output) // output[-1]
    return 0


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _figure(number: int) -> str:
    return f"{number:,}" if number else "-"
