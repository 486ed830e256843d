"""The ledger: what became of every document, byte and token, stage by stage; and the check that it adds up.

A row is one stage, one split, one source: {"stage", "split", "source", "in", "added", "dropped", "out"}.
Amounts are {"documents", "bytes", "tokens"}; `added` and `dropped` map a reason to an amount. Bytes are UTF-8
text, counted up to `shuffle`. Tokens count one EOS a document from the output of `tokenize` on, and label
positions from `pack` on. From `pack` on documents are no longer distinguished by source: "*".

Every dataset has rows of all stages, regardless of its configuration: a stage that drops nothing hands on
what it received.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from btlm_data.task import Amount, Counts

Stage = Literal["acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard", "forget"]
STAGES: tuple[Stage, ...] = get_args(Stage)[
    :-1
]  # of a run; `forget` has rows where documents were taken out later
STAGES_OF_DOCUMENTS: tuple[Stage, ...] = STAGES[:6]
ALL_SOURCES = "*"
MOVED = "drawn_for_"  # a reason that begins so: the document is in another split of the dataset
Count = Annotated[int, Meta(ge=0, le=2**53)]
ShortText = Annotated[str, Meta(max_length=4096)]
SPLITS = ("train", "validation", "test")
SplitName = Annotated[str, Meta(pattern=r"^(train|validation|test)\Z")]

# What a stage must balance: tokens exist from the output of `tokenize` on; from `pack` on only tokens are
# known.
_UNITS: dict[str, tuple[str, ...]] = {
    "tokenize": ("documents", "bytes"),
    "pack": ("tokens",),
    "shard": ("tokens",),
    "forget": ("tokens",),
}


class Amounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Documents, bytes of UTF-8 text, tokens."""

    documents: Count = 0
    bytes: Count = 0
    tokens: Count = 0

    @property
    def amount(self) -> Amount:
        """The same as stages count it."""
        return Amount(self.documents, self.bytes, self.tokens)


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"received": "in"}):
    """What one stage did with one source of one split. received: "in" on disk."""

    stage: Stage
    split: SplitName
    source: ShortText
    received: Amounts
    added: dict[ShortText, Amounts]
    dropped: dict[ShortText, Amounts]
    out: Amounts


def rows_of(stages: Mapping[str, Counts]) -> list[Row]:
    """Rows from each stage's counts: in stage order, then by split and source."""
    rows: list[Row] = []
    for stage in STAGES:
        cells_of: dict[tuple[str, str], dict[str, Amount]] = {}
        for (split, source, kind), amount in stages.get(stage, Counts()).cells.items():
            cells_of.setdefault((split, source), {})[kind] = amount
        for (split, source), cells in sorted(cells_of.items()):
            rows.append(
                Row(
                    stage=stage,
                    split=split,
                    source=source,
                    received=Amounts(*cells.get("in", Amount())),
                    added=_reasons(cells, "add:"),
                    dropped=_reasons(cells, "drop:"),
                    out=Amounts(*cells.get("out", Amount())),
                )
            )
    return rows


def _reasons(cells: Mapping[str, Amount], prefix: str) -> dict[str, Amounts]:
    return {
        kind.removeprefix(prefix): Amounts(*amount)
        for kind, amount in sorted(cells.items())
        if kind.startswith(prefix) and any(amount)
    }


def total(rows: Iterable[Row], stage: str, side: Literal["in", "out"], split: str | None = None) -> Amount:
    """What a stage received or handed on, summed over sources, and over splits unless one is named."""
    amount = Amount()
    for row in rows:
        if row.stage == stage and split in (None, row.split):
            amount = amount.plus((row.received if side == "in" else row.out).amount)
    return amount


def imbalances(rows: Iterable[Row]) -> list[str]:
    """What does not add up; empty if everything does.

    In every row in + added = out + dropped. Every stage is there, and receives, split by split and source by
    source, what the stage before it passed on (summed over sources where they are no longer distinguished).
    """
    rows = list(rows)
    problems = [problem for row in rows for problem in _row_problems(row)]
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        key = (row.stage, row.split, row.source)
        if key in seen:
            problems.append(f"two rows for {' '.join(key)}")
        seen.add(key)
    present = {row.stage for row in rows}
    problems += [f"no row of the stage {stage}" for stage in STAGES if stage not in present]
    return problems + _chain_problems(rows, [stage for stage in (*STAGES, "forget") if stage in present])


def _row_problems(row: Row) -> Iterator[str]:
    for unit in _UNITS.get(row.stage, Amount._fields):
        received = getattr(row.received, unit) + sum(getattr(a, unit) for a in row.added.values())
        left = getattr(row.out, unit) + sum(getattr(a, unit) for a in row.dropped.values())
        if received != left:
            step = f"{row.stage} {row.split} {row.source}"
            yield f"{step}: in + added is {received} {unit}, out + dropped is {left}"


def _chain_problems(rows: Iterable[Row], present: Sequence[Stage]) -> list[str]:
    problems: list[str] = []
    sides: dict[tuple[str, str], dict[tuple[str, str], Amount]] = {}
    for row in rows:
        for side, amounts in (("in", row.received), ("out", row.out)):
            cells = sides.setdefault((row.stage, side), {})
            key = (row.split, row.source)
            cells[key] = cells.get(key, Amount()).plus(amounts.amount)
    for before, after in pairwise(present):
        out, received = sides[before, "out"], sides[after, "in"]
        if any(source == ALL_SOURCES for _, source in received):
            out = _merge_sources(out)
        units: tuple[str, ...] = ("tokens",)
        if after not in ("pack", "shard", "forget"):
            tokenized = STAGES.index(before) >= STAGES.index("tokenize")
            units = Amount._fields if tokenized else ("documents", "bytes")
        for key in sorted({*out, *received}):
            given, taken = out.get(key, Amount()), received.get(key, Amount())
            problems += [
                f"{key[0]} {key[1]}: {before} passed on {getattr(given, unit)} {unit}, {after} received "
                f"{getattr(taken, unit)}"
                for unit in units
                if getattr(given, unit) != getattr(taken, unit)
            ]
    return problems


def _merge_sources(cells: Mapping[tuple[str, str], Amount]) -> dict[tuple[str, str], Amount]:
    merged: dict[tuple[str, str], Amount] = {}
    for (split, _), amount in cells.items():
        merged[split, ALL_SOURCES] = merged.get((split, ALL_SOURCES), Amount()).plus(amount)
    return merged
