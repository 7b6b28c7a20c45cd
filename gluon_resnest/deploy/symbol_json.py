"""The JSON of a symbol, read so strictly that nothing surprising is left for MXNet's parser.

MXNet follows indices and addresses in a ``-symbol.json`` without looking: a hostile one ends the
process, or runs what lies at an address. A digest in ``model.json`` does not help, as whoever
changes one changes both. So the file is read here, :mod:`~.symbol_check` compares it with what
this package writes, and MXNet is given the text of what was checked, never the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Tuple

from gluon_resnest.deploy.strict_json import RefusedError, read_json, shown

_LARGEST_FILE = 8 << 20  # bytes; 1.4 million for ResNeSt-269 on 8 bits
_MOST_NODES = 20_000
_DEEPEST = 9  # lists and objects in each other; an input of a node of a subgraph
# Without quotes and backslashes, which MXNet's parser reads in its own way.
_NAME = re.compile(r'[ !#-\[\]-~]{1,200}')
_VERSIONS = range(10000, 20000)  # MXNet 1.x; it converts older files, which is code of its own

Reference = Tuple[int, int, int]


@dataclass(frozen=True)
class Node:
    """One operator or variable.

    Attributes
    ----------
    inputs
        Places of nodes before this one, which of their outputs, and how often it was written to by
        then, which MXNet counts for batch normalisation's statistics.
    subgraph
        What a fused operator consists of, as JSON, or None.
    """

    op: str
    name: str
    attributes: dict[str, str]
    inputs: tuple[Reference, ...]
    subgraph: dict[str, Any] | None

    def __str__(self) -> str:
        return f"node '{self.name}' ({self.op})"


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of their computation, the outputs, and the version that wrote them."""

    nodes: tuple[Node, ...]
    heads: tuple[Reference, ...]
    version: int

    def text(self) -> str:
        """JSON for MXNet."""
        nodes = []
        for node in self.nodes:
            one: dict[str, Any] = {"op": node.op, "name": node.name,
                                   "inputs": node.inputs}
            if node.attributes:
                one["attrs"] = node.attributes
            if node.subgraph is not None:
                one["subgraphs"] = [node.subgraph]
            nodes.append(one)
        return json.dumps({
            "nodes": nodes,
            "arg_nodes": [place for place, node in enumerate(self.nodes) if node.op == "null"],
            "heads": self.heads,
            "attrs": {"mxnet_version": ["int", self.version]}})


def read_graph(path: Path) -> Graph:
    """The graph in a file.

    Raises
    ------
    RefusedError
        It is not JSON of the form that MXNet 1.9 writes, or larger than any network of this
        package.
    OSError
        The file cannot be read.
    """
    read = read_json(path, _LARGEST_FILE, _DEEPEST)
    _check_values(read)
    whole = _fields(read, "the symbol", {"nodes": list, "arg_nodes": list, "node_row_ptr": list,
                                         "heads": list, "attrs": dict})
    if not 1 <= len(whole["nodes"]) <= _MOST_NODES:
        raise RefusedError(f"it has {len(whole['nodes'])} nodes (1 to {_MOST_NODES} are allowed)")
    nodes = tuple(_node(one, place) for place, one in enumerate(whole["nodes"]))
    variables = [place for place, node in enumerate(nodes) if node.op == "null"]
    if not is_same(whole["arg_nodes"], variables):
        raise RefusedError("arg_nodes does not list the variables")
    pointers = whole["node_row_ptr"]
    if len(pointers) != len(nodes) + 1 or not all(_is_index(one) for one in pointers):
        raise RefusedError("node_row_ptr does not fit the nodes")
    heads = _references(whole["heads"], len(nodes), "heads")
    if not heads:
        raise RefusedError("it has no output")
    return Graph(nodes, heads, _version(whole["attrs"]))


def is_name(value: Any) -> bool:
    """Whether this is a name of an operator or variable that every parser reads in one way."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _check_values(value: Any) -> None:
    """Refuse what no symbol holds: true, false, null, and numbers with a point."""
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            _check_values(one)
    elif type(value) not in (str, int):
        raise RefusedError(f"it holds the value {shown(value)}")


def _node(one: Any, place: int) -> Node:
    what = f"node {place}"
    fields = _fields(one, what, {"op": str, "name": str, "inputs": list},
                     {"attrs": dict, "subgraphs": list})
    for name in (fields["op"], fields["name"]):
        if not is_name(name):
            raise RefusedError(f"{what} has the name {shown(name)}")
    attributes = fields.get("attrs", {})
    if not all(isinstance(value, str) for value in attributes.values()):
        raise RefusedError(f"{what} has an attribute that is no text")
    subgraphs = fields.get("subgraphs", [None])
    if len(subgraphs) != 1:
        raise RefusedError(f"{what} has {len(subgraphs)} subgraphs")
    return Node(fields["op"], fields["name"], attributes,
                _references(fields["inputs"], place, what), subgraphs[0])


def _references(listed: Sequence[Any], before: int, what: str) -> tuple[Reference, ...]:
    """References to outputs of the first `before` nodes.

    Whether a node has that output is for :mod:`~.symbol_check` to say.
    """
    found = []
    for one in listed:
        if not (isinstance(one, list) and len(one) == 3 and all(_is_index(each) for each in one)
                and one[0] < before):
            raise RefusedError(f"{what} refers to {shown(one)}, which is no output of a node "
                               "before it")
        found.append(tuple(one))
    return tuple(found)


def _version(attributes: dict[str, Any]) -> int:
    kind, version = attributes.get("mxnet_version") if _is_version(attributes) else (None, None)
    if kind != "int" or version not in _VERSIONS:
        raise RefusedError(f"it is not of MXNet 1.x: {shown(attributes)}")
    return version


def _is_version(attributes: dict[str, Any]) -> bool:
    value = attributes.get("mxnet_version")
    return len(attributes) == 1 and isinstance(value, list) and len(value) == 2 and _is_index(
        value[1])


def _fields(value: Any, what: str, needed: dict[str, type],
            optional: dict[str, type] | None = None) -> dict[str, Any]:
    known = {**needed, **(optional or {})}
    if not isinstance(value, dict):
        raise RefusedError(f"{what} is {shown(value)}")
    unknown = [name for name in value if name not in known]
    wrong = [name for name, kind in known.items()
             if name in value and not isinstance(value[name], kind)]
    missing = [name for name in needed if name not in value]
    for fault, names in (("has the unknown field", unknown), ("has a wrong", wrong),
                         ("lacks", missing)):
        if names:
            raise RefusedError(f"{what} {fault} {shown(names[0])}")
    return value


def is_same(found: Any, expected: Any) -> bool:
    """Whether two values of JSON are equal, in their types too (1 is not true)."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31
