"""The operators that this package's graphs consist of: attributes, their bounds, and shapes.

Each operator is a function from its inputs and attributes to its outputs, which raises
:class:`~.strict_json.RefusedError` for whatever this package would not write. The rules are those
of MXNet 1.9.1 (``src/operator``), for the layout NCHW.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from gluon_resnest.deploy.strict_json import RefusedError, shown

FLOAT, UINT8 = "float32", "uint8"
_LARGEST_WINDOW = 16  # kernels, strides, pads and dilations
_MOST_CHANNELS = 1 << 16


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: (N, C, H, W) or less, and its kind of numbers."""

    shape: tuple[int, ...]
    kind: str = FLOAT


Reader = Callable[[str], Any]
Operator = Callable[[Sequence[Value], Mapping[str, str]], list]


# ---- attributes: each reader gives None for a text that is not allowed ----


def whole(low: int, high: int) -> Reader:
    """A whole number."""
    def read(text: str) -> int | None:
        value = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
        return value if value is not None and low <= value <= high else None
    return read


def number(low: float, high: float) -> Reader:
    """A decimal number."""
    def read(text: str) -> float | None:
        if not re.fullmatch(r"-?[0-9]{1,40}(\.[0-9]{1,40})?(e[-+]?[0-9]{1,2})?", text):
            return None
        value = float(text)
        return value if low <= value <= high else None
    return read


def whole_numbers(low: int, high: int, count: int | None = None) -> Reader:
    """A tuple such as ``(3, 3)``."""
    def read(text: str) -> tuple[int, ...] | None:
        if not re.fullmatch(r"\((-?[0-9]{1,9},( -?[0-9]{1,9})?|(-?[0-9]{1,9}, ){1,5}-?[0-9]{1,9})"
                            r"\)", text):
            return None
        values = tuple(int(one) for one in re.findall("-?[0-9]+", text))
        fits = count in (None, len(values)) and all(low <= one <= high for one in values)
        return values if fits else None
    return read


def one_of(values: Mapping[str, Any]) -> Reader:
    """One of a few words, and what each means."""
    return values.get


flag = one_of({"True": True, "true": True, "False": False, "false": False})
_yes = one_of({"True": True, "true": True})
_pair = whole_numbers(1, _LARGEST_WINDOW, 2)
_pads = whole_numbers(0, _LARGEST_WINDOW, 2)
_nchw = one_of({"NCHW": "NCHW"})


def read_attributes(found: Mapping[str, str], known: Mapping[str, Reader],
                    needed: Sequence[str] = ()) -> dict[str, Any]:
    """Values of attributes by name."""
    values = {}
    for name, text in found.items():
        value = known[name](text) if name in known else None
        if value is None:
            raise RefusedError(f"has the attribute {shown(name)} = {shown(text)}, which no "
                               "exported network has")
        values[name] = value
    for name in needed:
        if name not in values:
            raise RefusedError(f"lacks the attribute {name}")
    return values


def operator(inputs: Sequence[str] | None = None, needed: Sequence[str] = (),
             **known: Reader) -> Callable[[Callable[..., Any]], Operator]:
    """Make an operator of a rule from values and attributes to a value or several.

    Parameters
    ----------
    inputs
        Kinds of the inputs; None for any number of float32.
    needed, known
        Attributes that there must be, and how all that there can be are read.
    """
    def decorate(rule: Callable[..., Any]) -> Operator:
        def apply(values: Sequence[Value], attributes: Mapping[str, str]) -> list[Value]:
            read = read_attributes(attributes, known, needed)
            kinds = [FLOAT] * len(values) if inputs is None else list(inputs)
            found = [value.kind for value in values]
            if found != kinds or not found:
                raise RefusedError(f"takes {', '.join(kinds) or 'an input'}; it is given "
                                   f"{', '.join(found) or 'nothing'}")
            outputs = rule(*values, **read)
            return outputs if isinstance(outputs, list) else [outputs]
        return apply
    return decorate


def require(holds: bool, reason: str, *values: Value) -> None:
    """Refuse the node for `reason` unless that `holds` of its inputs."""
    if not holds:
        shapes = ", ".join(str(value.shape) for value in values)
        raise RefusedError(f"{reason} (inputs: {shapes})")


# ---- convolutions, poolings, the classifier ----

_convolution_attributes = {
    "kernel": _pair, "stride": _pair, "dilate": _pair, "pad": _pads,
    "num_filter": whole(1, _MOST_CHANNELS), "num_group": whole(1, _MOST_CHANNELS),
    "layout": _nchw, "no_bias": flag}


@operator(None, ("kernel", "num_filter"), **_convolution_attributes)
def convolution(x, weight, *bias, kernel, num_filter, stride=(1, 1), dilate=(1, 1), pad=(0, 0),
                num_group=1, no_bias=False, layout="NCHW"):
    require(len(x.shape) == 4 and len(bias) == (0 if no_bias else 1), "takes a map, weights and a "
            "bias unless it says no_bias", x, weight, *bias)
    channels = x.shape[1]
    require(channels % num_group == num_filter % num_group == 0,
            f"cannot divide its channels into {num_group} groups", x)
    require(weight.shape == (num_filter, channels // num_group, *kernel)
            and all(one.shape == (num_filter,) for one in bias),
            f"has {num_filter} filters of {kernel} in {num_group} groups, which do not fit", x,
            weight, *bias)
    spans = [step * (size - 1) + 1 for step, size in zip(dilate, kernel)]
    return Value((x.shape[0], num_filter, *(
        _windows(x, size, span, step, edge, math.floor)
        for size, span, step, edge in zip(x.shape[2:], spans, stride, pad))))


def _windows(x: Value, size: int, span: int, step: int, pad: int,
             rounded: Callable[[float], int]) -> int:
    require(pad < span or pad == 0, f"pads by {pad}, as far as its window of {span} goes", x)
    require(size + 2 * pad >= span, f"has a window of {span} pixels, more than the image", x)
    return rounded((size + 2 * pad - span) / step) + 1


_pooling_attributes = {
    "kernel": _pair, "stride": _pair, "pad": _pads, "global_pool": flag, "layout": _nchw,
    "count_include_pad": flag, "pool_type": one_of({"max": "max", "avg": "avg"}),
    "pooling_convention": one_of({"valid": math.floor, "full": math.ceil})}


@operator((FLOAT,), ("kernel", "pool_type"), **_pooling_attributes)
def pooling(x, kernel, pool_type, stride=(1, 1), pad=(0, 0), global_pool=False,
            pooling_convention=math.floor, count_include_pad=True, layout="NCHW"):
    require(len(x.shape) == 4, "takes a map", x)
    if global_pool:
        return Value((*x.shape[:2], 1, 1))
    return Value((*x.shape[:2], *(_windows(x, *one, pooling_convention)
                                  for one in zip(x.shape[2:], kernel, stride, pad))))


@operator((FLOAT, FLOAT, FLOAT), ("num_hidden",), num_hidden=whole(1, 1 << 24), flatten=_yes,
          no_bias=one_of({"False": False}))
def fully_connected(x, weight, bias, num_hidden, flatten=True, no_bias=False):
    require(len(x.shape) >= 2 and weight.shape == (num_hidden, math.prod(x.shape[1:]))
            and bias.shape == (num_hidden,), f"has {num_hidden} outputs, which do not fit", x,
            weight, bias)
    return Value((x.shape[0], num_hidden))


@operator((FLOAT,), output_size=one_of({"1": 1}))
def adaptive_pooling(x, output_size=1):
    require(len(x.shape) == 4, "takes a map", x)
    return Value((*x.shape[:2], 1, 1))


# ---- normalisation ----


@operator((FLOAT,) * 5, eps=number(0, 1), momentum=number(0, 1), axis=one_of({"1": 1}),
          fix_gamma=flag, use_global_stats=flag)
def batch_norm(x, *statistics, **_):
    require(len(x.shape) == 4 and all(one.shape == x.shape[1:2] for one in statistics),
            "has statistics of other channels", x, *statistics)
    return x


@operator((FLOAT,) * 3, ("num_groups",), num_groups=whole(1, _MOST_CHANNELS), eps=number(0, 1))
def group_norm(x, gamma, beta, num_groups, eps=0):
    require(len(x.shape) == 4 and x.shape[1] % num_groups == 0
            and gamma.shape == beta.shape == (num_groups,), f"cannot have {num_groups} groups", x,
            gamma, beta)
    return x


@operator((FLOAT,) * 3, eps=number(0, 1))
def instance_norm(x, gamma, beta, eps=0):
    require(len(x.shape) == 4 and gamma.shape == beta.shape == x.shape[1:2],
            "has statistics of other channels", x, gamma, beta)
    return x


# ---- value by value ----


@operator((FLOAT,))
def same_shape(x):
    return x


@operator((FLOAT,), p=number(0, 0.999), axes=one_of({"()": ()}), cudnn_off=flag)
def dropout(x, **_):
    return x


@operator((FLOAT,), ("act_type",), act_type=one_of({"relu": "relu"}))
def activation(x, act_type):
    return x


@operator((FLOAT, FLOAT))
def elementwise(x, y):
    require(x.shape == y.shape, "takes two of one shape", x, y)
    return x


@operator(None, ("num_args",), num_args=whole(1, 64))
def add_n(*values, num_args):
    require(len(values) == num_args and len({value.shape for value in values}) == 1,
            f"takes {num_args} of one shape", *values)
    return values[0]


@operator((FLOAT, FLOAT))
def broadcast(x, y):
    require(len(x.shape) == len(y.shape) and all(
        a == b or 1 in (a, b) for a, b in zip(x.shape, y.shape)), "takes shapes that fit", x, y)
    return Value(tuple(max(sides) for sides in zip(x.shape, y.shape)))


@operator((FLOAT,), ("axis",), axis=whole(0, 5))
def softmax(x, axis):
    require(axis < len(x.shape), f"has no axis {axis}", x)
    return x


# ---- shapes ----


@operator((FLOAT,), ("shape",), shape=whole_numbers(-1, 1 << 24))
def reshape(x, shape):
    require(shape.count(-1) <= 1 and all(place < len(x.shape) for place, side in enumerate(shape)
                                         if side == 0), f"cannot become {shape}", x)
    sides = [x.shape[place] if side == 0 else side for place, side in enumerate(shape)]
    known = math.prod(side for side in sides if side != -1)
    sides = [math.prod(x.shape) // max(known, 1) if side == -1 else side for side in sides]
    require(min(sides) > 0 and math.prod(sides) == math.prod(x.shape), f"cannot become {shape}", x)
    return Value(tuple(sides))


@operator((FLOAT,), ("num_outputs", "axis"), num_outputs=whole(1, 64), axis=one_of({"1": 1}))
def split(x, num_outputs, axis):
    require(len(x.shape) == 4 and x.shape[1] % num_outputs == 0,
            f"cannot be split into {num_outputs}", x)
    return [Value((x.shape[0], x.shape[1] // num_outputs, *x.shape[2:]))] * num_outputs


@operator((FLOAT,), ("axis", "begin", "end"), axis=one_of({"0": 0}), begin=whole(0, 1 << 24),
          end=whole(1, 1 << 24))
def slice_axis(x, axis, begin, end):
    require(begin < end <= x.shape[0], f"cannot take {begin} to {end}", x)
    return Value((end - begin, *x.shape[1:]))


@operator((FLOAT,), ("axis",), axis=whole(0, 5))
def total(x, axis):
    require(len(x.shape) > 1 and axis < len(x.shape), f"has no axis {axis}", x)
    return Value(x.shape[:axis] + x.shape[axis + 1:])


def transpose(values: Sequence[Value], attributes: Mapping[str, str]) -> list[Value]:
    """Of pixels, too."""
    kind = values[0].kind if values else FLOAT

    @operator((kind,), ("axes",), axes=whole_numbers(0, 5))
    def apply(x, axes):
        require(kind in (FLOAT, UINT8) and sorted(axes) == list(range(len(x.shape))),
                f"cannot be transposed by {axes}", x)
        return Value(tuple(x.shape[axis] for axis in axes), kind)

    return apply(values, attributes)


@operator((UINT8,), ("dtype",), dtype=one_of({"float32": FLOAT}))
def cast(x, dtype):
    return Value(x.shape)


@operator((FLOAT,))
def flatten(x):
    require(len(x.shape) >= 2, "takes a map", x)
    return Value((x.shape[0], math.prod(x.shape[1:])))


OPERATORS: dict[str, Operator] = {
    "Convolution": convolution, "Pooling": pooling, "FullyConnected": fully_connected,
    "_contrib_AdaptiveAvgPooling2D": adaptive_pooling, "BatchNorm": batch_norm,
    "GroupNorm": group_norm, "InstanceNorm": instance_norm, "sigmoid": same_shape,
    "ones_like": same_shape, "zeros_like": same_shape, "Dropout": dropout,
    "Activation": activation, "elemwise_add": elementwise, "elemwise_sub": elementwise,
    "add_n": add_n, "broadcast_add": broadcast, "broadcast_sub": broadcast,
    "broadcast_mul": broadcast, "softmax": softmax, "Reshape": reshape, "SliceChannel": split,
    "slice_axis": slice_axis, "sum": total, "transpose": transpose, "Cast": cast,
    "Flatten": flatten}
