"""Thrift's compact protocol, as far as parquet's headers use it, over bytes that may be damaged.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator

INTEGERS, BINARY, LISTS, STRUCT = (4, 5, 6), 8, (9, 10), 12
_MAX_DEPTH = 16


class Compact:
    """A position in bytes, moved on by what is read. IndexError: they end too early; ValueError: they are
    something else.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """(number, kind) of the fields of a struct; the caller reads or skips each value before the next."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            yield number, head & 15

    def list_of(self) -> tuple[int, int]:
        """(number of elements, their kind) at the beginning of a list."""
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > len(self._data) - self.position:
            raise IndexError
        return count, head & 15

    def integer(self) -> int:
        """A signed number."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, kind: int, depth: int = 0) -> None:
        """Move on behind a value that is not looked at."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in (1, 2):
            return
        if kind == 3:
            self._advance(1)
        elif kind in INTEGERS:
            self._varint()
        elif kind == 7:
            self._advance(8)
        elif kind == BINARY:
            self._advance(self._varint())
        elif kind in LISTS:
            count, inner = self.list_of()
            for _ in range(count):
                self.skip(3 if inner in (1, 2) else inner, depth + 1)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        else:
            raise ValueError(f"type {kind} does not occur here")

    def since(self, start: int) -> bytes:
        """What was read from `start` on."""
        return self._data[start : self.position]

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _advance(self, count: int) -> None:
        if count > len(self._data) - self.position:
            raise IndexError
        self.position += count
