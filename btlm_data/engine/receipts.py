"""A receipt per task: what it was made from and what it wrote. Resuming trusts nothing else.

    receipts/STEP/TASK.json   {"checksum": hex XXH3 of the rest, "receipt": {"digest", "step", "version",
                               "task", "outputs": [[name, size, checksum, store], ...], "counts", "seconds"}}

The process that did the work writes it, after the outputs have their names. A task is done if its receipt is
of the same digest (step, version, settings, arguments, inputs, checksums of what it read) and its outputs are
there with their sizes; every reader of an output checks its checksum. A receipt of another digest is removed
*before* its task is done again, so that a receipt always describes the outputs beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from btlm_data.storage import Store, digest
from btlm_data.task import Artifact, Counts, StoreName, TaskResult

FOLDER = "receipts"
_REQUESTS = 16  # at once, to a remote store


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one finished task left behind."""

    digest: str
    step: str
    version: int
    task: str
    outputs: tuple[tuple[str, int, str, StoreName], ...]
    counts: dict[str, Any]
    seconds: float

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The outputs."""
        return tuple(Artifact(*output) for output in self.outputs)

    def result(self) -> TaskResult:
        """As the runner hands it on."""
        return TaskResult(self.task, self.artifacts, Counts.from_json(self.counts), self.seconds)


def name_of(step: str, task_id: str) -> str:
    """Where the receipt of a task is in the work folder."""
    return f"{FOLDER}/{step}/{task_id}.json"


def write(store: Store, receipt: Receipt) -> None:
    """Write a receipt. Its outputs must have their final names."""
    body = msgspec.json.encode(receipt, order="deterministic")
    store.write(
        name_of(receipt.step, receipt.task),
        b'{"checksum":"' + digest.checksum(body).encode() + b'","receipt":' + body + b"}\n",
        durable=False,
    )


def read_all(store: Store, step: str) -> dict[str, Receipt]:
    """Every receipt of a step that is whole, by task; a torn or flipped one counts as none. One listing, then
    reads.
    """
    names = [entry.name for entry in store.list(f"{FOLDER}/{step}") if entry.name.endswith(".json")]
    return {receipt.task: receipt for receipt in read(store, names)}


def read(store: Store, names: Sequence[str]) -> list[Receipt]:
    """The receipts of these names that are whole and describe the task of their name."""
    if store.is_local:
        values = [_decode(store.read(name)) for name in names]
    else:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            values = list(pool.map(lambda name: _decode(store.read(name)), names))
    return [
        receipt
        for name, receipt in zip(names, values, strict=True)
        if receipt is not None and name == name_of(receipt.step, receipt.task)
    ]


def _decode(data: bytes) -> Receipt | None:
    try:
        value = json.loads(data)
        receipt = msgspec.convert(value["receipt"], Receipt)
        # half a surrogate pair is read, and cannot be written: a ValueError as well
        body = msgspec.json.encode(receipt, order="deterministic")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return receipt if value.get("checksum") == digest.checksum(body) else None
