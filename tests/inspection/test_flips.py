"""A flipped bit anywhere in a finished dataset is noticed by verify; a flip in any file shows words, never a
traceback.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from btlm_data import pipeline
from btlm_data.errors import DataError
from btlm_data.inspection.summary import inspect
from btlm_data.inspection.verify import verify
from btlm_data.progress import Lines
from btlm_data.recipe.load import load

FORMATS = ["sample", *(pytest.param(name, marks=pytest.mark.stress) for name in ("corpus", "vsl"))]


@pytest.fixture(scope="module", params=FORMATS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset of two sets with everything that a dataset can have."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {
        "source.name": "sample",
        "source.limit": 40,
        "seq_len": ["128:0.5", "64:0.5"],
        "format": request.param,
        "run.workers": 1,
        "run.out": str(folder / "out"),
        "run.work_dir": str(folder / "work"),
    }
    pipeline.prepare(load(None, {key: (value, "test") for key, value in settings.items()}), Lines())
    return folder / "out"


def failed(root: Path) -> list[str]:
    return [check.name for check in verify(root, lambda check: None) if check.ok is False]


def flip_everywhere(root: Path, flips: int, seed: int) -> int:
    """Flip `flips` bits of every file, one at a time; returns how many were tried."""
    chance = random.Random(seed)
    count = 0
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for _ in range(flips if original else 0):
            damaged = bytearray(original)
            position, bit = chance.randrange(len(original)), chance.randrange(8)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert failed(root), f"bit {bit} of byte {position} of {path.relative_to(root)} is not noticed"
            count += 1
        path.write_bytes(original)
    assert failed(root) == []
    return count


def test_a_flipped_bit_in_any_file_is_noticed(prepared: Path) -> None:
    names = {path.name for path in prepared.rglob("*") if path.is_file()}
    assert names >= {
        "dataset.json",
        "provenance.json",
        "documents.parquet",
        "rejects.jsonl",
        "examples.jsonl",
    }
    assert flip_everywhere(prepared, 1, seed=1) > 15


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_two_hundred_flips_of_every_file_are_noticed(prepared: Path) -> None:
    assert flip_everywhere(prepared, 200, seed=2) > 3000


def damage_and_inspect(root: Path, flips: int, seed: int) -> None:
    chance = random.Random(seed)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        original = path.read_bytes()
        for _ in range(flips if original else 0):
            damaged = bytearray(original)
            for _ in range(chance.choice((1, 1, 8, 64))):
                damaged[chance.randrange(len(original))] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged[: chance.choice((len(damaged), len(damaged), len(damaged) // 2))])
            try:
                inspect(root)
            except DataError as error:
                assert str(error)  # noqa: PT017
        path.write_bytes(original)


def test_inspect_of_a_damaged_dataset_shows_words(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    damage_and_inspect(tmp_path / "copy", 1, seed=3)


@pytest.mark.stress
@pytest.mark.timeout(7200)
def test_inspect_of_two_hundred_damaged_versions_of_every_file_shows_words(
    prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(prepared, tmp_path / "copy")
    damage_and_inspect(tmp_path / "copy", 200, seed=4)
