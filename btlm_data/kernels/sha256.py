"""SHA-256 (FIPS 180-4) of two streams of bytes side by side, with the processor's own instructions for it.

One stream leaves half of the unit that runs these instructions idle, as each of its rounds waits for the one before; two
streams take hardly longer than one. Processors of x86 that have the instructions (SHA-NI) are taken by these kernels,
others by hashlib. Sums are the same.

Source of the instructions' order: Gulley and others, "Intel SHA Extensions" (2013), section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from btlm_data.kernels import processor
from btlm_data.kernels.compiler import cgutils, intrinsic, types
from btlm_data.kernels.compiling import jit

BLOCK = 64  # bytes
_PRIMES = [n for n in range(2, 312) if all(n % k for k in range(2, n))]  # the first 64


def _fraction(number: int, root: int) -> int:
    """The first 32 bits of the fraction of a number's square (2) or cube (3) root."""
    scaled, low, high = number << 32 * root, 0, number << 33
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**root <= scaled else (low, middle)
    return low & 0xFFFFFFFF


_START = [_fraction(prime, 2) for prime in _PRIMES[:8]]
_ROUNDS = [_fraction(prime, 3) for prime in _PRIMES]


class Pair(Protocol):
    """The sums of two streams that are still read."""

    def update(self, first: bytes | memoryview, second: bytes | memoryview) -> None:
        """Add the next bytes of each; none of one of them is well."""

    def hexdigests(self) -> tuple[str, str]:
        """The sums of all bytes; nothing can be added afterwards."""


def sha256_pair() -> Pair:
    """Takes two sums at a time, as fast as this processor can."""
    return Kernels() if has_instructions() else Library()


def sums_of(first: Iterator[memoryview], second: Iterator[memoryview]) -> tuple[str, str]:
    """Hex SHA-256 of two streams, side by side. first, second: their pieces, each of which must be there until the next of the
    same stream is asked for.
    """
    pair, streams = sha256_pair(), (first, second)
    pieces, ended = [memoryview(b""), memoryview(b"")], [False, False]
    while True:
        for at, stream in enumerate(streams):
            while not pieces[at] and not ended[at]:
                following = next(stream, None)
                ended[at] = following is None
                pieces[at] = memoryview(b"") if following is None else following
        if all(ended):
            return pair.hexdigests()
        size = max(map(len, pieces)) if any(ended) else min(map(len, pieces))
        pair.update(pieces[0][:size], pieces[1][:size])
        pieces = [piece[size:] for piece in pieces]


def has_instructions() -> bool:
    """Whether kernels are compiled for a processor with instructions for SHA-256."""
    return processor.has("sha", "sse4.1")


class Library:
    """One after the other, by hashlib."""

    def __init__(self) -> None:
        self._sums = hashlib.sha256(), hashlib.sha256()

    def update(self, first: bytes | memoryview, second: bytes | memoryview) -> None:
        """See Pair."""
        self._sums[0].update(first)
        self._sums[1].update(second)

    def hexdigests(self) -> tuple[str, str]:
        """See Pair."""
        return self._sums[0].hexdigest(), self._sums[1].hexdigest()


class Kernels:
    """Both at once."""

    def __init__(self) -> None:
        self._states = np.array([_START, _START], np.uint32)
        self._pending = np.zeros((2, BLOCK), np.uint8)
        self._lengths = np.zeros(2, np.int64)

    def update(self, first: bytes | memoryview, second: bytes | memoryview) -> None:
        """See Pair."""
        _update(self._states, self._pending, self._lengths, _bytes(first), _bytes(second))

    def hexdigests(self) -> tuple[str, str]:
        """See Pair."""
        first, second = (
            b"\x80" + bytes(-(length + 9) % BLOCK) + (8 * length).to_bytes(8, "big")
            for length in self._lengths.tolist()
        )
        self.update(first, second)
        sums = [state.astype(">u4").tobytes().hex() for state in self._states]
        return sums[0], sums[1]


def _bytes(data: bytes | memoryview) -> npt.NDArray[np.uint8]:
    """As an array that nobody writes to, so that there is one compiled form."""
    array = np.frombuffer(data, np.uint8)
    array.flags.writeable = False
    return array


@jit
def _update(
    states: npt.NDArray[np.uint32],
    pending: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    first: npt.NDArray[np.uint8],
    second: npt.NDArray[np.uint8],
) -> None:
    """Add bytes to two sums. states: (2, 8); pending: (2, BLOCK), the beginning of each stream's next block; lengths: (2,),
    bytes of each stream so far; first, second: (n,) each.
    """
    at = _complete(states, pending, lengths, 0, first)
    other = _complete(states, pending, lengths, 1, second)
    blocks = min((len(first) - at) // BLOCK, (len(second) - other) // BLOCK)
    _compress_two(states, first, at, second, other, blocks)
    _finish(states, pending, 0, first, at + blocks * BLOCK)
    _finish(states, pending, 1, second, other + blocks * BLOCK)
    lengths[0] += len(first)
    lengths[1] += len(second)


@jit
def _complete(
    states: npt.NDArray[np.uint32],
    pending: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    lane: int,
    data: npt.NDArray[np.uint8],
) -> int:
    """Complete the block that a stream has begun, if it has; how many bytes that took."""
    filled = int(lengths[lane]) % BLOCK
    if filled == 0:
        return 0
    taken = min(BLOCK - filled, len(data))
    pending[lane, filled : filled + taken] = data[:taken]
    if filled + taken == BLOCK:
        _compress_one(states, lane, pending[lane], 0, 1)
    return taken


@jit
def _finish(
    states: npt.NDArray[np.uint32],
    pending: npt.NDArray[np.uint8],
    lane: int,
    data: npt.NDArray[np.uint8],
    at: int,
) -> None:
    """Add the whole blocks of a stream from a byte on, and keep what is left."""
    blocks = (len(data) - at) // BLOCK
    _compress_one(states, lane, data, at, blocks)
    left = len(data) - at - blocks * BLOCK
    pending[lane, :left] = data[len(data) - left :]


# What numba has no function for -------------------------------------------------------------------------------

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_WORDS, _BYTES = ir.VectorType(_WORD, 4), ir.VectorType(ir.IntType(8), 16)
# Words of a block are big-endian.
_SWAPPED = [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12]


def _one(_context: Any, states: Any, lane: Any, data: Any, begin: Any, blocks: Any) -> Any:
    """Add `blocks` blocks, from byte `begin` of `data` on, to the state in row `lane`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        state = _row(context, builder, signature.args[0], arguments[0], arguments[1])
        start = _at(context, builder, signature.args[2], arguments[2], arguments[3])
        _compress(builder, [state], [start], arguments[4])
        return context.get_dummy_value()

    return types.void(states, types.int64, data, types.int64, types.int64), generate


def _two(
    _context: Any, states: Any, first: Any, begin: Any, second: Any, other_begin: Any, blocks: Any
) -> Any:
    """Add as many blocks of `first` to the state in row 0 as of `second` to that in row 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = [
            _row(context, builder, signature.args[0], arguments[0], ir.Constant(_LONG, n)) for n in (0, 1)
        ]
        starts = [_at(context, builder, signature.args[k], arguments[k], arguments[k + 1]) for k in (1, 3)]
        _compress(builder, rows, starts, arguments[5])
        return context.get_dummy_value()

    return types.void(states, first, types.int64, second, types.int64, types.int64), generate


# The compiled forms take one argument fewer than the functions above, which a type checker cannot follow.
_compress_one: Any = intrinsic(_one)
_compress_two: Any = intrinsic(_two)


def _at(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """The address of a byte of a contiguous array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])


def _row(context: Any, builder: Any, kind: Any, states: Any, row: Any) -> Any:
    """The address of a state."""
    return _at(context, builder, kind, states, builder.mul(row, ir.Constant(_LONG, 32)))


def _load(builder: Any, address: Any, offset: int) -> Any:
    """Four words from a byte on."""
    at = builder.gep(address, [ir.Constant(_LONG, offset)])
    value = builder.load(builder.bitcast(at, _WORDS.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, address: Any, offset: int) -> None:
    at = builder.gep(address, [ir.Constant(_LONG, offset)])
    builder.store(value, builder.bitcast(at, _WORDS.as_pointer())).align = 1


def _chosen(builder: Any, low: Any, high: Any, numbers: Sequence[int]) -> Any:
    """Words (bytes) of two vectors by their numbers, those of `high` behind those of `low`."""
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_WORD, len(numbers)), numbers))


def _compress(builder: Any, states: Sequence[Any], starts: Sequence[Any], blocks: Any) -> None:
    """A loop over the blocks of some streams side by side. states: addresses of a to h of each; starts: of the first block
    of each; blocks: of each, 0 or more.

    The instructions take a state as (f, e, b, a) and (h, g, d, c), from the lowest word on.
    """
    before = []
    for state in states:
        low, high = _load(builder, state, 0), _load(builder, state, 16)
        before += [_chosen(builder, low, high, (5, 4, 1, 0)), _chosen(builder, low, high, (7, 6, 3, 2))]
    entry, loop, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
    zero = ir.Constant(_LONG, 0)
    builder.cbranch(builder.icmp_signed(">", blocks, zero), loop, done)
    builder.position_at_end(loop)
    number, old = builder.phi(_LONG), [builder.phi(_WORDS) for _ in before]
    offset = builder.mul(number, ir.Constant(_LONG, BLOCK))
    new = _rounds(builder, old, [builder.gep(start, [offset]) for start in starts])
    following = builder.add(number, ir.Constant(_LONG, 1))
    builder.cbranch(builder.icmp_signed("<", following, blocks), loop, done)
    for phi, first, again in zip((number, *old), (zero, *before), (following, *new), strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(again, loop)
    builder.position_at_end(done)
    after = [builder.phi(_WORDS) for _ in before]
    for phi, first, last in zip(after, before, new, strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(last, loop)
    for k, state in enumerate(states):
        low, high = after[2 * k : 2 * k + 2]
        _store(builder, _chosen(builder, low, high, (3, 2, 7, 6)), state, 0)
        _store(builder, _chosen(builder, low, high, (1, 0, 5, 4)), state, 16)


def _rounds(builder: Any, states: Sequence[Any], blocks: Sequence[Any]) -> list[Any]:
    """The 64 rounds of one block of each stream. states: two vectors of each; blocks: addresses. The streams' instructions
    alternate, so that none waits for the one before it.
    """
    module = builder.module
    three, two = ir.FunctionType(_WORDS, [_WORDS] * 3), ir.FunctionType(_WORDS, [_WORDS] * 2)
    declared: Any = cgutils.get_or_insert_function
    two_rounds = declared(module, three, "llvm.x86.sha256rnds2")
    schedule = [declared(module, two, f"llvm.x86.sha256msg{n}") for n in (1, 2)]
    words = []  # of each stream's message schedule, four to a vector
    for block in blocks:
        loaded = [builder.bitcast(_load(builder, block, at), _BYTES) for at in range(0, BLOCK, 16)]
        words.append([builder.bitcast(_chosen(builder, v, v, _SWAPPED), _WORDS) for v in loaded])
    current = list(states)
    for first in range(0, 64, 4):
        constants = ir.Constant(_WORDS, _ROUNDS[first : first + 4])
        for k, own in enumerate(words):
            if first >= BLOCK // 4:
                a, b, c, d = own[-4:]
                sums = builder.add(builder.call(schedule[0], [a, b]), _chosen(builder, c, d, (1, 2, 3, 4)))
                own.append(builder.call(schedule[1], [sums, d]))
            added = builder.add(own[first // 4], constants)
            upper = _chosen(builder, added, added, (2, 3, 2, 3))
            low, high = current[2 * k : 2 * k + 2]
            high = builder.call(two_rounds, [high, low, added])
            low = builder.call(two_rounds, [low, high, upper])
            current[2 * k : 2 * k + 2] = [low, high]
    return [builder.add(new, old) for new, old in zip(current, states, strict=True)]
