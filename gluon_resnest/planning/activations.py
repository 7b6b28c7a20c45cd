"""What training keeps of a network's maps, from the graph and its shapes alone.

Nothing is run and nothing allocated. What of the forward pass stays until the backward pass is
known for each operator; what comes and goes is followed through the graph in the order in which it
runs. docs/cluster.md compares the sum with what was measured.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import mxnet as mx
from mxnet.gluon import HybridBlock

FLOAT = 4  # bytes: maps are float32


class _Kept(NamedTuple):
    """What the gradient of an operator reads of its forward pass."""

    inputs: tuple[int, ...] = ()
    output: bool = False
    share: float = 0.0  # of a float for each element of the output, kept besides


# As the operators of MXNet 1.9.1 declare it (FGradient). Means and variances are too few to count.
_KEPT = {
    "Convolution": _Kept((0,)),
    "FullyConnected": _Kept((0,)),
    "BatchNorm": _Kept((0,)),
    "_contrib_BatchNormWithReLU": _Kept((0,), share=1 / 4),  # a byte: what ReLU let through
    "Activation": _Kept(output=True),  # of ReLU; the input is not needed
    "Pooling": _Kept((0,), output=True),
    "Dropout": _Kept(share=1.0),  # the mask
    # DropBlock's noise. No gradient reads it: measured, and not explained.
    "_random_uniform_like": _Kept(share=1.5),
    "softmax": _Kept(output=True),
    "sigmoid": _Kept(output=True),
    "batch_dot": _Kept((0, 1)),
    "elemwise_mul": _Kept((0, 1)),
    "broadcast_mul": _Kept((0, 1)),
}
# Their output is the memory of their input.
_SAME_MEMORY = frozenset({"Reshape", "reshape_like", "expand_dims", "Flatten", "BlockGrad"})
# Their output does not depend on the values of their input, or no gradient goes through.
_NO_GRADIENT = frozenset({"BlockGrad", "zeros_like", "ones_like", "_full",
                          "_random_uniform_like"})
# Their gradient reads nothing but the gradient of their output.
_NOTHING_KEPT = frozenset({
    "elemwise_add", "elemwise_sub", "add_n", "sum", "mean", "SliceChannel", "slice_axis",
    "transpose", "broadcast_add", "_contrib_AdaptiveAvgPooling2D", *_SAME_MEMORY, *_NO_GRADIENT,
    # of DropBlock's mask, behind its BlockGrad
    "broadcast_not_equal", "broadcast_lesser_equal", "_greater_scalar", "_maximum_scalar",
    "_minus_scalar", "_plus_scalar", "_rdiv_scalar", "_rminus_scalar",
})
KNOWN_OPERATORS = frozenset(_KEPT) | _NOTHING_KEPT


@dataclass(frozen=True)
class Activations:
    """Bytes of the maps of one training step.

    Attributes
    ----------
    kept
        From the forward pass until the backward pass.
    passing
        The most that is there at a time besides: of the forward pass and, in memory of its own,
        of the backward pass.
    largest
        The largest single map.
    """

    kept: int
    passing: int
    largest: int


def activations(net: HybridBlock, shape: tuple[int, ...], for_cpu: bool = True) -> Activations:
    """Of a training step of `net` on a batch.

    Parameters
    ----------
    net
        Without weights; it is traced.
    shape
        Of its input, such as (N, C, H, W).
    for_cpu
        As this machine traces the network; otherwise with the operators that every build has,
        which a GPU runs.
    """
    return _trace(net, shape, for_cpu).activations()


def inference_maps(net: HybridBlock, shape: tuple[int, ...], for_cpu: bool = True) -> int:
    """Bytes of the maps that are there at a time in inference, at most; as :func:`activations`."""
    return FLOAT * _trace(net, shape, for_cpu).passing_forward(set())


def _trace(net: HybridBlock, shape: tuple[int, ...], for_cpu: bool) -> _Graph:
    data = mx.sym.var("data")
    graph = net._get_graph(data)[1] if for_cpu else net(data)
    return _Graph(graph, {"data": shape})


class _Entry(NamedTuple):
    """An output of a node."""

    node: int
    output: int


class _Graph:
    """The operators of a symbol, with the sizes of their outputs, in elements."""

    def __init__(self, graph: mx.sym.Symbol, shapes: dict[str, tuple[int, ...]]) -> None:
        self.nodes: list[dict[str, Any]] = json.loads(graph.tojson())["nodes"]
        self.sizes = _sizes(graph, self.nodes, shapes)
        self.outputs: dict[int, list[_Entry]] = defaultdict(list)
        self.memory: dict[_Entry, _Entry] = {}  # whose memory an output is
        for entry in self.sizes:
            self.outputs[entry.node].append(entry)
            same = self.nodes[entry.node]["op"] in _SAME_MEMORY
            self.memory[entry] = self.memory[self._inputs(entry.node)[0]] if same else entry
        self.operators = [number for number, node in enumerate(self.nodes) if node["op"] != "null"]
        self.trained = self._trained(set(shapes))

    def activations(self) -> Activations:
        kept, bytes_besides = self._kept()
        maps = [self.sizes[entry] for number in self.operators for entry in self.outputs[number]]
        return Activations(
            FLOAT * sum(self.sizes[entry] for entry in kept) + bytes_besides,
            FLOAT * (self.passing_forward(kept) + self._passing_backward()),
            FLOAT * max(maps))

    def _inputs(self, number: int) -> list[_Entry]:
        return [_Entry(source, output) for source, output, *_ in self.nodes[number]["inputs"]]

    def _is_variable(self, entry: _Entry) -> bool:
        return self.nodes[entry.node]["op"] == "null"

    def _trained(self, given: set[str]) -> set[int]:
        """Nodes through which the gradient of a parameter comes, the parameters included."""
        found: set[int] = set()
        for number, node in enumerate(self.nodes):
            if node["op"] == "null":
                if node["name"] not in given and not _is_seed_rate(node["name"]):
                    found.add(number)
            elif node["op"] not in _NO_GRADIENT and any(
                    source in found for source, _ in self._inputs(number)):
                found.add(number)
        return found

    def _kept(self) -> tuple[set[_Entry], int]:
        """What gradients read of the forward pass, and bytes that operators keep besides."""
        kept: set[_Entry] = set()
        besides = 0.0
        for number in self.operators:
            reads = _kept_by(self.nodes[number])
            besides += FLOAT * reads.share * self.sizes[_Entry(number, 0)]
            if number in self.trained:
                inputs = self._inputs(number)
                kept.update(self.memory[inputs[place]] for place in reads.inputs)
                if reads.output:
                    kept.add(self.memory[_Entry(number, 0)])
        return {entry for entry in kept if not self._is_variable(entry)}, int(besides)

    def passing_forward(self, kept: set[_Entry]) -> int:
        """Most elements of the forward pass that are there at a time and not kept."""
        last_use = {self.memory[entry]: number
                    for number in self.operators for entry in self._inputs(number)}
        over: dict[int, list[_Entry]] = defaultdict(list)
        for entry, number in last_use.items():
            if entry not in kept and not self._is_variable(entry):
                over[number].append(entry)
        now = most = 0
        for number in self.operators:
            now += sum(self.sizes[entry] for entry in self.outputs[number]
                       if self.memory[entry] == entry and entry not in kept)
            most = max(most, now)
            now -= sum(self.sizes[entry] for entry in over[number])
        return most

    def _passing_backward(self) -> int:
        """Most elements of gradients of maps that are there at a time."""
        final = _Entry(self.operators[-1], 0)
        gradients = {final}
        now = most = self.sizes[final]
        for number in reversed(self.operators):
            if number not in self.trained or self.nodes[number]["op"] in _SAME_MEMORY:
                continue
            for entry in {self.memory[entry] for entry in self._inputs(number)
                          if entry.node in self.trained}:
                if self._is_variable(entry):
                    continue  # gradients of parameters have memory of their own
                if entry in gradients:  # a second one is added to the first
                    most = max(most, now + self.sizes[entry])
                else:
                    gradients.add(entry)
                    now += self.sizes[entry]
            most = max(most, now)
            done = gradients.intersection(self.outputs[number])
            gradients -= done
            now -= sum(self.sizes[entry] for entry in done)
        return most


def _kept_by(node: dict[str, Any]) -> _Kept:
    """What the gradient of a node reads; of an operator that is not known, all that it can."""
    if node["op"] in KNOWN_OPERATORS:
        return _KEPT.get(node["op"], _Kept())
    return _Kept(tuple(range(len(node["inputs"]))), output=True)


def _is_seed_rate(name: str) -> bool:
    return name.endswith("seed_rate")  # the input of a DropBlock


def _sizes(
    graph: mx.sym.Symbol, nodes: list[dict[str, Any]], shapes: dict[str, tuple[int, ...]]
) -> dict[_Entry, int]:
    internals = graph.get_internals()
    rates = {name: (1,) for name in internals.list_arguments() if _is_seed_rate(name)}
    _, found, _ = internals.infer_shape(**shapes, **rates)
    # Nodes may share a name; both lists run in the same order.
    by_name: dict[str, deque[int]] = defaultdict(deque)
    for name, shape in zip(internals.list_outputs(), found):
        by_name[name].append(prod(shape))
    sizes: dict[_Entry, int] = {}
    for number, node in enumerate(nodes):
        name = node["name"]
        if node["op"] == "null":
            names = [name]
        elif by_name[f"{name}_output"]:
            names = [f"{name}_output"]
        else:
            names = [f"{name}_output{output}"
                     for output in range(int(node["attrs"]["num_outputs"]))]
        for output, key in enumerate(names):
            sizes[_Entry(number, output)] = by_name[key].popleft()
    return sizes
