"""Normalise 64 ASCII bytes at a time, with the processor's own instruction for leaving bytes out (AVX-512 VBMI2).

The 64 bytes become masks of 64 bits: which are white space, which are deleted, which begin a run of white space. What is
kept moves together in one instruction. Without these instructions normalisation.py goes byte by byte; texts are the same.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from btlm_data.kernels import processor
from btlm_data.kernels.compiler import intrinsic, types

BLOCK = 64  # bytes
_BYTE, _MASK = ir.IntType(8), ir.IntType(64)
_BYTES, _BITS = ir.VectorType(_BYTE, BLOCK), ir.VectorType(ir.IntType(1), BLOCK)
_SPACE = 0x20
_WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f "  # of ASCII, as str.isspace has it
_TO_LOWER = 0x20  # from a capital to its small letter


def has_instructions() -> bool:
    """Whether kernels are compiled for a processor that has them."""
    return processor.has("avx512bw", "avx512vbmi2", "bmi2", "popcnt")


def _normalise_block(
    _context: Any, source: Any, at: Any, count: Any, target: Any, to: Any, after_space: Any
) -> Any:
    """(consumed, written, after_space), uint64: normalise the first `count` bytes of source[at : at + 64] up to the first that
    is not ASCII, into target[to : to + 64], whose end is left as it comes. count: 1 to 64. after_space: 1 where white space or
    nothing stands before, else 0. No bounds are checked. Where the instructions are missing, nothing is consumed.
    """
    number: Any = types.uint64
    results: Any = types.UniTuple

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, at, count, _, to, after_space = arguments
        if not has_instructions():
            zero = _MASK(0)
            return context.make_tuple(builder, signature.return_type, (zero, zero, after_space))
        inputs = builder.load(_address(context, builder, signature, arguments, 0, at))
        inputs.align = 1
        high = builder.bitcast(builder.icmp_signed("<", inputs, _all(0)), _MASK)
        length = builder.cttz(high, ir.IntType(1)(0))
        length = builder.select(builder.icmp_unsigned("<", length, count), length, count)
        valid = builder.lshr(_MASK(-1), builder.sub(_MASK(64), length))
        valid = builder.select(builder.icmp_unsigned("==", length, _MASK(0)), _MASK(0), valid)
        spaces = builder.and_(_mask(builder, inputs, _WHITE_SPACE), valid)
        deleted = builder.and_(_mask(builder, inputs, string.punctuation), valid)
        capitals = _chosen(builder, inputs, string.ascii_uppercase)
        mapped = builder.select(capitals, builder.add(inputs, _all(_TO_LOWER)), inputs)
        mapped = builder.select(builder.bitcast(spaces, _BITS), _all(_SPACE), mapped)
        # Behind white space: right behind it, and on through what is deleted there (a sum carries through a run of ones).
        behind = builder.or_(builder.shl(spaces, _MASK(1)), after_space)
        carried = builder.add(builder.and_(behind, deleted), deleted)
        behind = builder.or_(behind, builder.xor(carried, deleted))
        repeated = builder.and_(spaces, behind)
        stays = builder.and_(valid, builder.not_(deleted))
        kept = builder.and_(stays, builder.not_(repeated))
        together = builder.call(_compress(builder), [mapped, _all(0), builder.bitcast(kept, _BITS)])
        builder.store(together, _address(context, builder, signature, arguments, 3, to)).align = 1
        # The last character that stays says what the next block comes after.
        nothing = builder.icmp_unsigned("==", stays, _MASK(0))
        top = builder.xor(builder.ctlz(stays, ir.IntType(1)(0)), _MASK(63))
        top = builder.select(nothing, _MASK(0), top)
        is_space = builder.and_(builder.lshr(spaces, top), _MASK(1))
        after_space = builder.select(nothing, after_space, is_space)
        return context.make_tuple(builder, signature.return_type, (length, builder.ctpop(kept), after_space))

    return results(number, 3)(source, number, number, target, number, number), generate


def _compress(builder: Any) -> Any:
    """The instruction: bytes of the first vector where the mask is set, together; behind them those of the second."""
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES, _BITS])
    return builder.module.declare_intrinsic("llvm.x86.avx512.mask.compress.v64i8", fnty=kind)


def _all(value: int) -> Any:
    return ir.Constant(_BYTES, [value] * BLOCK)


def _mask(builder: Any, inputs: Any, characters: str) -> Any:
    """A bit for each byte: it is one of these characters."""
    return builder.bitcast(_chosen(builder, inputs, characters), _MASK)


def _chosen(builder: Any, inputs: Any, characters: str) -> Any:
    chosen: Any = None
    for first, number in _ranges(characters):
        part = builder.icmp_unsigned("<", builder.sub(inputs, _all(first)), _all(number))
        chosen = part if chosen is None else builder.or_(chosen, part)
    return chosen


def _ranges(characters: str) -> Iterator[tuple[int, int]]:
    """The first of each run of neighbouring characters, and how many they are."""
    points = sorted(map(ord, characters))
    first = points[0]
    for point, following in zip(points, [*points[1:], -1], strict=True):
        if following != point + 1:
            yield first, point + 1 - first
            first = following


def _address(context: Any, builder: Any, signature: Any, arguments: Any, which: int, offset: Any) -> Any:
    """Where 64 bytes of an array of bytes stand."""
    array = context.make_array(signature.args[which])(context, builder, arguments[which])
    return builder.bitcast(builder.gep(array.data, [offset]), _BYTES.as_pointer())


# The compiled form takes one argument fewer than the function above, which a type checker cannot follow.
normalise_block: Any = intrinsic(_normalise_block)
