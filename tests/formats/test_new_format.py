"""A format of one file (toy_format.py) and one line in FORMATS: prepared, verified, inspected, read back."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from btlm_data.formats import dataset
from btlm_data.formats.shard_formats import FORMATS
from btlm_data.inspection.verify import passed, verify
from btlm_data.pipeline import prepare
from btlm_data.recipe.models import Recipe
from tests.test_export import Silent

MODULE = "toy_format_of_the_tests"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(MODULE, Path(__file__).with_name("toy_format.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setitem(FORMATS, "pairs", MODULE)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("shuffle", "sends"), [("samples", False), ("none", False), ("samples", True)])
def test_a_new_format_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: str, sends: bool
) -> None:
    if sends:
        monkeypatch.setenv("BTLM_SCATTER", "1")
    words = np.random.default_rng(1).integers(0, 500, (40, 60))
    lines = [json.dumps({"text": " ".join(f"w{n}" for n in row)}) for row in words.tolist()]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text("\n".join(lines) + "\n")
    recipe = Recipe.model_validate(
        {
            "source": str(tmp_path / "corpus"),
            "clean": {"min_chars": 0},
            "dedupe": "none",
            "seq_len": 16,
            "format": "pairs",
            "shuffle": shuffle,
            "shards": {"samples_per_file": 50},
            "run": {"out": str(tmp_path / "shards"), "workers": 1},
        }
    )
    assert prepare(recipe, Silent()).complete
    value = dataset.read_set(tmp_path / "shards")
    assert value.format == "pairs"
    files = value.splits["train"].files
    assert len(files) > 2
    rows = np.concatenate([h5py.File(tmp_path / "shards/train" / file.name)["data"][:] for file in files])
    assert rows.shape[1:] == (2, 16)
    table = pq.read_table(tmp_path / "shards/train/documents.parquet")
    tokens = sum(table["tokens"].to_pylist()) + len(table)
    assert len(rows) == (tokens - 1) // 16
    if shuffle == "none":
        assert np.array_equal(rows[:-1, 1, -1], rows[1:, 0, 0])
    checks = verify(tmp_path / "shards", lambda _: None)
    assert passed(checks), [check for check in checks if check.ok is False]
    with h5py.File(tmp_path / "shards/train" / files[1].name, "r+") as file:
        file["data"][3, 1, 5] += 1
    failed = {check.name for check in verify(tmp_path / "shards", lambda _: None) if check.ok is False}
    assert "shift" in failed
