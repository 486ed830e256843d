"""Check accounts: the ledger's balance from stage to stage, and that no document is counted in two places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from btlm_data import seeding
from btlm_data.errors import DataError
from btlm_data.formats.dataset import DOCUMENTS, FILE_NAME, Dataset, Split
from btlm_data.formats.documents_table import DocumentTable
from btlm_data.formats.ledger import imbalances
from btlm_data.inspection.check import Check, Report, tell_problems
from btlm_data.wording import counted

KEYS_IN_MEMORY = 16_000_000  # of documents compared at once

_Group = tuple[str, list[tuple[str, Path]]]


def check_ledger(manifest: Dataset, tell: Report) -> None:
    """Each entry balances: in + added = out + dropped ; each stage's out is the next one's in; the last out
    is what is there.
    """
    problems = [f"{FILE_NAME} ledger: {problem}" for problem in imbalances(manifest.ledger)]
    problems += _result_problems(manifest)
    tell_problems(
        tell,
        "ledger",
        problems,
        f"{len(manifest.ledger):,} rows: in + added = out + dropped, and each stage received what the one "
        "before passed on",
    )


def _result_problems(manifest: Dataset) -> list[str]:
    """The last stages against the splits."""
    problems: list[str] = []
    for split, entry in manifest.splits.items():
        for stage, unit, stated, key in (
            ("shuffle", "documents", entry.documents, "documents"),
            ("shuffle", "tokens", entry.stream_tokens, "stream_tokens"),
            ("shard", "tokens", entry.label_tokens, "label_tokens"),
        ):
            amounts = [getattr(e.out, unit) for e in manifest.ledger if (e.stage, e.split) == (stage, split)]
            if sum(amounts) != stated:
                problems.append(
                    f"{FILE_NAME} ledger, {stage} {split}: out is {sum(amounts)} {unit}, "
                    f"splits.{split}.{key} is {stated}"
                )
    return problems


def check_mix(tell: Report, manifest: Dataset, root: Path) -> None:
    """Each phase of a mix by budget has the documents and tokens of each source that dataset.json says, and begins
    with a document.
    """
    problems: list[str] = []
    phases = [(name, entry) for name, entry in manifest.splits.items() if entry.phases]
    if not phases:
        return
    try:
        for name, entry in phases:
            problems += _phase_problems(name, entry, DocumentTable(root / name / DOCUMENTS))
    except DataError as error:
        tell(Check("mix", None, f"not checked: {error}"))
        return
    number = sum(len(entry.phases) for _, entry in phases)
    tell_problems(tell, "mix", problems, f"{counted(number, 'phase')}: documents and tokens of each source")


def _phase_problems(name: str, entry: Split, table: DocumentTable) -> Iterator[str]:
    ends = np.array(list(accumulate(phase.tokens for phase in entry.phases)), np.int64)
    counted: list[dict[str, tuple[int, int]]] = [{} for _ in entry.phases]
    begins = set[int]()
    for _, columns in table.batches(("stream_offset", "tokens", "source")):
        offset = columns["stream_offset"].astype(np.int64)
        begins |= set(offset[np.isin(offset, ends)].tolist())
        numbers = np.minimum(np.searchsorted(ends, offset, side="right"), len(ends) - 1)
        codes, names = columns["source"]
        for number in np.unique(numbers).tolist():
            rows = numbers == number
            documents = np.bincount(codes[rows], minlength=len(names))
            tokens = np.bincount(codes[rows], columns["tokens"][rows].astype(np.int64) + 1, len(names))
            for code in np.flatnonzero(documents).tolist():
                before = counted[number].get(names[code], (0, 0))
                counted[number][names[code]] = (
                    before[0] + int(documents[code]), before[1] + int(tokens[code])
                )  # fmt: skip
    for number, phase in enumerate(entry.phases):
        stated = {source: (s.documents, s.tokens) for source, s in phase.sources.items() if s.documents}
        for source in sorted(stated.keys() | counted[number].keys()):
            if stated.get(source, (0, 0)) != counted[number].get(source, (0, 0)):
                yield (
                    f"splits.{name}.phases[{number}]: {source} has {stated.get(source, (0, 0))} documents and tokens, "
                    f"documents.parquet has {counted[number].get(source, (0, 0))}"
                )
        end = int(ends[number])
        if end < entry.stream_tokens and end not in begins:
            yield f"splits.{name}.phases[{number}]: no document begins at token {end:,}, where it ends"


def check_disjoint(tell: Report, name: str, groups: Sequence[_Group], detail: str) -> None:
    """No document (file, offset) is in two groups. Keys are compared a range at a time, so that memory is
    bounded.
    """
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
                if location := _shared_document(tables, key):
                    tell(Check(name, False, "a document is in both", location))
                    return
    except DataError as error:
        tell(Check(name, None, f"not checked: {error}"))
        return
    tell(Check(name, True, f"{detail} ({total:,} compared)"))


_Tables = list[tuple[int, str, str, DocumentTable]]


def _keys(columns: dict[str, Any]) -> npt.NDArray[np.uint64]:
    codes, names = columns["file"]
    keys = np.empty(len(codes), np.uint64)
    for code in np.unique(codes).tolist():
        rows = codes == code
        keys[rows] = seeding.document_keys(names[code], columns["offset"][rows].astype(np.uint64))
    return keys


def _shared_keys(tables: _Tables, part: int, parts: int) -> Iterator[int]:
    """Keys of one part that two groups have."""
    keys_by_number: dict[int, list[npt.NDArray[np.uint64]]] = {}
    for number, _, _, table in tables:
        for _, columns in table.batches(("file", "offset")):
            keys = _keys(columns)
            keys_by_number.setdefault(number, []).append(
                keys if parts == 1 else keys[keys % np.uint64(parts) == part]
            )
    distinct = [
        np.unique(np.concatenate(keys)) for keys in keys_by_number.values() if keys
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
                earlier = seen.setdefault(document, (number, where))
                if earlier[0] != number:
                    return f"{document[0]} offset {document[1]} is in {earlier[1]} and in {where}"
    return None
