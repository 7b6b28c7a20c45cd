"""The 8-bit operators of exported graphs, as :mod:`~.symbol_operators` has the others.

An 8-bit tensor goes with the two ends of its range: operators take and give three values. Those of
oneDNN that compute a convolution with its sum and ReLU hold that as a subgraph, which must be just
what their attributes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from gluon_resnest.deploy.strict_json import RefusedError
from gluon_resnest.deploy.symbol_json import is_name, is_same
from gluon_resnest.deploy.symbol_operators import (
    FLOAT,
    OPERATORS,
    Operator,
    Value,
    number,
    one_of,
    operator,
    read_attributes,
    require,
)

EIGHT_BIT, END = "8-bit", "end of a range"
_EIGHT = (EIGHT_BIT, END, END)
_range = {"min_calib_range": number(-1e30, 1e30), "max_calib_range": number(-1e30, 1e30)}
_yes = one_of({"True": True, "true": True})

Fused = Callable[[Sequence[Value], Mapping[str, str], Any], list]


def _eight_bit(shape: tuple[int, ...]) -> list[Value]:
    return [Value(shape, EIGHT_BIT), Value((1,), END), Value((1,), END)]


def _as_float(value: Value) -> Value:
    return Value(value.shape)


@operator((FLOAT,), tuple(_range), out_type=one_of({"auto": "auto"}), **_range)
def quantize(x, min_calib_range, max_calib_range, out_type="auto"):
    require(min_calib_range < max_calib_range, "has an empty range", x)
    return _eight_bit(x.shape)


@operator(_EIGHT)
def dequantize(x, low, high):
    return _as_float(x)


@operator(_EIGHT)
def quantized_flatten(x, low, high):
    return _eight_bit(OPERATORS["Flatten"]([_as_float(x)], {})[0].shape)


@operator((EIGHT_BIT, EIGHT_BIT, END, END, END, END), tuple(_range), **_range)
def quantized_add(x, y, *ends, min_calib_range, max_calib_range):
    require(x.shape == y.shape and min_calib_range < max_calib_range, "takes two of one shape", x,
            y)
    # The radix's maps come from ReLU, so they are unsigned, and oneDNN adds them as such.
    require(min_calib_range >= 0, "has a range below 0 after ReLU", x, y)
    return _eight_bit(x.shape)


def quantized_pooling(inputs: Sequence[Value], attributes: Mapping[str, str]) -> list[Value]:
    _expect(inputs, _EIGHT)
    return _eight_bit(OPERATORS["Pooling"]([_as_float(inputs[0])], attributes)[0].shape)


def fused_convolution(inputs: Sequence[Value], attributes: Mapping[str, str],
                      subgraph: Any) -> list[Value]:
    """Convolution, and ReLU or a sum with ReLU; on 8 bits or float."""
    read = read_attributes(attributes, {
        "quantized": _yes, "with_act": _yes, "with_sum": _yes, "with_postsum_act": _yes, **_range})
    quantized, adds = "quantized" in read, "with_sum" in read
    if (adds != ("with_postsum_act" in read) or (adds and "with_act" in read)
            or any((name in read) != quantized for name in _range)):
        raise RefusedError("has attributes that contradict each other")
    _expect(inputs, (EIGHT_BIT if quantized else FLOAT, FLOAT, FLOAT,
                     *([EIGHT_BIT if quantized else FLOAT] if adds else []),
                     *([END] * (4 if adds else 2) if quantized else [])))
    kinds: list[tuple[str, list[int]]] = [("Convolution", [0, 1, 2])]
    if adds:
        kinds += [("null", []), ("elemwise_add", [3, 4])]
    if adds or "with_act" in read:
        kinds.append(("Activation", [2 + len(kinds)]))
    output, = OPERATORS["Convolution"]([_as_float(value) for value in inputs[:3]],
                                       _within(subgraph, kinds))
    if adds:
        require(inputs[3].shape == output.shape, "adds another shape", *inputs)
    if not quantized:
        return [output]
    require(read["min_calib_range"] < read["max_calib_range"], "has an empty range", *inputs)
    # After ReLU oneDNN gives unsigned numbers, and whatever reads them wants a range that says so.
    require(len(kinds) == 1 or read["min_calib_range"] >= 0, "has a range below 0 after ReLU",
            *inputs)
    return _eight_bit(output.shape)


def fused_classifier(inputs: Sequence[Value], attributes: Mapping[str, str],
                     subgraph: Any) -> list[Value]:
    names = ("quantized", "enable_float_output", "channel_wise_quantize")
    read_attributes(attributes, dict.fromkeys(names, _yes), names)
    _expect(inputs, (EIGHT_BIT, FLOAT, FLOAT, END, END))
    return OPERATORS["FullyConnected"](
        [_as_float(value) for value in inputs[:3]],
        _within(subgraph, [("FullyConnected", [0, 1, 2])]))


def _expect(inputs: Sequence[Value], kinds: Sequence[str]) -> None:
    found = [value.kind for value in inputs]
    if found != list(kinds):
        raise RefusedError(f"takes {', '.join(kinds)}; it is given {', '.join(found) or 'nothing'}")


def _within(subgraph: Any, kinds: Sequence[tuple[str, list[int]]]) -> dict[str, str]:
    """Attributes of the first operator of a subgraph, which must have three variables and `kinds`.

    `kinds` are operators with the places of their inputs.
    """
    kinds = [("null", [])] * 3 + list(kinds)
    try:
        names = [node["name"] for node in subgraph["nodes"]]
        attributes = subgraph["nodes"][3].get("attrs", {})
        fits = (len(names) == len(kinds) and all(is_name(name) for name in names)
                and all(isinstance(text, str) for text in attributes.values()))
    except (TypeError, KeyError, IndexError, AttributeError):
        fits = False
    if not fits:
        raise RefusedError("has another subgraph than its attributes say")
    nodes = []
    for place, ((op, sources), name) in enumerate(zip(kinds, names)):
        own = attributes if place == 3 else {"act_type": "relu"} if op == "Activation" else {}
        nodes.append({"op": op, "name": name, **({"attrs": own} if own else {}),
                      "inputs": [[source, 0, 0] for source in sources]})
    expected = {"nodes": nodes, "heads": [[len(nodes) - 1, 0, 0]],
                "arg_nodes": [place for place, (op, _) in enumerate(kinds) if op == "null"],
                "node_row_ptr": list(range(len(nodes) + 1))}
    if not is_same(subgraph, expected):
        raise RefusedError("has another subgraph than its attributes say")
    return attributes


INT8_OPERATORS: dict[str, Operator] = {
    "_contrib_quantize_v2": quantize, "_contrib_dequantize": dequantize,
    "_contrib_quantized_flatten": quantized_flatten,
    "_contrib_quantized_elemwise_add": quantized_add,
    "_contrib_quantized_pooling": quantized_pooling}
FUSED: dict[str, Fused] = {"_sg_mkldnn_conv": fused_convolution,
                           "_sg_mkldnn_fully_connected": fused_classifier}
