"""What was rejected or dropped, with reason and place: JSON Lines, and a seeded sample of examples per
reason.

A line of `rejects.jsonl`: {"file", "line" (1-based, as editors count), "offset" (bytes decompressed),
"reason", "detail", "bytes"}. Examples are the `limit` documents of each reason with the smallest hash, so
that which ones are kept does not depend on the order in which blocks were read: {"reason", "file", "offset",
"source", "text" (first characters), "hash"}.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec

from btlm_data.errors import DataError

EXAMPLE_CHARS = 500
_PER_BLOCK = 16  # of one reason; the final sample is drawn from these


class Examples(msgspec.Struct):
    """A sample of dropped documents, at most `limit` per reason, by smallest hash."""

    limit: int
    _heaps: dict[str, list[tuple[int, str]]] = msgspec.field(default_factory=dict)

    def wants(self, reason: str, hash_value: int) -> bool:
        """Whether an example with this hash would be kept now: if not, its text need not be cut out."""
        heap = self._heaps.get(reason, [])
        return self.limit > 0 and (len(heap) < self.limit or hash_value < -heap[0][0])

    def add(self, reason: str, hash_value: int, example: dict[str, Any]) -> None:
        """Offer one example."""
        if not self.wants(reason, hash_value):
            return
        heap = self._heaps.setdefault(reason, [])
        entry = (
            -hash_value,
            json.dumps({"reason": reason, "hash": hash_value, **example}, ensure_ascii=False, sort_keys=True),
        )
        if len(heap) < self.limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)

    def lines(self) -> Iterator[str]:
        """JSON of each example, by reason, then hash."""
        for reason in sorted(self._heaps):
            yield from (line for _, line in sorted(self._heaps[reason], reverse=True))


def block_examples(limit: int) -> Examples:
    """For one block: few enough to be cheap, enough for the final sample."""
    return Examples(min(limit, _PER_BLOCK))


def write_block(file: BinaryIO, rejects: Iterable[dict[str, Any]], examples: Examples) -> None:
    """Write one block's rejects and examples: a line each, examples marked by their `hash`."""
    for reject in rejects:
        line = json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n"
        file.write(line.encode("utf-8", "backslashreplace"))
    for line in examples.lines():
        file.write((line + "\n").encode("utf-8", "backslashreplace"))


def read_block(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """The lines of one block's file. Raises DataError, naming file and line, if one is torn."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(
                f"{name} line {number} is torn. Remove the file and rerun the same command."
            ) from None
