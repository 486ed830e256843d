"""Check accounts: the ledger's balance from stage to stage, and that no document is counted in two places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import DataError
from btlm_data.formats.manifest import FILE_NAME, STAGES
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.inspection.dataset import LedgerEntry, Manifest
from btlm_data.inspection.lookup import DocumentTable
from btlm_data.task import Amount

KEYS_IN_MEMORY = 16_000_000  # of documents compared at once

_Group = tuple[str, list[tuple[str, Path]]]


def check_ledger(manifest: Manifest, tell: Report) -> None:
    """Each entry balances: in + added = out + dropped ; each stage's out is the next one's in; the last out is what is there."""
    problems = [problem for entry in manifest.ledger for problem in _entry_problems(entry)]
    unknown = sorted({entry.stage for entry in manifest.ledger} - set(STAGES))
    problems += [f"{FILE_NAME} ledger: unknown stage {stage!r}" for stage in unknown]
    keys = [(entry.stage, entry.split, entry.source) for entry in manifest.ledger]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        problems.append(f"{FILE_NAME} ledger: two entries for {' '.join(twice)}")
    problems += _chain_problems(manifest) + _result_problems(manifest)
    tell_problems(
        tell,
        "ledger",
        problems,
        f"{len(manifest.ledger)} entries: in + added = out + dropped, and each stage hands on what it had",
    )


def _entry_problems(entry: LedgerEntry) -> Iterator[str]:
    # Tokens exist from `tokenize.out` on; from `pack` on nothing else can be told apart.
    units = {"tokenize": ("documents", "bytes"), "pack": ("tokens",), "shard": ("tokens",)}.get(
        entry.stage, Amount._fields
    )
    for unit in units:
        came = getattr(entry.came_in, unit) + sum(getattr(a, unit) for a in entry.added.values())
        went = getattr(entry.out, unit) + sum(getattr(a, unit) for a in entry.dropped.values())
        if came != went:
            yield f"{FILE_NAME} ledger, {entry.stage} {entry.split} {entry.source}: in + added is {came} {unit}, out + dropped {went}"


def _chain_problems(manifest: Manifest) -> list[str]:
    """Out of one stage against in of the next: per split and source, and in sum where sources are no longer told apart."""
    problems: list[str] = []
    sides: dict[tuple[str, str], dict[tuple[str, str], Amount]] = {}
    for entry in manifest.ledger:
        for side, amount in (("in", entry.came_in.amount), ("out", entry.out.amount)):
            cells = sides.setdefault((entry.stage, side), {})
            key = (entry.split, entry.source)
            cells[key] = cells.get(key, Amount()).plus(amount)
    present = [stage for stage in STAGES if (stage, "in") in sides]
    for before, after in pairwise(present):
        out, into = sides[before, "out"], sides[after, "in"]
        if any(source == "*" for _, source in into) and not any(source == "*" for _, source in out):
            out = _merge_sources(out)
        if after in ("pack", "shard"):
            units: tuple[str, ...] = ("tokens",)
        else:
            units = (
                Amount._fields if STAGES.index(before) >= STAGES.index("tokenize") else ("documents", "bytes")
            )
        for key in sorted({*out, *into}):
            gave, took = out.get(key, Amount()), into.get(key, Amount())
            problems += [
                f"{FILE_NAME} ledger, {key[0]} {key[1]}: {before} gave {getattr(gave, unit)} {unit}, {after} took {getattr(took, unit)}"
                for unit in units
                if getattr(gave, unit) != getattr(took, unit)
            ]
    return problems


def _merge_sources(cells: dict[tuple[str, str], Amount]) -> dict[tuple[str, str], Amount]:
    merged: dict[tuple[str, str], Amount] = {}
    for (split, _), amount in cells.items():
        merged[split, "*"] = merged.get((split, "*"), Amount()).plus(amount)
    return merged


def _result_problems(manifest: Manifest) -> list[str]:
    """The last stages against the splits."""
    problems: list[str] = []
    for split, entry in manifest.splits.items():
        for stage, unit, said, key in (
            ("shuffle", "documents", entry.documents, "documents"),
            ("shuffle", "tokens", entry.stream_tokens, "stream_tokens"),
            ("shard", "tokens", entry.label_tokens, "label_tokens"),
        ):
            mine = [getattr(e.out, unit) for e in manifest.ledger if (e.stage, e.split) == (stage, split)]
            if sum(mine) != said:
                problems.append(
                    f"{FILE_NAME} ledger, {stage} {split}: out is {sum(mine)} {unit}, splits.{split}.{key} is {said}"
                )
    return problems


def check_disjoint(tell: Report, name: str, groups: Sequence[_Group], detail: str) -> None:
    """No document (file, offset) is in two groups. Keys are compared a range at a time, so that memory is bounded."""
    try:
        tables = [
            (number, label, split, DocumentTable(path))
            for number, (label, parts) in enumerate(groups)
            for split, path in parts
        ]
        total = sum(table.num_rows for *_, table in tables)
        parts = max(1, -(-total // KEYS_IN_MEMORY))
        for part in range(parts):
            for key in _shared_keys(tables, part, parts):
                if place := _shared_document(tables, key):
                    tell(Check(name, False, "a document is in two", place))
                    return
    except DataError as error:
        tell(Check(name, None, f"not checked: {error}"))
        return
    tell(Check(name, True, f"{detail} ({total} compared)"))


_Tables = list[tuple[int, str, str, DocumentTable]]


def _keys(columns: dict[str, Any]) -> npt.NDArray[np.uint64]:
    codes, names = columns["file"]
    keys = np.empty(len(codes), np.uint64)
    for code in np.unique(codes).tolist():
        mine = codes == code
        keys[mine] = seeding.document_keys(names[code], columns["offset"][mine].astype(np.uint64))
    return keys


def _shared_keys(tables: _Tables, part: int, parts: int) -> Iterator[int]:
    """Keys of one part that two groups have."""
    found: dict[int, list[npt.NDArray[np.uint64]]] = {}
    for number, _, _, table in tables:
        for _, columns in table.batches(("file", "offset")):
            keys = _keys(columns)
            found.setdefault(number, []).append(keys if parts == 1 else keys[keys % np.uint64(parts) == part])
    distinct = [
        np.unique(np.concatenate(keys)) for keys in found.values() if keys
    ]  # a mix repeats documents within a group
    if distinct:
        everything = np.sort(np.concatenate(distinct))
        yield from np.unique(everything[1:][everything[1:] == everything[:-1]]).tolist()


def _shared_document(tables: _Tables, key: int) -> str | None:
    """Where the two are, or None if only their 64-bit keys are equal."""
    seen: dict[tuple[str, int], tuple[int, str]] = {}
    for number, label, split, table in tables:
        for first, columns in table.batches(("file", "offset")):
            for row in np.flatnonzero(_keys(columns) == np.uint64(key)).tolist():
                codes, names = columns["file"]
                document = (names[codes[row]], int(columns["offset"][row]))
                where = (
                    f"{label if label == split else f'{label}/{split}'}/documents.parquet row {first + row}"
                )
                other = seen.setdefault(document, (number, where))
                if other[0] != number:
                    return f"{document[0]} offset {document[1]} is in {other[1]} and in {where}"
    return None
