"""A receipt per task: what it was made from and what it wrote. Resuming trusts nothing else.

    work/receipts/STEP/TASK.json   {"digest", "step", "version", "task", "outputs": {path: bytes}, "counts", "seconds"}

A task is done if its receipt names the same digest (step, version, settings, arguments, input digests) and the task's
outputs, and these still have their sizes. A receipt of another digest is removed *before* its task is done again, so that no receipt
ever stands beside outputs it does not describe.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btlm_data.formats import atomic


@dataclass(frozen=True)
class Receipt:
    """What one finished task left behind."""

    digest: str
    step: str
    version: int
    task: str
    outputs: dict[str, int]  # path relative to the work folder -> bytes
    counts: dict[str, Any]
    seconds: float


def path_of(work_dir: Path, step: str, task_id: str) -> Path:
    """Where the receipt of a task stands."""
    return work_dir / "receipts" / step / f"{task_id}.json"


def read(work_dir: Path, step: str, task_id: str) -> Receipt | None:
    """The receipt, or None if there is none that can be read (a torn one counts as none)."""
    try:
        value = json.loads(path_of(work_dir, step, task_id).read_bytes())
        return Receipt(**value)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def proves(receipt: Receipt | None, digest: str, work_dir: Path, outputs: Iterable[str] = ()) -> bool:
    """True if the receipt is of this digest, names all of `outputs`, and every output still has its size.

    Outputs are no part of the digest (a dataset can move together with its work folder), so one work folder can serve two
    dataset folders: a shard in the one proves nothing about the other.
    """
    if receipt is None or receipt.digest != digest or not receipt.outputs.keys() >= set(outputs):
        return False
    try:
        return all((work_dir / path).stat().st_size == size for path, size in receipt.outputs.items())
    except OSError:
        return False


def write(
    work_dir: Path,
    step: str,
    version: int,
    task_id: str,
    digest: str,
    outputs: Iterable[str],
    counts: dict[str, Any],
    seconds: float,
) -> Receipt:
    """Write the receipt of a task whose outputs all have their final names."""
    sizes = {path: (work_dir / path).stat().st_size for path in sorted(outputs)}
    receipt = Receipt(digest, step, version, task_id, sizes, counts, round(seconds, 3))
    atomic.write_json(path_of(work_dir, step, task_id), receipt.__dict__, durable=False)
    return receipt


def forget(work_dir: Path, step: str, task_id: str) -> None:
    """Remove a receipt that no longer describes what will stand there."""
    path_of(work_dir, step, task_id).unlink(missing_ok=True)
