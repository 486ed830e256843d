"""What numba has no function for: operations on 64-bit words, and the size of an element as a constant. Compiled into the kernels that
use them.

load64 and store64 need no alignment and check no bounds: callers leave eight bytes. Byte order is the
machine's: little-endian, as on every machine numba supports.
"""

from __future__ import annotations

from typing import Any

from btlm_data.kernels.compiler import cgutils, intrinsic, types


def _load64(_context: Any, array: Any, offset: Any) -> Any:
    """Eight bytes of a contiguous array from byte `offset` on, any alignment, as a little-endian uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_address(context, builder, signature, arguments))
        value.align = 1
        return value

    return types.uint64(array, types.int64), generate


def _store64(_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Store a uint64 as eight little-endian bytes of a contiguous array from byte `offset` on, any
    alignment.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


def _trailing_zeros(_context: Any, value: Any) -> Any:
    """The number of zero bits below the lowest set bit of a uint64, as int64; 64 for 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), generate


def _itemsize(_context: Any, array: Any) -> Any:
    """Bytes of an element, known when the kernel is compiled: `array.itemsize` is looked up, and multiplied by."""
    size = array.dtype.bitwidth // 8

    def generate(context: Any, _builder: Any, _signature: Any, _arguments: Any) -> Any:
        return context.get_constant(types.int64, size)

    return types.int64(array), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    start = builder.bitcast(array.data, context.get_value_type(types.uint8).as_pointer())
    return builder.bitcast(
        builder.gep(start, [arguments[1]]), context.get_value_type(types.uint64).as_pointer()
    )


# The compiled forms take one argument fewer than the functions above, which a type checker cannot follow.
load64: Any = intrinsic(_load64)
store64: Any = intrinsic(_store64)
trailing_zeros: Any = intrinsic(_trailing_zeros)
itemsize: Any = intrinsic(_itemsize)
