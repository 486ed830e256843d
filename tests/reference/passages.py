"""Passages in rows of tokens, by joining bytes and looking: the plain twin of kernels/passages.py."""

from __future__ import annotations

from collections.abc import Sequence


def find(
    rows: Sequence[Sequence[int]], vocabulary: Sequence[bytes], passages: Sequence[bytes], barrier: int
) -> set[tuple[int, int, int, int]]:
    """(passage, row, first token, one past the last) of every place of every passage that lies whole in a row."""
    found = set()
    for number, row in enumerate(rows):
        first = 0
        for last in [*(t for t, token in enumerate(row) if token == barrier), len(row)]:
            starts = [0]
            for token in row[first:last]:
                starts.append(starts[-1] + len(vocabulary[token]))
            text = b"".join(vocabulary[token] for token in row[first:last])
            for q, passage in enumerate(passages):
                at = text.find(passage)
                while at >= 0:
                    begin = max(t for t in range(last - first) if starts[t] <= at)
                    end = min(t for t in range(last - first + 1) if starts[t] >= at + len(passage))
                    found.add((q, number, first + begin, first + end))
                    at = text.find(passage, at + 1)
            first = last + 1
    return found
