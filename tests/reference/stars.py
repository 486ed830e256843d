"""Twins of kernels/stars.py: edges as pairs of numbers, in sets."""

from __future__ import annotations

from collections.abc import Iterable

Edges = set[tuple[int, int]]  # (later, earlier)


def small_star(edges: Iterable[tuple[int, int]]) -> Edges:
    """Each document and what it leads to, led to the earliest of these."""
    out: Edges = set()
    leads: dict[int, set[int]] = {}
    for later, earlier in edges:
        leads.setdefault(later, set()).add(earlier)
    for document, to in leads.items():
        out |= {(other, min(to)) for other in {document, *to} if other != min(to)}
    return out


def large_star(edges: Iterable[tuple[int, int]]) -> Edges:
    """What leads to a document, led to the earliest that the document leads to."""
    edges = list(edges)
    out: Edges = set()
    for document in {end for edge in edges for end in edge}:
        near = {b if a == document else a for a, b in edges if document in (a, b)}
        out |= {(other, min(near | {document})) for other in near if other > document}
    return out


def is_done(edges: Edges) -> bool:
    """Whether each document leads to one other, which leads to none."""
    later = [a for a, _ in edges]
    return len(set(later)) == len(later) and not set(later) & {b for _, b in edges}


def components(count: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """The first document of each one's component."""
    first = list(range(count))
    edges = list(edges)
    while True:
        before = first.copy()
        for a, b in edges:
            first[a] = first[b] = min(first[a], first[b])
        if first == before:
            return first
