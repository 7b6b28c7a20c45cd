"""Make a write that MXNet 1.9.1 hides known to its engine.

The gradient of the operator ``BatchNormWithReLU`` updates the running statistics, but its
registration in MXNet lacks the line that says so (``FMutateInputs``, which the gradient of
``BatchNorm`` has). The engine orders operators by what they declare. So whoever reads the running
statistics after ``loss.backward()`` (to save, copy, cast or evaluate) does not wait for the
gradient and gets values of an earlier step.

MXNet has no function that adds the line after the library was compiled. Here the entry of
``BatchNorm``'s gradient is copied to that of ``BatchNormWithReLU``'s in the library's table, once
per process. Both gradients take the statistics as inputs 6 and 7, so the same entry is right for
both. It costs nothing at run time, and every way of reading is safe, including arrays that somebody
took before the step.

The table is reached through C++ structures, so this is done only for the build whose layout is
known: MXNet 1.9.1 for Linux on x86-64, compiled with the C++ ABI of its wheels. Anywhere else
:func:`writes_are_declared` is False and normalisation and ReLU stay two operators.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from ctypes import c_bool, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from functools import lru_cache

import mxnet as mx
from mxnet.base import _LIB, check_call

_PLAIN, _FUSED = b"_backward_BatchNorm", b"_backward_contrib_BatchNormWithReLU"
_ATTRIBUTE = b"FMutateInputs"
_STRING_FROM_CHARS = "_ZNSsC1EPKcRKSaIcE"  # std::string::string(const char*, const allocator&)
_GET_TABLE = "_ZN4nnvm2Op10GetAttrMapERKSs"  # nnvm::Op::GetAttrMap(const std::string&)
_CLONE = 2  # std::__clone_functor, what a std::function's manager is asked to do


class _Operator(ctypes.Structure):
    """nnvm::Op, up to its index in the tables of attributes."""

    _fields_ = (("name", c_char_p), ("before_index", c_uint64 * 18), ("index", c_uint32))


class _Any(ctypes.Structure):
    """dmlc::any with a value on the heap."""

    _fields_ = (("type", c_void_p), ("value", c_void_p))


class _Entry(ctypes.Structure):
    """std::pair<std::function, int>: the function, and 0 where an operator has none."""

    _fields_ = (("functor", c_uint64 * 2), ("manager", c_void_p), ("invoker", c_void_p),
                ("level", c_int))


class _Table(ctypes.Structure):
    """nnvm::OpMap: the attribute's name, and a std::vector of entries by operator's index."""

    _fields_ = (("name", c_char_p), ("begin", c_void_p), ("end", c_void_p))


@lru_cache(maxsize=None)
def writes_are_declared() -> bool:
    """Declare the write, the first time this is called; whether the engine now knows of it."""
    if not _layout_is_known():
        return False
    plain, fused = _operator(_PLAIN), _operator(_FUSED)
    table = _mutated_inputs()
    if (plain.name, fused.name, table.name) != (_PLAIN, _FUSED, _ATTRIBUTE):
        return False
    length = (table.end - table.begin) // ctypes.sizeof(_Entry)
    if not (0 < plain.index < length and 0 < fused.index < length):
        return False
    entries = ctypes.cast(table.begin, ctypes.POINTER(_Entry))
    source, target = entries[plain.index], entries[fused.index]
    if target.level:  # a build that declares the write itself
        return True
    if not (source.level and source.manager):
        return False
    # As C++ copies a std::function: each copy owns what it captured, and frees it at exit. (Two
    # threads that come here at once write the same.)
    copy_function = ctypes.CFUNCTYPE(c_bool, c_void_p, c_void_p, c_int)(source.manager)
    copy_function(ctypes.addressof(target), ctypes.addressof(source), _CLONE)
    target.manager, target.invoker = source.manager, source.invoker
    target.level = source.level
    return True


def _layout_is_known() -> bool:
    return (mx.__version__ == "1.9.1" and sys.platform == "linux"
            and platform.machine() == "x86_64"
            and hasattr(_LIB, _GET_TABLE) and hasattr(_LIB, _STRING_FROM_CHARS))


def _operator(name: bytes) -> _Operator:
    handle = c_void_p()
    check_call(_LIB.NNGetOpHandle(name, ctypes.byref(handle)))
    return _Operator.from_address(handle.value)


def _mutated_inputs() -> _Table:
    make_string, get_table = getattr(_LIB, _STRING_FROM_CHARS), getattr(_LIB, _GET_TABLE)
    make_string.argtypes, make_string.restype = (c_void_p, c_char_p, c_void_p), None
    get_table.argtypes, get_table.restype = (c_void_p,), ctypes.POINTER(_Any)
    string, allocator = c_void_p(), c_void_p()
    make_string(ctypes.byref(string), _ATTRIBUTE, ctypes.byref(allocator))
    return _Table.from_address(get_table(ctypes.byref(string)).contents.value)
