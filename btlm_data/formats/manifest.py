"""dataset.json: what a prepared dataset is, and the ledger that accounts for every document and token.

    format_version 1. Keys: fingerprint (of settings and inputs), version (of btlm-data), configuration (complete: `btlm-data run
    dataset.json` repeats the run), source, inputs, tokenizer, seq_len, format, shuffle, seed, dtype (of tokens), set, splits,
    ledger, dedupe, outputs. No times, hosts or paths of the machine: the same run gives the same bytes.

The ledger is a list of {"stage", "split", "source", "in", "added", "dropped", "out"}; amounts are {"documents", "bytes", "tokens"}; `added`
and `dropped` map a reason to an amount. In every entry in + added = out + dropped; summed over sources, a stage's `out` is the
next one's `in`. Bytes are UTF-8 text before packing; tokens count one EOS a document from `tokenize` on, and label
positions from `pack` on. From `pack` on documents can no longer be told apart by source: "*".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from btlm_data.errors import DataError
from btlm_data.task import Amount, Counts

FORMAT_VERSION = 1
FILE_NAME = "dataset.json"
STAGES = ("acquire", "clean", "dedupe", "holdout", "tokenize", "shuffle", "pack", "shard")


def ledger(stages: Mapping[str, Counts]) -> list[dict[str, Any]]:
    """Entries of the ledger from each stage's counts, in stage order, then split and source."""
    entries: list[dict[str, Any]] = []
    for stage in STAGES:
        by_place: dict[tuple[str, str], dict[str, Amount]] = {}
        for (split, source, what), amount in stages.get(stage, Counts()).cells.items():
            by_place.setdefault((split, source), {})[what] = amount
        for (split, source), cells in sorted(by_place.items()):
            entries.append(
                {
                    "stage": stage,
                    "split": split,
                    "source": source,
                    "in": _amount(cells.get("in", Amount())),
                    "added": {
                        what[4:]: _amount(a)
                        for what, a in sorted(cells.items())
                        if what.startswith("add:") and any(a)
                    },
                    "dropped": {
                        what[5:]: _amount(a)
                        for what, a in sorted(cells.items())
                        if what.startswith("drop:") and any(a)
                    },
                    "out": _amount(cells.get("out", Amount())),
                }
            )
    return entries


def _amount(amount: Amount) -> dict[str, int]:
    return amount._asdict()


def imbalances(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """What does not add up, in plain words; empty if everything does."""
    problems: list[str] = []
    totals: dict[str, dict[tuple[str, str], int]] = {}
    for entry in entries:
        # Tokens exist from `tokenize.out` on; text bytes end with `shuffle`.
        fields = {"tokenize": ("documents", "bytes"), "pack": ("tokens",), "shard": ("tokens",)}.get(
            entry["stage"], ("documents", "bytes", "tokens")
        )
        for field in fields:
            came = entry["in"][field] + sum(a[field] for a in entry["added"].values())
            went = entry["out"][field] + sum(a[field] for a in entry["dropped"].values())
            if came != went:
                problems.append(
                    f"{entry['stage']} {entry['split']} {entry['source']}: {came} {field} came in, {went} are accounted for"
                )
        for side in ("in", "out"):
            for field in ("documents", "bytes", "tokens"):
                key = (side, field)
                stage = totals.setdefault(entry["stage"], {})
                stage[key] = stage.get(key, 0) + entry[side][field]
    present = [stage for stage in STAGES if stage in totals]
    for before, after in pairwise(present):
        for field in ("documents", "bytes") if after in STAGES[:6] else ("tokens",):
            out, into = totals[before][("out", field)], totals[after][("in", field)]
            if out != into:
                problems.append(f"{before} gave {out} {field}, {after} took {into}")
    return problems


def read(path: Path) -> dict[str, Any]:
    """Read a dataset.json. Raises DataError if it is missing, torn, or of a version this program does not know."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"There is no {path}. Name a dataset folder made by `btlm-data prepare`.") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Restore it, or prepare the dataset again."
        ) from None
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        found = value.get("format_version") if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"{path} is of format version {found!r}; this program knows {FORMAT_VERSION}. Use a newer btlm-data."
        )
    return value
