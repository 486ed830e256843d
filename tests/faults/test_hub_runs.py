from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import zstandard

from tests.faults.hub_runs import run_all

SAMPLE = Path(str(files("btlm_data") / "data/sample"))


def test_part_of_the_sample_from_a_faulty_hub(tmp_path: Path) -> None:
    for file in SAMPLE.rglob("*.zst"):
        part = tmp_path / "part" / file.relative_to(SAMPLE)
        part.parent.mkdir(parents=True, exist_ok=True)
        lines = zstandard.ZstdDecompressor().decompress(file.read_bytes()).splitlines(keepends=True)
        part.write_bytes(zstandard.compress(b"".join(lines[:60])))
    kinds = ("cut in mid-file", "corrupted body")
    assert run_all(tmp_path / "part", tmp_path, kills=2, seed=1, kinds=kinds).problems == []


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_the_sample_under_every_fault_and_fifty_kills(tmp_path: Path) -> None:
    assert run_all(SAMPLE, tmp_path, kills=50, seed=2).problems == []
