"""Examples of what did not get into a dataset: beginnings of dropped documents, places of records that could
not be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from btlm_data.errors import DataError
from btlm_data.formats.guarded import require_regular
from btlm_data.inspection.report import Example, Reject

EXAMPLE_CHARS = 200
PER_REASON = 3
MAX_LINE = 1 << 20
MAX_LINES = 50_000  # of rejects.jsonl; what comes after them is counted in the ledger only


def dropped(root: Path, unknown: list[str]) -> dict[str, list[Example]]:
    """Up to three examples of each reason to drop a document, shortened. unknown: gets a line if the file is
    damaged.
    """
    by_reason: dict[str, list[Example]] = {}
    for value in _lines(root / "examples.jsonl", unknown):
        examples = by_reason.setdefault(str(value["reason"]), [])
        if len(examples) < PER_REASON:
            offset = value.get("offset")
            examples.append(
                Example(
                    text=str(value.get("text", ""))[:EXAMPLE_CHARS],
                    file=str(value.get("file", "?")),
                    offset=offset if isinstance(offset, int) else None,
                    source=str(value.get("source", "?")),
                )
            )
    return by_reason


def rejected(root: Path, unknown: list[str]) -> dict[str, list[Reject]]:
    """Up to three records of each reason why a record could not be read."""
    by_reason: dict[str, list[Reject]] = {}
    for number, value in enumerate(_lines(root / "rejects.jsonl", unknown)):
        if number >= MAX_LINES:
            break
        rejects = by_reason.setdefault(str(value["reason"]), [])
        if len(rejects) < PER_REASON:
            line = value.get("line")
            rejects.append(
                Reject(
                    file=str(value.get("file", "?")),
                    line=line if isinstance(line, int) else 0,
                    detail=str(value.get("detail", ""))[:EXAMPLE_CHARS],
                )
            )
    return by_reason


def _lines(path: Path, unknown: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, as far as it can be read."""
    if not path.exists():
        return
    try:
        require_regular(path)
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                yield _object(line)
    except (DataError, OSError, ValueError, RecursionError) as error:
        unknown.append(f"{path} is damaged: {error}")


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line.decode(errors="replace"))
    if not isinstance(value, dict) or "reason" not in value:
        raise ValueError("a line is no object with a reason")
    return value
