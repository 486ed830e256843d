"""Plain twins of btlm_data/kernels/buckets.py and union_find.py, and of the decisions of btlm_data/dedupe/clusters.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def components(n: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The smallest member of each node's connected component, by breadth-first search."""
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    root = [-1] * n
    for start in range(n):
        if root[start] < 0:
            queue = [start]
            while queue:
                node = queue.pop()
                if root[node] < 0:
                    root[node] = start
                    queue += neighbours[node]
    return root


def equal_runs(keys: Sequence[Hashable]) -> list[list[int]]:
    """The places of each key that occurs more than once."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return sorted(members for members in places.values() if len(members) > 1)


@dataclass(frozen=True)
class Document:
    """What decides a document's fate."""

    exact: int
    bands: tuple[int, ...]
    split: str = "train"
    source: str = "a"
    num_bytes: int = 1
    in_index: bool = False


def clusters(documents: Sequence[Document], holdout: bool = True) -> list[int]:
    """Each document's cluster: all pairs are compared."""
    edges = []
    for i, one in enumerate(documents):
        for j, other in enumerate(documents[:i]):
            takes_part = holdout or (one.split == other.split == "train")
            if takes_part and (
                one.exact == other.exact or any(a == b for a, b in zip(one.bands, other.bands, strict=True))
            ):
                edges.append((j, i))
    return components(len(documents), edges)


def fates(
    documents: Sequence[Document], keep: str = "first", priority: Sequence[str] = (), holdout: bool = True
) -> list[str]:
    """Each document's fate, by the rules of the design as a person would apply them."""
    roots = clusters(documents, holdout)
    result = ["kept"] * len(documents)
    for root in set(roots):
        members = [i for i, r in enumerate(roots) if r == root]
        train = [i for i in members if documents[i].split == "train"]
        held = [i for i in members if documents[i].split != "train"] if holdout else []
        if held:
            for i in train:
                same = any(documents[i].exact == documents[h].exact for h in held)
                result[i] = "duplicate_of_holdout" if same else "near_duplicate_of_holdout"
            continue
        if any(documents[i].in_index for i in members):
            for i in train:
                result[i] = "in_index"
            continue
        if not train:
            continue
        if keep == "first":
            kept = train[0]
        elif keep == "longest":
            kept = max(train, key=lambda i: (documents[i].num_bytes, -i))
        else:
            ranks = {name: -rank for rank, name in enumerate(priority)}
            kept = max(train, key=lambda i: (ranks.get(documents[i].source, -len(priority)), -i))
        for i in train:
            if i != kept:
                same = documents[i].exact == documents[kept].exact or any(
                    documents[j].exact == documents[i].exact for j in train if j < i
                )
                result[i] = "exact_duplicate" if same else "near_duplicate"
    return result
