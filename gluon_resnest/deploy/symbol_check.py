"""Whether a symbol computes only what this package's graphs compute, within bounds.

:func:`check_graph` goes through the nodes with the shapes of images and of the arrays, as MXNet
would, and refuses whatever :mod:`~.symbol_operators` does not know. What it lets pass can be slow,
or compute nonsense, but is made of convolutions, poolings and their like on arrays that fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gluon_resnest.deploy.strict_json import RefusedError, shown
from gluon_resnest.deploy.symbol_int8 import FUSED, INT8_OPERATORS
from gluon_resnest.deploy.symbol_json import Graph, Node, Reference
from gluon_resnest.deploy.symbol_operators import (
    FLOAT,
    OPERATORS,
    UINT8,
    Value,
    number,
    read_attributes,
    whole_numbers,
)

_MOST_VALUES = 1 << 27  # of a tensor: 512 MB
_DTYPES = {FLOAT: "0", UINT8: "3"}  # as MXNet numbers them
# Of variables. Initialisers can be any text; they are dropped, as the arrays are there.
_VARIABLE = {"__shape__", "__dtype__", "__storage_type__", "__lr_mult__", "__wd_mult__",
             "__init__"}


def check_graph(graph: Graph, input_name: str, image: Value,
                arrays: Mapping[str, tuple[int, ...]]) -> tuple[Graph, list[tuple[int, ...]]]:
    """Refuse a graph that is not of this package, or does not fit its arrays.

    Parameters
    ----------
    graph
        From :func:`~.symbol_json.read_graph`.
    input_name, image
        Name of the input, and what it is: (N, C, H, W), `FLOAT`, or (N, H, W, 3), `UINT8`.
    arrays
        Shapes of the float32 arrays beside it, by name.

    Returns
    -------
    graph
        The part of it that MXNet is to see.
    shapes
        Of the outputs, for those images.

    Raises
    ------
    RefusedError
        With the node and the reason.
    """
    shapes, nodes = dict(arrays), []
    values: list[list[Value]] = []
    found_input = False
    for node in graph.nodes:
        try:
            if node.op != "null":
                outputs = _compute(node, values)
            elif node.name == input_name and not found_input:
                found_input, outputs = True, [image]
            elif node.name in shapes:
                outputs = [Value(shapes.pop(node.name), FLOAT)]
            else:
                raise RefusedError(f"has no array, or a second time (the input is {input_name})")
            if node.op == "null":
                node = replace(node, attributes=_variable(node, outputs[0]))
            for value in outputs:
                if math.prod(value.shape) > _MOST_VALUES:
                    raise RefusedError(f"gives {value.shape}, more than {_MOST_VALUES} values")
        except RefusedError as error:
            raise RefusedError(f"{node} {error}") from None
        nodes.append(node)
        values.append(outputs)
    if shapes or not found_input:
        raise RefusedError(f"it does not use {shown(next(iter(shapes), input_name))}")
    outputs = [_output(values, head) for head in graph.heads]
    if any(value.kind != FLOAT for value in outputs):
        raise RefusedError("an output is not float32")
    return replace(graph, nodes=tuple(nodes)), [value.shape for value in outputs]


def _compute(node: Node, values: list[list[Value]]) -> list[Value]:
    inputs = [_output(values, source) for source in node.inputs]
    fused = FUSED.get(node.op)
    if (fused is None) != (node.subgraph is None):
        raise RefusedError("must have a subgraph, or must have none")
    if fused is not None:
        return fused(inputs, node.attributes, node.subgraph)
    operator = OPERATORS.get(node.op) or INT8_OPERATORS.get(node.op)
    if operator is None:
        raise RefusedError("is an operator that no exported network has")
    return operator(inputs, node.attributes)


def _output(values: list[list[Value]], source: Reference) -> Value:
    place, output, _ = source
    if not (place < len(values) and output < len(values[place])):
        raise RefusedError(f"refers to output {output} of node {place}, which has none such")
    return values[place][output]


def _variable(node: Node, value: Value) -> dict[str, str]:
    """Attributes of a variable as MXNet may see them."""
    if node.inputs or node.subgraph is not None or not set(node.attributes) <= _VARIABLE:
        raise RefusedError("is a variable with inputs or unknown attributes")
    attributes = {key: text for key, text in node.attributes.items() if key != "__init__"}
    read: dict[str, Any] = read_attributes(attributes, {
        "__shape__": whole_numbers(1, 1 << 31), "__dtype__": re.compile("[0-6]").fullmatch,
        "__storage_type__": re.compile("0").fullmatch, "__lr_mult__": number(0, 1e6),
        "__wd_mult__": number(0, 1e6)})
    if "__shape__" in read and read["__shape__"] != value.shape:
        raise RefusedError(f"says it is {attributes['__shape__']}, and is {value.shape}")
    if attributes.get("__dtype__", _DTYPES[value.kind]) != _DTYPES[value.kind]:
        raise RefusedError(f"says it has numbers of kind {attributes['__dtype__']}")
    return attributes
