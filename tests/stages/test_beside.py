"""Files beside the shards: copied whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from btlm_data.formats.columns import DamagedError
from btlm_data.locations import Locations, Stores
from btlm_data.stages import beside
from btlm_data.storage import digest
from btlm_data.task import Artifact
from btlm_data.task_files import TaskFiles


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Locations(str(tmp_path / "work"), str(tmp_path / "out")).open()


def source(stores: Stores, name: str, data: bytes) -> Artifact:
    stores.work.write(name, data)
    return Artifact(name, len(data), digest.checksum(data))


def test_a_file_is_copied_in_pieces_with_its_sha256(stores: Stores, tmp_path: Path) -> None:
    data = os.urandom(9_000_001)
    [task] = beside.tasks_of({"msl64/rejects.jsonl": source(stores, "acquire/listed/rejects.jsonl", data)})
    files = TaskFiles(stores, task)
    counts = beside.copy(task, files)
    assert (tmp_path / "out/msl64/rejects.jsonl").read_bytes() == data
    assert counts.extra["file"] == {
        "name": "rejects.jsonl",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert files.written == [Artifact("msl64/rejects.jsonl", len(data), digest.checksum(data), "out")]


@pytest.mark.parametrize("damage", [b"other bytes", b"some byte", b"some bytes, and more"])
def test_a_damaged_file_is_not_copied(stores: Stores, tmp_path: Path, damage: bytes) -> None:
    artifact = source(stores, "dedupe/table/clusters.parquet", b"some bytes")
    stores.work.write(artifact.name, damage)
    [task] = beside.tasks_of({"clusters.parquet": artifact})
    with pytest.raises(DamagedError, match=r"clusters\.parquet is damaged"):
        beside.copy(task, TaskFiles(stores, task))
    assert not (tmp_path / "out/clusters.parquet").exists()
